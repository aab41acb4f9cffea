"""Calls wait for what their node lacks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from skyward.core.errors import PackagesFailed
from skyward.core.events import Events, Note
from skyward.core.packages.lists import PackageLists
from skyward.core.protocol.messages import Failed, Failure
from skyward.core.tasks.futures import TaskFuture
from skyward.core.tasks.jobs import Job, TaskGroup, TaskOptions
from skyward.core.tasks.late_packages import LatePackages
from skyward.core.tasks.schedule_events import Event, Finished, Outcome, Run

LISTS = PackageLists(("pandas==3.0", "six==1.0"))


class Environment:
    """A driver with one package that can be sent."""

    def late(self, module: str) -> PackageLists | None:
        return LISTS if module == "pandas" else None


class Node:
    """A node whose installer waits for a word, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.node = "node-1"
        self.error = error
        self.word = asyncio.Event()
        self.installed: list[PackageLists] = []

    async def supply(self, lists: PackageLists) -> None:
        await self.word.wait()
        if self.error is not None:
            raise self.error
        self.installed.append(lists)


class Bench:
    """What the runner does, noted."""

    def __init__(self, error: Exception | None = None) -> None:
        self.node = Node(error)
        self.runs: list[Run] = []
        self.ends: list[Event] = []
        self.notes: list[str] = []
        events = Events()
        events.subscribe(lambda event: self.notes.append(event.text) if isinstance(event, Note) else None)
        self.late = LatePackages(Environment(), events, self.runs.append, self.ends.append)

    def fails(self, job: Job, module: str = "pandas", reason: Failure = Failure.UNLOADABLE) -> bool:
        return self.late.takes(self.node, job, Failed(job.id, 0.0, reason.value, "", module))  # type: ignore[arg-type]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110 - conditions of several kinds, none of which is an event
                await asyncio.sleep(0.001)


def job(number: int) -> Job:
    return Job(number, "f", TaskFuture(lambda _: None, number), TaskOptions(), TaskGroup(), None, [], {}, node="node-1")


def check(work: Callable[[], Awaitable[Any]]) -> None:
    asyncio.run(work())  # type: ignore[arg-type]


def test_calls_run_once_the_package_is_there() -> None:
    """It is installed once, also for calls that fail meanwhile, or that were sent before and fail afterwards."""

    async def work() -> None:
        bench = Bench()
        assert bench.fails(job(1))
        assert bench.fails(job(2))
        assert bench.runs == []
        bench.node.word.set()
        await bench.until(lambda: len(bench.runs) == 2)
        assert bench.fails(job(3))
        await bench.until(lambda: len(bench.runs) == 3)
        assert bench.runs == [Run("node-1", number, alone=False) for number in (1, 2, 3)]
        assert bench.node.installed == [LISTS]
        assert bench.notes == ["installing pandas==3.0, six==1.0 on node-1: a task needs pandas"]

    check(work)


def test_a_call_that_fails_again_has_failed() -> None:
    """The package did not help."""

    async def work() -> None:
        bench, one = Bench(), job(1)
        bench.node.word.set()
        assert bench.fails(one)
        await bench.until(lambda: bench.runs)
        assert not bench.fails(one)

    check(work)


def test_what_can_not_be_supplied_fails() -> None:
    """Modules that no package of the driver's has; those that are missing inside a task, which has begun."""

    async def work() -> None:
        bench = Bench()
        assert bench.fails(job(1), "unknown")
        await bench.until(lambda: bench.ends)
        assert bench.ends == [Finished(1, "node-1", Outcome.ANSWERED)]
        assert not bench.fails(job(2), "unknown")
        assert not bench.fails(job(3), "pandas", Failure.RAISED)
        assert not bench.fails(job(4), "")
        assert bench.notes == []

    check(work)


def test_what_can_not_be_installed_fails_with_the_reason() -> None:
    """Beside the advice that the call's own error has."""

    async def work() -> None:
        bench, one, two = Bench(PackagesFailed("no such wheel")), job(1), job(2)
        bench.node.word.set()
        assert bench.fails(one)
        await bench.until(lambda: bench.ends)
        assert not bench.fails(two)
        assert one.note == two.note == "installing it on node-1 failed: no such wheel"

    check(work)


def test_what_nobody_has_foreseen_fails_too(caplog: pytest.LogCaptureFixture) -> None:
    """Its traceback is in the log."""

    async def work() -> None:
        bench, one = Bench(KeyError("index")), job(1)
        bench.node.word.set()
        assert bench.fails(one)
        await bench.until(lambda: bench.ends)
        assert one.note == "installing it on node-1 failed: KeyError: 'index'"
        assert "in supply" in caplog.text

    check(work)


def test_a_call_that_is_stopped_while_it_waits_is_over() -> None:
    """The node does not have it, so nobody else would answer."""

    async def work() -> None:
        bench, one = Bench(), job(1)
        assert bench.fails(one)
        assert bench.late.holds(one)
        assert bench.late.stop(one)
        assert bench.ends == [Finished(1, "node-1", Outcome.STOPPED)]
        assert not bench.late.stop(one)
        bench.node.word.set()
        await bench.until(lambda: bench.node.installed)
        assert bench.runs == []

    check(work)


def test_a_lost_nodes_calls_are_forgotten() -> None:
    """The schedule runs them elsewhere; what comes later for them changes nothing."""

    async def work() -> None:
        bench, one = Bench(), job(1)
        assert bench.fails(one)
        bench.late.node_down("node-1")
        assert not bench.late.holds(one)
        bench.node.word.set()
        await bench.until(lambda: bench.node.installed)
        await asyncio.sleep(0)
        assert (bench.runs, bench.ends) == ([], [])

    check(work)
