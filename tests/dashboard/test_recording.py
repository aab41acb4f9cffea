"""What is recorded of a pool, and that it stays bounded whatever a pool does."""

from __future__ import annotations

import gc
import weakref

import pytest

from skyward.core.events import MachineInfo, NodeGone, NodeLoad, NodeReady, Note, Printed, TaskEnded
from skyward.core.status import FunctionStatus, NodeStatus, PoolStatus
from skyward.dashboard.recording import MAX_LABELS, OTHER, Bins, Recording


def ended(
    node: str = "a", slot: int = 0, at: float = 1.0, seconds: float = 0.5, label: str = "f", error: str | None = None
) -> TaskEnded:
    return TaskEnded(1, seconds, error is None, node=node, slot=slot, label=label, error=error, started=at)


def test_each_slot_has_a_row() -> None:
    recording = Recording(100.0)
    recording.handle(NodeReady("a", 2), 100.5)
    recording.handle(ended("a", 1, 101.0), 101.5)
    recording.handle(ended("b", 0, 101.2), 101.7)
    recording.digest(102.0)
    assert [(use[0].name, use[1]) for use in recording.rows if use] == [("a", 0), ("a", 1), ("b", 0)]
    assert [(b.row, b.start, int(b.end)) for b in recording.blocks] == [(1, 1000, 1500), (2, 1200, 1700)]
    assert recording.nodes["a"].since == 500


def test_a_task_that_ran_nowhere_is_not_drawn() -> None:
    recording = Recording(0.0)
    recording.handle(TaskEnded(1, 0.0, ok=False, cancelled=True), 1.0)
    recording.handle(TaskEnded(1, 0.0, ok=False, label="f", error="NodeLost: gone"), 1.0)
    recording.digest(2.0)
    assert len(recording.blocks) == 0
    assert [(kind.error, kind.count) for kind in recording.failures.values()] == [("NodeLost", 1)]


def test_slots_beyond_the_limit_are_counted_and_nodes_that_are_gone_make_room() -> None:
    recording = Recording(0.0, max_rows=4)
    for name in ("a", "b"):
        recording.handle(NodeReady(name, 2), 0.0)
    recording.digest(0.0)
    recording.handle(NodeReady("c", 2), 1.0)
    recording.digest(1.0)
    assert recording.undrawn == 2
    recording.handle(ended("c"), 1.5)
    recording.digest(1.5)
    assert len(recording.blocks) == 0
    recording.handle(NodeGone("a", "unplugged"), 2.0)
    recording.handle(NodeReady("d", 2), 3.0)
    recording.handle(ended("d", 1, 3.0), 3.5)
    recording.digest(4.0)
    assert "a" not in recording.nodes
    assert sorted(use[0].name for use in recording.rows if use) == ["b", "b", "d", "d"]
    assert [b.row for b in recording.blocks] == [recording.nodes["d"].rows[1]]


@pytest.mark.slow
def test_nodes_that_come_and_go_for_weeks_are_forgotten() -> None:
    recording = Recording(0.0)
    for number in range(8_000):
        recording.handle(NodeReady(f"node-{number}", 1), number)
        recording.handle(ended(f"node-{number}", 0, number), number)
        recording.handle(NodeGone(f"node-{number}", "preempted"), number + 0.9)
        if number % 100 == 0:
            recording.digest(number)
    recording.digest(8_000)
    assert len(recording.nodes) <= 5001
    assert max(node.number for node in recording.nodes.values()) <= 5101, "numbers are used again"
    assert len(recording.log) == 1000


def test_failures_are_grouped_and_bounded_with_the_first_that_differ() -> None:
    recording = Recording(0.0)
    for number in range(500):
        recording.handle(ended(error=f"ValueError: bad {number}"), number)
        recording.handle(ended(label=f"g{number}", error="KeyError: 3"), number)
    recording.digest(500)
    kind = recording.failures["f", "ValueError"]
    assert kind.count == 500
    assert [each[3] for each in kind.examples] == [f"ValueError: bad {number}" for number in range(5)]
    assert len(recording.failures) <= 101
    assert recording.failures[OTHER, "errors of other kinds"].count == 500 - 99


class Bulky(Exception):
    pass


def test_exceptions_are_not_kept_but_some_tracebacks_are() -> None:
    recording = Recording(0.0)
    watched = []
    for _ in range(20):
        try:
            raise Bulky("too much")
        except Bulky as error:
            watched.append(weakref.ref(error))
            event = TaskEnded(
                1, 0.1, ok=False, node="a", slot=0, label="f", error="Bulky: too much", started=0.0, exception=error
            )
            recording.handle(event, 0.5)
            del event, error
    gc.collect()
    assert [each() for each in watched] == [None] * 20
    recording.digest(1.0)
    (example,) = recording.failures["f", "Bulky"].examples
    assert "test_recording.py" in example[4]
    assert example[4].endswith("Bulky: too much\n")


def test_a_huge_traceback_is_cut_in_the_middle() -> None:
    recording = Recording(0.0)
    event = TaskEnded(1, 0.1, ok=False, label="f", error="ValueError: x", exception=ValueError("x" * 10**6))
    recording.handle(event, 0.0)
    recording.digest(0.0)
    text = recording.failures["f", "ValueError"].examples[0][4]
    assert len(text) < 13_000
    assert "[...]" in text


def test_output_and_messages_are_bounded_and_made_visible() -> None:
    recording = Recording(0.0)
    for number in range(3000):
        recording.handle(Printed("a", 1 + number % 2, f"{number}\x1b]0;title\x07 \x1b[31mred\n" + "x" * 1500), 1.0)
        if number % 100 == 99 and number < 2900:
            recording.digest(1.0)
    recording.handle(Note("hello\x1b[2J", warning=True), 2.0)
    recording.digest(2.0)
    assert len(recording.lines) == 1000
    assert recording.lines[0].text.startswith("2000 \x1b[31mred")
    assert len(recording.lines[0].text) < 1010
    assert recording.lines_seen == 3000
    assert (recording.log[0].kind, recording.log[0].text) == ("warning", r"hello\x1b[2J")


def test_functions_beyond_the_limit_are_one() -> None:
    recording = Recording(0.0)
    for number in range(3 * MAX_LABELS):
        recording.handle(ended(label=f"f{number}", at=float(number)), number)
    recording.digest(1000.0)
    assert len(recording.labels) == MAX_LABELS + 1
    assert recording.labels[-1] == OTHER


def test_a_status_tells_of_idle_slots_and_of_functions_in_their_order() -> None:
    recording = Recording(0.0)
    info = MachineInfo("aws", "c7i", 0.5)
    node = NodeStatus("a", 3, done=7, provider="aws", type="c7i", price=0.5)
    recording.meet(PoolStatus("p", nodes=(node,), functions=(FunctionStatus("g"), FunctionStatus("f"))))
    recording.handle(ended(label="f"), 1.0)
    recording.digest(1.0)
    assert recording.labels == ["g", "f"]
    assert len(recording.rows) == 3
    assert recording.nodes["a"].info == info
    assert recording.nodes["a"].done == 8, "what was done before the recording counts"


def test_a_node_keeps_the_course_of_its_load() -> None:
    recording = Recording(0.0)
    for second in range(500):
        recording.handle(NodeLoad("a", 0.5, 4, 250, 1000, 10**9), second)
    recording.handle(NodeLoad("a"), 500.0)
    recording.digest(500.0)
    loads = recording.nodes["a"].loads
    assert (len(loads), loads[-2], loads[-1]) == (60, (499_000, 50, 25), (500_000, None, None))


def test_throughput_is_of_the_seconds_in_which_tasks_ended_however_late_that_is_heard() -> None:
    recording = Recording(0.0)
    for number in range(40):
        error = "E: 1" if number == 5 else None
        recording.handle(ended(at=number / 10, seconds=0.1, error=error), 9.0)
    recording.handle(TaskEnded(1, 0.3, ok=False, cancelled=True, node="a", slot=0, started=1.0), 9.0)
    recording.digest(9.0)
    assert (recording.bins.done[:5], recording.bins.failed[:2]) == ([8, 10, 10, 10, 1], [1, 0])
    assert (recording.nodes["a"].done, recording.nodes["a"].failed) == (39, 1)


def test_bins_become_wider_and_lose_nothing() -> None:
    bins = Bins(max_bins=10)
    for second in range(95):
        bins.add(second * 1000, 2, 1)
    assert (len(bins.done), bins.width) == (6, 16_000)
    assert (sum(bins.done), sum(bins.failed)) == (190, 95)
