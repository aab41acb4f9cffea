"""Facts of a pool are counted from any thread, cheaply, and told to any thread."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

import skyward as sky
from skyward.core import events as events_module
from skyward.core.events import Event, Events, NodeLoad, NodeReady, TaskEnded, TasksQueued
from skyward.core.facts import Facts
from skyward.core.status import PoolStatus, TaskCounts
from tests.lab import eventually


def test_counts_from_many_threads_add_up() -> None:
    facts = Facts()

    def work() -> None:
        for _ in range(2000):
            facts.handle(TasksQueued(1))
            facts.handle(TaskEnded(1, 0.5, True))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert facts.status().tasks == TaskCounts(done=16_000)
    assert facts.read(lambda tally, _: tally.busy_seconds) == 8000.0


def test_events_are_cheap() -> None:
    """20,000 a second must not be felt: well under 100 us each, even on a slow machine."""
    events, facts = Events(), Facts()
    events.subscribe(facts.handle, facts.kinds)
    began = time.process_time()
    for _ in range(20_000):
        events.emit(TasksQueued(1, "f"))
        events.emit(TaskEnded(1, 0.001, True, False, "node-1", 0, "f", None, 1.0, 500, 5))
    assert time.process_time() - began < 5.0


def test_each_kind_of_event_is_counted_or_is_nothing_to_count() -> None:
    uncounted = {"AtPrompt", "PoolReady", "Printed", "Note"}
    kinds = {name for name in events_module.__all__ if name not in ("Event", "Events", "Listener", "MachineInfo")}
    assert {kind.__name__ for kind in Facts.kinds} == kinds - uncounted


def test_tasks_at_nodes_are_asked_for_when_the_status_is() -> None:
    facts = Facts(lambda: {"node-1": 1, "gone": 5})
    for event in (NodeReady("node-1", 2), NodeReady("node-2", 2)):
        facts.handle(event)
    assert [node.busy for node in facts.status().nodes] == [1, 0]


def _wait(pid: Path, go: Path) -> None:
    pid.with_suffix(".part").write_text(str(os.getpid()))
    pid.with_suffix(".part").replace(pid)
    while not go.exists():
        time.sleep(0.01)


@pytest.mark.slow
def test_what_runs_is_told_until_it_ends(tmp_path: Path) -> None:
    """Also when it has to begin anew."""
    pid, go = tmp_path / "pid", tmp_path / "go"
    with sky.Compute(concurrency=2, console=False) as pool:
        assert pool.submit(abs, -1).result() == 1
        future = pool.submit(_wait, pid, go)
        for _ in range(2):
            eventually(lambda: pool.status().running and pid.exists(), 60)
            (task,) = pool.status().running
            assert (task.node, task.label, task.count) == ("node-1", "_wait", 1)
            assert task.slot in {0, 1}
            first = int(pid.read_text())
            pid.unlink()
            os.kill(first, signal.SIGKILL)
        eventually(lambda: "_wait" in str(pool.status()).partition("running longest")[2], 60, "it has run for a second")
        go.touch()
        future.result()
        eventually(lambda: pool.status().running == (), 60)
        assert "running longest" not in str(pool.status())


def _double(x: int) -> int:
    return 2 * x


def _fail(x: int) -> int:
    raise ValueError(f"no {x}\nand more")


@pytest.mark.slow
def test_a_pool_tells_what_it_does() -> None:
    """From listeners and other threads, too; and all ends agree."""
    pool = sky.Compute(nodes=2, concurrency=2, console=False)
    ended: list[TaskEnded] = []
    queued: list[TasksQueued] = []
    within: list[PoolStatus] = []

    def listen(event: Event) -> None:
        if isinstance(event, TaskEnded):
            ended.append(event)
            within.append(pool.status())
        elif isinstance(event, TasksQueued):
            queued.append(event)

    pool.events.subscribe(listen)
    with pool:
        before = time.monotonic()
        assert list(pool.map(_double, range(20))) == list(range(0, 40, 2))
        assert list(pool.map(_double, range(20), chunksize=10)) == list(range(0, 40, 2))
        assert isinstance(pool.submit(_fail, 3).exception(), ValueError)
        eventually(lambda: len(ended) == 23, 60)
        after = time.monotonic()
        status = pool.status()
        assert str(status.tasks) == "40 done, 1 failed"
        assert [(each.label, each.done, each.failed) for each in status.functions] == [
            ("_double", 40, 0),
            ("_fail", 0, 1),
        ]
        assert sum(node.done for node in status.nodes) == 40
        assert [(node.name, node.state, node.slots, node.price) for node in status.nodes] == [
            ("node-1", "ready", 2, 0.0),
            ("node-2", "ready", 2, 0.0),
        ]
        assert (status.left, status.slots, status.cost) == (0, 4, 0)
        assert {len(each.nodes) for each in within} == {2}
        eventually(lambda: all(node.load is not None for node in pool.status().nodes), 60)
        load = pool.status().nodes[0].load
        assert isinstance(load, NodeLoad)
        assert load.cores
        assert "_double" in str(pool.status())
    assert {(event.label, event.count) for event in queued} == {("_double", 1), ("_double", 10), ("_fail", 1)}
    assert all(before <= (event.started or 0) <= after for event in ended)
    assert {event.slot for event in ended} <= {0, 1}
    assert {event.node for event in ended} <= {"node-1", "node-2"}
    (failed,) = [event for event in ended if not event.ok]
    assert failed.error == "ValueError: no 3"
    assert isinstance(failed.exception, ValueError)
    assert (failed.sent > 0, failed.received > 0) == (True, True)
