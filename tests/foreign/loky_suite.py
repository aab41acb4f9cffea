"""loky's own tests of its executor, with `sky.Compute` in its place.

They come from loky's source distribution, since its wheels have none. Those of its reusable executor that are about
crashes and kills run too; those about resizing, context switches and semaphores are about loky alone.
"""

from __future__ import annotations

import concurrent.futures
import functools
import multiprocessing
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import skyward as sky
from skyward.core.payload.exceptions import RemoteTraceback
from tests.foreign import stand_ins
from tests.foreign.runner import BUILD, Suite, select, sha256

VERSION = "3.7.0"
SHA256 = "80928106fe18b5300c6f1b3a871d71e68a81dc9b2fe5c8ee4afe93bb9ba6424d"
PACKAGE = "loky_tests"  # theirs is called as ours is

CLASSES = (
    "TestsProcessPoolLokyShutdown",
    "TestsProcessPoolLokyWait",
    "TestsProcessPoolLokyAsCompleted",
    "TestsProcessPoolLokyExecutor",
    "TestExecutorDeadLock",
    "TestTerminateExecutor",
)

_CAUSE = "the cause is what was raised, with its type, and not a text of it"
_WORDS = "the same error with other words"
_OTHER = "an option of loky's"
_INNER = "breaks inner parts of loky"
FAILS = {
    "*::test_processes_crash_handling_after_executor_gc": "a pool is not broken by a slot's death",
    "*::test_hang_issue39205": "what tasks print has the name of their node before it",
    "*::test_max_workers_negative": _WORDS,
    "*::test_traceback": "the cause's text is in another attribute, which is private in loky",
    "*::test_serialization": _OTHER,
    "*::test_max_depth*": "the nested ones are loky's own, since a slot has the class as loky wrote it",
    "*::test_exited_child": _WORDS,
    "*::test_manager_thread_crash_breaks_executor": _INNER,
    "*::test_feeder_error_hook_crash_breaks_executor": _INNER,
    "*[id-args2-TaskError-SystemExit]": _CAUSE,
    "*[id-args4-TaskError-UnpicklingError]": _CAUSE,
    "*[return_instance-args14-TaskError-SystemExit]": _CAUSE,
    "*[return_instance-args15-TaskError-UnpicklingError]": _CAUSE,
    "*::test_informative_error_when_fail_at_unpickle": _CAUSE,
    "*-EXIT\\\\(0\\\\)]": _WORDS,
    "*[return_instance-args11-SystemExit-None]": "PayloadError names the object that raised, whatever it raised",
    "*::test_deadlock_kill": _OTHER,
    "*::test_call_item_gc_crash_or_exit*": "arguments are freed before the result is sent, and the slot dies of that",
}

LEFT = {
    "*::test_killed_child*": "loky's pool breaks, and drops its tasks; ours runs them, which takes minutes",
    "*::test_no_failure_on_large_data_send": "2.2 GB, several times over, are too many for a machine of CI",
}

PART = (
    "*::test_crashes*",
    "*::test_thread_safety",
    "*::test_submit_from_callback",
    "*::test_map*",
    "*::test_no_stale_references",
    "*::test_shutdown_and_kill_workers",
    "*::test_processes_*",
)


def suite() -> Suite:
    folder = BUILD / f"loky-{VERSION}"
    if not (folder / PACKAGE).exists():
        _download(folder)
    names = ("test_process_executor_loky.py", "test_reusable_executor.py")
    tests = [str(folder / PACKAGE / name) for name in names]
    return Suite("tests.foreign.loky_suite", tests, FAILS, PART, left=LEFT, least=15, peer="loky", path=[str(folder)])


def _download(folder: Path) -> None:
    archive = BUILD / f"loky-{VERSION}.tar.gz"
    if not archive.exists():
        options = ["--quiet", "--no-deps", "--no-binary=:all:", "--dest", str(BUILD)]
        command = [sys.executable, "-m", "pip", "download", *options, f"loky=={VERSION}"]
        subprocess.run(command, check=True, timeout=300)
    assert sha256(archive) == SHA256, f"{archive} is not what it was when it was written down here"
    with tarfile.open(archive) as tar:
        tar.extractall(BUILD, filter="data")
    (folder / "tests").rename(folder / PACKAGE)


# --- the plugin ---


def pytest_configure() -> None:
    if os.environ["FOREIGN_BACKEND"] == "skyward":
        _adapt()


def _adapt() -> None:
    """Let loky's names mean ours, before its tests import them."""
    sys.modules["psutil"] = None  # with it they count the children of this process, of which slots are none
    import loky
    from loky import process_executor

    process_executor.ProcessPoolExecutor = _PatientExecutor
    process_executor.BrokenProcessPool = sky.TaskError
    process_executor.TerminatedWorkerError = sky.WorkerCrashed
    process_executor.ShutdownExecutorError = (sky.PoolNotActive, concurrent.futures.CancelledError)
    process_executor.LokyRecursionError = sky.NestedPool
    process_executor._RemoteTraceback = RemoteTraceback
    loky.get_reusable_executor = stand_ins.get_reusable_executor


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    select(config, items, lambda item: item.cls is not None and item.cls.__name__ in CLASSES)
    if os.environ["FOREIGN_BACKEND"] == "skyward":
        for item in items:
            if hasattr(item.cls, "context"):
                item.cls.context = SimpleNamespace(Event=_event, get_start_method=lambda: "loky")
        module = sys.modules[f"{PACKAGE}._test_process_executor"]
        module.check_subprocess_call = functools.partial(_check_subprocess_call, module.check_subprocess_call)
        module.time = SimpleNamespace(**{**vars(time), "sleep": _sleep})


class _PatientExecutor(stand_ins.ProcessPoolExecutor):
    def map(self, fn: Any, *iterables: Any, timeout: float | None = None, **options: Any) -> Any:
        """On a busy machine: they give two tasks that do nothing one second, before a third of five that must not."""
        return super().map(fn, *iterables, timeout=timeout and timeout * min(4.0, _patience()), **options)


def _sleep(seconds: float) -> None:
    """Longer than asked for on a busy machine: they wait 500 times 10 ms for a hundred tasks one after another."""
    time.sleep(seconds * _patience())


def _patience() -> float:
    return max(1.0, os.getloadavg()[0] / 2)


@functools.cache
def _manager() -> Any:
    return multiprocessing.Manager()


def _event() -> Any:
    """An event that any process can use, not only the children of this one."""
    return _manager().Event()


def _check_subprocess_call(theirs: Any, command: list[str], **options: Any) -> Any:
    """The same, except that the script imports our executor, and their tests by the name that they have here."""
    code = command[-1].replace("from loky.process_executor import", "from tests.foreign.stand_ins import")
    return theirs([*command[:-1], code.replace("from tests._", f"from {PACKAGE}._")], **options)
