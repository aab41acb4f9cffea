"""CPython's own tests of `concurrent.futures`, of the running version, with `sky.Compute` as both of its executors.

Many installations lack `test.test_concurrent_futures`; Debian has it as a package, which can be unpacked anywhere.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import types
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest
import test
from test.support.script_helper import assert_python_ok

import skyward as sky
from skyward.core.payload.exceptions import RemoteTraceback
from tests.foreign import stand_ins
from tests.foreign.runner import BUILD, ROOT, Suite, select

NAME = "test_concurrent_futures"
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"

_LATER = "slots are started before the first task, and go on for any number of them"
_SHARED = "the test's own objects are changed by what runs, and ours runs in another process"
_PREFIX = "what tasks print has the name of their node before it"
_WORDS = "the same error with other words"
FAILS = {
    "*FailingInitializerTest::*": "a pool has no initializer: the stand-in's raises in each task, and breaks nothing",
    "*::test_cancel_futures_wait_false": _PREFIX,
    "*::test_hang_gh83386": _PREFIX,
    "*::test_interpreter_shutdown": _PREFIX,
    "*::test_submit_after_interpreter_shutdown": _WORDS,
    "*::test_thread_names_*": "threads that are slots have no names of their own",
    "*::test_threads_terminate": "counts the threads of an executor; slots are elsewhere",
    "*::test_processes_terminate": _LATER,
    "*::test_default_workers": "the number of workers is the stand-in's choice",
    "*::test_executor_map_current_future_cancel": _SHARED,
    "*::test_map_submits_without_iteration": _SHARED,
    "*::test_max_workers_negative": _WORDS,
    "*ThreadPoolExecutorTest::test_saturation": _LATER,
    "*::test_idle_process_reuse_*": _LATER,
    "*::test_killed_child": "the process that is killed has no task; in a pool its death is nobody's, nor the pool's",
    "*::test_max_tasks_per_child*": _LATER,
    "*::test_traceback": "the cause's text is in another attribute, which is private in the standard library",
    "*::test_gh105829_*": "replaces an inner part of the standard library's executor",
    "*::test_python_finalization_error": "breaks how the standard library starts processes; ours have started",
    "*::test_exit_during_result_pickle_on_worker": "PayloadError names the object that raised, whatever it raised",
}

PART = (
    "*DeadlockTest::*",
    "*ProcessPoolShutdownTest::*",
    "*::test_free_reference",
    "*::test_ressources_gced_in_workers",
)


def find() -> Path | None:
    """The module's file or the package's folder, or None where it can't be had."""
    for path in (Path(test.__file__).parent / NAME, Path(test.__file__).parent / f"{NAME}.py", _unpacked()):
        if path.exists():
            return path
    return _download()


def _unpacked() -> Path:
    return BUILD / f"cpython-{VERSION}" / f"usr/lib/python{VERSION}/test/{NAME}.py"


def _download() -> Path | None:
    """Only files that are no package: Python finds no package that lies apart from the package around it."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return None
    folder = BUILD / f"cpython-{VERSION}"
    folder.mkdir(parents=True, exist_ok=True)
    command = ["apt-get", "download", "-qq", f"libpython{VERSION}-testsuite"]
    subprocess.run(command, cwd=folder, check=False, capture_output=True, timeout=120)
    for found in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", found, folder], check=True, timeout=60)
    return _unpacked() if _unpacked().exists() else None


def suite() -> Suite | None:
    """None where the tests can't be had."""
    path = find()
    if path is None:
        return None
    tests = [str(path)] if path.suffix else sorted(map(str, path.glob("test_*.py")))
    return Suite("tests.foreign.cpython_suite", tests, FAILS, PART, least=20)


# --- the plugin ---


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    select(config, items, _is_about_executors)
    for item in items:
        threads = item.cls.__name__.startswith("ThreadPool")
        item.cls.executor_type = stand_ins.ThreadPoolExecutor if threads else stand_ins.ProcessPoolExecutor
    for module in {item.module for item in items}:
        _adapt(module)


def _is_about_executors(item: pytest.Item) -> bool:
    """Three ways to start processes are one to us, and futures without an executor are not ours."""
    name = item.cls.__name__ if item.cls is not None else ""
    return name.startswith(("ThreadPool", "ProcessPoolForkserver"))


def _adapt(module: Any) -> None:
    """Let the names that its tests use mean ours."""
    values = {name: getattr(futures, name) for name in futures.__all__}
    values |= {name: getattr(stand_ins, name) for name in ("ProcessPoolExecutor", "ThreadPoolExecutor")}
    values["process"] = types.SimpleNamespace(_RemoteTraceback=RemoteTraceback)
    ours = {
        "futures": types.SimpleNamespace(**values),
        "assert_python_ok": functools.partial(_assert_python_ok, module.__name__),
        "BrokenProcessPool": sky.TaskError,
        "BrokenExecutor": sky.TaskError,
    }
    for name in ours.keys() & vars(module).keys():
        setattr(module, name, ours[name])


def _assert_python_ok(module: str, *arguments: str) -> Any:
    """The same, except that the script imports our executors, and finds this module wherever it lies."""
    option, code = arguments
    code = re.sub("from concurrent.futures import", "from tests.foreign.stand_ins import", code)
    code = re.sub(rf"from test\.{NAME}\S* import", f"from {module} import", code)
    path = [str(ROOT), str(Path(sys.modules[module].__file__ or "").parent)]
    return assert_python_ok(option, code, PYTHONPATH=os.pathsep.join(path))
