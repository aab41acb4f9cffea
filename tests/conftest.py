"""Fixtures for all tests: real hosts, and a watch over what a test leaves behind."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import re
import signal
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

import pytest

import tests.examples  # noqa: F401 (the profiles of hypothesis)
from tests.processes import comm, descendants

pytest_plugins = ["tests.lab.fixtures"]

# Children would inherit what a shell's background jobs, and nohup, ignore.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Inherited from the shipped suites, which know nothing of our marks.
_SLOW = {
    "test_a_channel_that_is_not_read_does_not_hold_up_another",
    "test_concurrent_queries_do_not_mix",
    "test_fifty_megabytes_go_both_ways_at_once",
}

_MARKS = re.compile(r"^pytestmark = (?:\[.*?\n\]|[^\n]*)", re.MULTILINE | re.DOTALL)  # those of all tests in a file

_GRACE = 5.0  # seconds that threads and processes which are ending may take


_LONG = tuple(
    os.path.join(os.path.dirname(__file__), name)
    for name in ("providers/", "foreign/", "soak/", "simulation/", "test_remote", "test_benchmarks", "test_contrib")
)
_ONCE = ("test_contrib.py",)
_READERS = ("test_docs.py", "test_layers.py", "test_rules.py")  # of all sources, which take a second to parse


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A file whose tests are all left out by ``-m "not ..."`` is not even imported: some import for a second."""
    left_out = config.option.markexpr.split(" and ")
    if collection_path.suffix == ".py" and all(part.startswith("not ") for part in left_out):
        marks = _MARKS.search(collection_path.read_text(encoding="utf-8"))
        found = re.findall(r"pytest\.mark\.(\w+)", marks[0]) if marks else ()
        return any(f"not {mark}" in left_out for mark in found) or None
    return None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Nothing that is made meanwhile is garbage: to look for it takes a tenth of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.name in _SLOW:
            item.add_marker("slow")
        if re.search(r"\bat 0x", item.name, re.IGNORECASE):
            raise pytest.UsageError(f"{item.nodeid} has an address in its name, which differs in each process")
    if (workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:
        items[:] = _dealt(items, workers)


def pytest_collection_finish() -> None:
    """What is imported by now stays: the garbage collector need not look at it in each test again, nor once."""
    gc.freeze()


def _dealt(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """Each worker of xdist gets its part of those that take minutes, first: else one is left alone with them."""
    is_long = [str(item.path).startswith(_LONG) for item in items]
    reads = [item.path.name in _READERS for item in items]
    long = list(_together(item for item, takes in zip(items, is_long, strict=True) if takes))
    long.append([item for item, does in zip(items, reads, strict=True) if does])
    rest = [item for item, *others in zip(items, is_long, reads, strict=True) if not any(others)]
    bounds = [len(rest) * worker // workers for worker in range(workers + 1)]
    return [
        item
        for worker in range(workers)
        for item in (*itertools.chain(*long[worker::workers]), *rest[bounds[worker] : bounds[worker + 1]])
    ]


def _together(items: Iterable[pytest.Item]) -> Iterator[list[pytest.Item]]:
    """Each by itself, but for those of a file whose fixtures take longer than its tests."""
    for _, group in itertools.groupby(items, lambda item: item.path.name if item.path.name in _ONCE else item.nodeid):
        yield list(group)


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """A test fails when threads of skyward or agents on this machine outlive it."""
    assert Path(f"/proc/self/task/{os.getpid()}/children").exists(), "this kernel does not list children"
    before, agents = _threads(), _agents()
    yield
    end = time.monotonic() + _GRACE
    while left := sorted((_threads() - before) | (_agents() - agents)):
        if time.monotonic() > end:
            pytest.fail(f"left behind: {left}")
        time.sleep(0.01)


@pytest.fixture(scope="session", autouse=True)
def _no_reaper_outlives_us(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """End those whose cloud ended with its test before they had seen twice that nothing is left there."""
    ours = f"\0SKYWARD_STATE={tmp_path_factory.getbasetemp()}/".encode()
    yield
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (
                b"skyward.core.machines.reaper" in (entry / "cmdline").read_bytes()
                and ours in (entry / "environ").read_bytes()
            ):
                os.kill(int(entry.name), signal.SIGKILL)


def _threads() -> set[str]:
    """The I/O threads: one for each pool that is open (a pool that a fixture holds open may make others)."""
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("skyward-io-")}


def _agents() -> set[str]:
    """Workers that are descendants of this process, as text."""
    found = set()
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):  # it has just ended
            # Fork servers and slots, which come and go, have the same command line; a zombie has none.
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if command and comm(pid) == "skyward-agent":
                found.add(f"process {pid}: {command.strip()}")
    return found
