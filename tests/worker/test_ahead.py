"""Tasks that slots hold ahead: they run once, in whatever slot is free, whatever happens to the task before them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from skyward.core.protocol.messages import Cancel, Failure, Recall
from tests.worker.helpers import Owner, owner

MANY = 200


def note(folder: str, name: int) -> int:
    """Record each run in a file, and return the pid."""
    with Path(folder, str(name)).open("a") as file:
        file.write("x")
    return os.getpid()


def learn(node: Owner) -> None:
    """Let the agent learn that tasks are short."""
    for task in [node.submit(abs, -1) for _ in range(50)]:
        node.result(task)


def wait_for_file(path: str) -> None:
    while not Path(path).exists():
        time.sleep(0.002)


@pytest.mark.slow
def test_what_lies_behind_a_long_task_runs_elsewhere(node: Owner, tmp_path: Path) -> None:
    learn(node)
    gate = tmp_path / "gate"
    tasks = []
    for index in range(MANY):
        if index == MANY // 2:
            long = node.submit(wait_for_file, str(gate))
        tasks.append(node.submit(note, str(tmp_path), index))
    pids = {node.result(task) for task in tasks}  # all of them, while the long one holds its slot
    assert len(pids) <= 2
    assert long not in node.answers
    gate.touch()
    node.result(long)
    assert [(tmp_path / str(index)).read_text() for index in range(MANY)] == ["x"] * MANY


@pytest.mark.slow
@pytest.mark.parametrize("at", [0, 1, 57, MANY - 1])
def test_a_death_takes_only_its_own_task(node: Owner, tmp_path: Path, at: int) -> None:
    learn(node)
    tasks = []
    for index in range(MANY):
        if index == at:
            fatal = node.submit(os._exit, 3)
        tasks.append(node.submit(note, str(tmp_path), index))
    for task in tasks:
        node.result(task)
    failed = node.failed(fatal)
    assert failed.reason == Failure.CRASHED.value
    assert "3" in failed.detail
    assert [(tmp_path / str(index)).read_text() for index in range(MANY)] == ["x"] * MANY


def test_a_limit_counts_from_the_tasks_beginning(tmp_path: Path) -> None:
    with owner() as node:
        node.set_up(concurrency=1)
        learn(node)
        late = node.submit(time.sleep, 60, timeout=0.2)
        tasks = [node.submit(note, str(tmp_path), index, timeout=5.0) for index in range(20)]
        for task in tasks:
            node.result(task)
        assert node.failed(late).reason == Failure.TIMEOUT.value


def test_a_task_that_lies_ahead_can_be_cancelled(tmp_path: Path) -> None:
    with owner() as node:
        node.set_up(concurrency=1)
        learn(node)
        gate = tmp_path / "gate"
        long = node.submit(wait_for_file, str(gate))
        tasks = [node.submit(note, str(tmp_path), index) for index in range(20)]
        for task in tasks[::2]:
            node.send(Cancel(task))
        assert {node.failed(task).reason for task in tasks[::2]} == {Failure.CANCELLED.value}
        gate.touch()
        node.result(long)
        for task in tasks[1::2]:
            node.result(task)
        assert sorted(int(path.name) for path in tmp_path.glob("[0-9]*")) == list(range(1, 20, 2))


def test_what_has_not_begun_is_returned_and_may_be_sent_again(tmp_path: Path) -> None:
    with owner() as node:
        node.set_up(concurrency=1)
        learn(node)
        gate = tmp_path / "gate"
        long = node.submit(wait_for_file, str(gate))
        tasks = [node.submit(note, str(tmp_path), index) for index in range(20)]
        while not any(node.returned):  # what begins soon stays: it takes a moment to see that the first one is long
            node.returned.clear()
            node.send(Recall(5, 0.0))
            node.until(lambda: node.returned, "Returned")
        assert node.returned == [tasks[:-6:-1]]
        gate.touch()
        node.result(long)
        for task in tasks[:15]:
            node.result(task)
        assert not set(tasks[15:]) & set(node.answers)
        node.send(Recall(5, 0.0))
        node.until(lambda: len(node.returned) == 2, "Returned")
        assert node.returned[1] == []
        assert sorted(int(path.name) for path in tmp_path.glob("[0-9]*")) == list(range(15))


def test_what_begins_soon_is_kept(tmp_path: Path) -> None:
    with owner() as node:
        node.set_up(concurrency=1)
        for task in [node.submit(time.sleep, 0.01) for _ in range(10)]:
            node.result(task)
        tasks = [node.submit(time.sleep, 0.01) for _ in range(10)]
        node.send(Recall(10, 0.05))
        node.until(lambda: node.returned, "Returned")
        assert 1 <= len(node.returned[0]) <= 6
        for task in tasks[: -len(node.returned[0])]:
            node.result(task)
