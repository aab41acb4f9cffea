"""Tasks of unequal sizes: each ends, in whatever order bytes arrive, and what happens to one does not affect others."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from skyward.core.protocol.messages import Began, Cancel, Done, Failure, Inquire, Missing
from tests.worker.helpers import Owner, began, owner
from tests.worker.test_ahead import learn, wait_for_file

SIZES = (600_000, 100_000, 33_000, 10, 400_000, 200_000)


def length(data: bytes) -> int:
    return len(data)


def hang(_: bytes = b"") -> None:
    time.sleep(60)


def quit_later(gate: str) -> None:
    """Return, and take the whole process along while, or a moment after, another task runs."""
    import threading

    def wait() -> None:
        while not Path(gate).exists():
            time.sleep(0.001)
        time.sleep(0.02)
        os._exit(3)

    threading.Thread(target=wait, daemon=True).start()


def open_gate(gate: str) -> None:
    Path(gate).touch()
    time.sleep(0.04)


def missing(node: Owner, tasks: list[int]) -> list[int]:
    """Ask the node which of these tasks it lacks."""
    node.order.clear()
    node.send(Inquire(tasks))
    answer = node.until(
        lambda: next((r.message for r in node.order if isinstance(r.message, Missing)), None), "Missing"
    )
    assert isinstance(answer, Missing)
    return answer.tasks


@pytest.mark.slow
def test_tasks_of_unequal_sizes_all_end(node: Owner) -> None:
    learn(node)
    tasks = [node.submit(length, bytes(SIZES[index % len(SIZES)])) for index in range(300)]
    assert [node.result(task) for task in tasks] == [SIZES[index % len(SIZES)] for index in range(300)]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["limit", "cancel"])
def test_a_small_task_behind_a_large_one_is_stopped_and_the_large_one_is_not(how: str) -> None:
    with owner() as node:
        node.set_up(concurrency=1)
        learn(node)
        for _ in range(3):
            first = node.submit(time.sleep, 0.05)  # both that follow arrive meanwhile
            large = node.submit(length, bytes(8_000_000), timeout=15.0)  # which is enough on a busy machine
            small = node.submit(hang, timeout=1.0 if how == "limit" else None)
            assert node.result(large) == 8_000_000
            if how == "cancel":
                node.until(lambda task=small: began(node, task), "Began")
                node.send(Cancel(small))
            assert node.failed(small).reason == (Failure.TIMEOUT if how == "limit" else Failure.CANCELLED).value
            node.result(first)


@pytest.mark.slow
def test_a_death_is_not_charged_to_what_never_began(tmp_path: Path) -> None:
    """A process that ends itself: at most the task that ran is failed, and those behind run in the next process."""
    with owner() as node:
        node.set_up(concurrency=1)
        learn(node)
        for turn in range(5):
            gate = str(tmp_path / f"gate-{turn}")
            tasks = [node.submit(quit_later, gate), *(node.submit(open_gate, gate) for _ in range(4))]
            answers = [node.answer(task).message for task in tasks]
            crashed = [answer for answer in answers[1:] if not isinstance(answer, Done)]
            assert isinstance(answers[0], Done)
            assert len(crashed) <= 1, "only the one that ran at that moment"


def test_a_cancel_may_spare_what_has_begun(tmp_path: Path) -> None:
    with owner() as node:
        node.set_up(concurrency=1)
        learn(node)
        gate = tmp_path / "gate"
        running, waiting = node.submit(wait_for_file, str(gate)), node.submit(hang)
        node.until(lambda: began(node, running), "Began")
        node.send(Cancel(running, running=False))
        node.send(Cancel(waiting, running=False))
        assert node.failed(waiting).reason == Failure.CANCELLED.value
        assert running not in node.answers
        gate.touch()
        node.result(running)
        assert node.call(pow, 2, 3) == 8


@pytest.mark.slow
def test_the_owner_hears_what_has_begun_unless_it_was_short(both: Owner, tmp_path: Path) -> None:
    for _ in range(50):
        both.call(pow, 2, 2)
    gate = tmp_path / "gate"
    long = both.submit(wait_for_file, str(gate))
    both.until(lambda: began(both, long), "Began")
    assert long not in both.answers
    gate.touch()
    both.result(long)
    begun = [task for received in both.order if isinstance(received.message, Began) for task in received.message.tasks]
    assert len(begun) == len(set(begun))


@pytest.mark.slow
def test_a_node_knows_what_it_has_and_which_answers_may_not_have_arrived(both: Owner) -> None:
    both.acks = False  # nothing is acknowledged: the owner might not have got it
    done, running = both.submit(pow, 2, 2), both.submit(time.sleep, 1.0)
    both.result(done)
    assert missing(both, [done, running, 7777]) == [7777]
    both.result(running)


@pytest.mark.slow
@pytest.mark.parametrize("isolated", [True, False])
def test_a_slot_that_has_lost_its_task_is_detected(tmp_path: Path, isolated: bool) -> None:
    """Plant a fault: the slot drops every task with this argument as if it had been reclaimed."""
    (tmp_path / "plant.py").write_text(
        "import contextlib\n"
        "from skyward.worker.slot import Slot\n"
        "@contextlib.contextmanager\n"
        "def fault():\n"
        "    answer = Slot.answer\n"
        "    def lose(slot, run, buffers, *seat):\n"
        "        if b'lose me' not in bytes(buffers[0]):\n"
        "            answer(slot, run, buffers, *seat)\n"
        "    Slot.answer = lose\n"
        "    yield\n"
    )
    with owner() as node:
        node.set_up(concurrency=2, isolated=isolated, path=[str(tmp_path)], around=["plant:fault"])
        node.isolated = isolated
        lost = node.submit(length, b"lose me")
        assert node.call(length, b"keep me") == 7
        failed = node.failed(lost)
        assert failed.reason == Failure.CRASHED.value
        assert "neither ran nor answered" in failed.detail
        assert node.call(length, b"keep me") == 7
