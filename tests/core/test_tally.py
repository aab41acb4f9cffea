"""What a pool's events add up to: tasks, slots, rates, money, and when it will end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.core.billing import Billing
from skyward.core.events import (
    Event,
    MachineEnded,
    MachineInfo,
    MachineMade,
    Machines,
    NodeBegun,
    NodeGone,
    NodeLoad,
    NodeReady,
    NodeStep,
    PoolClosed,
    PoolDraining,
    PoolReady,
    PoolStarted,
    TaskEnded,
    TasksQueued,
    Transferred,
)
from skyward.core.gpus import Gpu
from skyward.core.status import FunctionStatus, PoolStatus, TaskCounts
from skyward.core.tally import MAX_FUNCTIONS, OTHER, Tally


def tally(*timed: tuple[float, Event]) -> Tally:
    counted = Tally()
    for now, event in timed:
        counted.add(event, now)
    return counted


# --- the summary's figures ---


def test_a_full_run_is_wholly_efficient() -> None:
    """Two slots, four tasks of 5 s, no gap: 20 slot-seconds of 20."""
    counted = tally(
        (0, PoolStarted("p", "local", 1, 2)),
        (1, NodeReady("node-1", 2)),
        *[(10, TasksQueued(1)) for _ in range(4)],
        (15, TaskEnded(1, 5, True)),
        (15, TaskEnded(1, 5, True)),
        (20, TaskEnded(1, 5, True)),
        (20, TaskEnded(1, 5, True)),
    )
    assert counted.wall == 10
    assert counted.throughput == 0.4
    assert counted.efficiency == 1.0
    assert (counted.done, counted.queued, counted.failed, counted.busy) == (4, 4, 0, 0)


def test_wall_counts_from_the_first_queued_to_the_last_ended() -> None:
    """Neither the start of the pool nor its end is in it; what lies between two batches is."""
    counted = tally(
        (0, PoolStarted("p", "local", 1, 1)),
        (30, NodeReady("node-1", 1)),
        (100, TasksQueued(1)),
        (101, TaskEnded(1, 1, True)),
        (103, TasksQueued(1)),
        (104, TaskEnded(1, 1, True)),
        (200, NodeGone("node-1", None)),
        (201, PoolClosed(201)),
    )
    assert counted.wall == 4
    assert counted.efficiency == 0.5


def test_slots_count_for_the_time_they_are_there() -> None:
    """A node that comes late and one that is lost: 10 x 1 slot, then 10 x 3, then 10 x 1."""
    counted = tally(
        (0, NodeReady("a", 1)),
        (0, TasksQueued(1)),
        (10, NodeReady("b", 2)),
        (20, NodeGone("b", "lost")),
        (30, TaskEnded(1, 30, True)),
    )
    assert counted.efficiency == pytest.approx(30 / 50)
    assert counted.lost == 1
    assert counted.slots == 1


def test_a_batch_counts_its_tasks_but_holds_one_slot() -> None:
    counted = tally((0, NodeReady("a", 4)), (0, TasksQueued(100)), (0, TasksQueued(50)))
    assert (counted.queued, counted.busy) == (150, 2)
    counted.add(TaskEnded(100, 1, True), 1)
    assert (counted.done, counted.busy) == (100, 1)


def test_busy_is_never_over_the_slots_nor_under_none() -> None:
    counted = tally((0, NodeReady("a", 2)), *[(0, TasksQueued(1)) for _ in range(9)])
    assert counted.busy == 2
    assert tally((0, NodeReady("a", 2)), (0, TaskEnded(1, 0, True))).busy == 0


def test_only_what_was_done_counts_as_done() -> None:
    """Neither what failed nor what was given up; but the time that failures took was taken."""
    counted = tally(
        (0, NodeReady("a", 1)),
        *[(0, TasksQueued(3)) for _ in range(3)],
        (1, TaskEnded(3, 1, False)),
        (2, TaskEnded(3, 1, True)),
        (2, TaskEnded(3, 0, False, cancelled=True)),
    )
    assert (counted.done, counted.failed, counted.cancelled, counted.busy) == (3, 3, 3, 0)
    assert counted.throughput == 1.5
    assert counted.efficiency == 1.0


def test_an_end_that_is_heard_before_its_start() -> None:
    """The thread that submits says so after the task is on its way, and may be late."""
    counted = tally((0, NodeReady("a", 1)), (10, TaskEnded(1, 2, True)), (11, TasksQueued(1)))
    assert counted.wall == 2
    assert counted.efficiency == 1.0
    assert counted.busy == 0


def test_nothing_ran() -> None:
    counted = tally((0, PoolStarted("p", "local", 2, 1)), (0, PoolReady(2, 0.1)), (9, PoolClosed(9)))
    assert (counted.wall, counted.throughput, counted.efficiency) == (0, 0, None)


def test_a_node_that_is_ready_again_counts_once() -> None:
    assert tally((0, NodeReady("a", 2)), (1, NodeReady("a", 2))).slots == 2


def test_a_released_node_is_not_lost() -> None:
    counted = tally((0, NodeReady("a", 2)), (1, NodeGone("a", None)))
    assert (counted.lost, counted.slots, counted.nodes) == (0, 0, {})


# --- rates and the end ---


def test_the_rate_is_that_of_the_last_ten_seconds() -> None:
    counted = tally((0, TasksQueued(500)), (0.5, TaskEnded(10, 1, True)))
    assert counted.rate(0.5) == 20
    counted.add(TaskEnded(5, 1, True), 4)
    assert counted.rate(5) == 3
    assert counted.rate(9.5) == pytest.approx(15 / 9.5)
    assert counted.rate(10.5) == pytest.approx(5 / 9.5), "the first second is forgotten"
    assert counted.rate(60) == 0
    counted.add(TaskEnded(100, 1, True), 1000.25)
    assert counted.rate(1000.5) == pytest.approx(100 / 9.5)
    counted.add(TaskEnded(50, 1, True), 999.75)
    assert counted.rate(1000.5) == pytest.approx(150 / 9.5), "threads may be late"
    counted.add(TaskEnded(50, 1, True), 900)
    assert counted.rate(1000.5) == pytest.approx(150 / 9.5)


def test_no_rate_before_any_task_and_no_division_by_zero() -> None:
    assert Tally().rate(5) == 0
    assert tally((5, TasksQueued(1)), (5, TaskEnded(1, 0, True))).rate(5) == 0


def test_the_end_is_told_by_how_long_each_function_runs() -> None:
    counted = tally((0, NodeReady("a", 4)), *[(0, TasksQueued(1, "slow")) for _ in range(9)])
    assert counted.left(0) is None, "nothing has run"
    counted.add(TaskEnded(1, 8, True, label="slow"), 8)
    assert counted.left(8) == (8 * 8 - 4 * 8 / 2) / 4, "those that run are half done"
    for _ in range(7):
        counted.add(TaskEnded(1, 8, True, label="slow"), 16)
    assert counted.left(16) == 4, "one on four slots takes as long as on one"
    counted.add(TasksQueued(1, "new"), 17)
    assert counted.left(17) is None
    for label in ("slow", "new"):
        counted.add(TaskEnded(1, 8, True, label=label), 24)
    assert counted.left(24) == 0
    assert tally((0, TasksQueued(2, "f")), (1, TaskEnded(1, 1, True, label="f"))).left(1) is None, "no slots"


def test_the_end_of_short_tasks_is_told_by_their_rate() -> None:
    """A task of 1 ms takes longer than that on its way."""
    counted = tally((0, NodeReady("a", 2)), (0, TasksQueued(1000, "f")))
    counted.add(TaskEnded(100, 0.1, True, label="f"), 1)
    assert counted.left(1) == 900 / 100


# --- status ---


def test_a_status_has_it_all() -> None:
    info = MachineInfo("aws", "m5.large", 0.1, True, "us-east-1")
    load = NodeLoad("node-1", 0.5, 2, 1, 4, 8, (Gpu("G", "T4", 100, 50, 0.25),), "odd")
    counted = tally(
        (100, PoolStarted("p", "aws", 3, 2)),
        (100, Machines(ordered=1)),
        (110, MachineMade("i-1", info, 10)),
        (110, NodeBegun("node-1", info)),
        (110, NodeBegun("node-2", info)),
        (111, NodeStep("node-1", "connecting")),
        (111, NodeStep("node-2", "installing")),
        (120, NodeReady("node-1", 2, (Gpu("G", "T4"),), info)),
        *[(120, TasksQueued(2, "f")) for _ in range(4)],
        (120, TasksQueued(1, "g")),
        (125, TaskEnded(2, 4, True, node="node-1", label="f", sent=10, received=20)),
        (126, TaskEnded(2, 4, False, node="node-1", label="f", sent=10, received=5)),
        (126, TaskEnded(1, 0, False, True, label="g")),
        (127, Transferred("node-1", 5_000_000, "", 120.0, 7.0)),
        (127, Transferred("node-1", 3_000_000, "node-2", 120.0, 7.0)),
        (130, load),
    )
    status = counted.status(136, {"node-1": 7})
    first, second = status.nodes
    assert (first.name, first.state, first.detail, first.slots, first.busy) == ("node-1", "ready", "", 2, 2)
    assert (first.done, first.failed, first.load, first.gpus, first.problem) == (2, 2, load, load.gpus, "odd")
    assert (first.provider, first.type, first.price, first.spot) == ("aws", "m5.large", 0.1, True)
    assert (second.name, second.state, second.detail, second.slots, second.busy) == (
        *("node-2", "starting", "installing"),
        *(0, 0),
    )
    assert status.tasks == TaskCounts(waiting=2, running=2, done=2, failed=2, cancelled=1)
    assert (status.tasks.unfinished, status.tasks.total) == (4, 9)
    assert status.functions == (FunctionStatus("f", 4, 2, 2, 0, 8.0, 2.0), FunctionStatus("g", 0, 0, 0, 1))
    assert (status.name, status.provider, status.wanted, status.machines) == ("p", "aws", 3, Machines(ordered=1))
    assert (status.sent, status.received, status.seconds, status.slots, status.busy) == (5_000_020, 25, 36, 2, 2)
    assert (status.cost, status.price, status.unpriced) == (pytest.approx(0.1 * 36 / 3600), 0.1, 0)
    assert status.left == (4 * 2 - 2 * 2 / 2) / 2


def test_money_is_counted_from_the_order_to_the_end() -> None:
    counted = tally(
        (50, MachineMade("a", MachineInfo("x", price=3.6), 10)),
        (50, MachineMade("a", MachineInfo("y", price=36.0))),
        (55, MachineMade("a", MachineInfo("x", price=3.6))),  # as if heard twice
        (60, MachineMade("b", MachineInfo("x"))),
        (60, MachineEnded("a", "y")),
        (60, MachineEnded("a", "y")),
        (60, MachineEnded("never heard of", "y")),
    )
    assert counted.money.cost(60) == pytest.approx(0.02 + 0.1)
    assert counted.money.cost(70) == pytest.approx(0.03 + 0.1)
    assert (counted.money.price, counted.money.unpriced) == (3.6, 1)
    counted.add(MachineEnded("a", "x"), 70)
    assert counted.money.cost(1e6) == pytest.approx(0.13)


def test_what_is_billed_counts_however_short_a_machine_lived() -> None:
    by_the_hour = MachineInfo("x", price=3.6, billing=Billing(unit=3600.0))
    counted = tally(
        (50, MachineMade("a", by_the_hour)), (60, MachineEnded("a", "x")), (60, MachineMade("b", by_the_hour))
    )
    assert counted.money.cost(61) == pytest.approx(7.2)
    assert counted.money.cost(60 + 3601) == pytest.approx(3.6 + 7.2)


def test_the_last_nodes_that_were_lost_are_shown() -> None:
    counted = Tally()
    for number in range(100):
        counted.add(NodeReady(f"node-{number}", 1), number)
        counted.add(TaskEnded(1, 1, True, node=f"node-{number}"), number)
        counted.add(NodeGone(f"node-{number}", "the link broke"), number)
        counted.add(NodeLoad(f"node-{number}", 1.0), number)
    status = counted.status(100, {})
    assert (status.lost, status.slots, len(status.nodes)) == (100, 0, 20)
    assert {(node.state, node.detail, node.done, node.load) for node in status.nodes} == {
        ("lost", "the link broke", 1, None)
    }


def test_functions_beyond_the_first_are_counted_together() -> None:
    counted = Tally()
    for number in range(3 * MAX_FUNCTIONS):
        counted.add(TasksQueued(1, f"f{number}"), 0)
        counted.add(TaskEnded(1, 1, True, label=f"f{number}"), 0)
    *some, last = counted.status(0, {}).functions
    assert len(some) == MAX_FUNCTIONS
    assert (last.label, last.done, last.unfinished) == (OTHER, 2 * MAX_FUNCTIONS, 0)


# --- any order ---

NODES = [f"node-{number}" for number in range(3)]
FUNCTIONS = [f"f{number}" for number in range(3)]
COUNTS = st.integers(1, 5)
ENDS = st.sampled_from([(True, False), (False, False), (False, True)])
PAIRS = st.builds(
    lambda count, label, node, end: (
        TasksQueued(count, label),
        TaskEnded(count, 0.5, *end, node=node, label=label, sent=1, received=2),
    ),
    *(COUNTS, st.sampled_from(FUNCTIONS), st.sampled_from(["", *NODES]), ENDS),
)
OTHERS = st.one_of(
    st.builds(NodeStep, st.sampled_from(NODES), st.just("connecting")),
    st.builds(NodeReady, st.sampled_from(NODES), st.integers(1, 4)),
    st.builds(NodeGone, st.sampled_from(NODES), st.sampled_from([None, "lost"])),
    st.builds(NodeLoad, st.sampled_from(NODES), st.just(0.5)),
    st.builds(MachineMade, st.sampled_from("ab"), st.just(MachineInfo("x", price=1.0))),
    st.builds(MachineEnded, st.sampled_from("ab"), st.just("x")),
)


def consistent(status: PoolStatus) -> None:
    tasks, functions = status.tasks, status.functions
    assert min(tasks.waiting, tasks.running) >= 0
    assert (tasks.done, tasks.failed, tasks.cancelled) == tuple(
        sum(getattr(each, what) for each in functions) for what in ("done", "failed", "cancelled")
    )
    assert tasks.running <= status.slots == sum(node.slots for node in status.nodes if node.state == "ready")
    assert sum(node.done for node in status.nodes) <= tasks.done
    assert status.cost >= 0
    assert status.left is None or status.left >= 0


@given(st.data(), st.lists(PAIRS, max_size=12), st.lists(OTHERS, max_size=12))
def test_in_any_order_of_events_the_counts_agree(
    data: st.DataObject, pairs: list[tuple[TasksQueued, TaskEnded]], others: list[Event]
) -> None:
    """An end before its beginning, too; and however they are mixed, the sums are the same in the end."""
    events = data.draw(st.permutations([*others, *[event for pair in pairs for event in pair]]))
    counted = Tally()
    for number, event in enumerate(events):
        counted.add(event, number / 4)
        consistent(counted.status(number / 4, dict.fromkeys(NODES, 2)))
    status = counted.status(100, {})
    total = sum(queued.count for queued, _ in pairs)
    assert (status.tasks.total, status.tasks.unfinished, counted.busy) == (total, 0, 0)
    assert (status.sent, status.received, status.left) == (len(pairs), 2 * len(pairs), 0)
    for label in FUNCTIONS:
        done = sum(ended.count for _, ended in pairs if ended.label == label and ended.ok)
        assert sum(each.done for each in status.functions if each.label == label) == done


def test_nodes_drain_once_the_block_has_ended() -> None:
    """Those that are ready, and those that become so; one that is lost is lost."""
    counted = tally(
        (0, PoolStarted("p", "local", 3, 1)),
        (0, NodeReady("a", 1)),
        (0, NodeReady("c", 1)),
        (1, TasksQueued(1)),
        (2, PoolDraining()),
        (3, NodeReady("b", 1)),
        (4, NodeGone("c", "the link broke")),
    )
    status = counted.status(5, {"a": 1})
    assert [(node.name, node.state) for node in status.nodes] == [("a", "draining"), ("b", "draining"), ("c", "lost")]
    assert (status.ready, status.slots, status.busy) == (2, 2, 1)
    assert "2 of 3 nodes draining, 1 of 2 slots busy" in status.headline
    assert "draining" in repr(status)
