"""The schedule keeps its promises whatever order events come in."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from skyward.core.tasks.schedule import Schedule
from skyward.core.tasks.schedule_events import (
    Began,
    Cancelled,
    Event,
    Expel,
    Finished,
    Hopeless,
    NodeDown,
    NodeUp,
    Outcome,
    Recall,
    Returned,
    Run,
    Settle,
    StartTimer,
    Stop,
    Submitted,
    TimerFired,
    Verdict,
    Withdraw,
    Withdrawn,
)
from tests.examples import examples


class ScheduleMachine(RuleBasedStateMachine):
    """Drives a schedule by any order of events and keeps an independent account of what it promised."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule = Schedule()
        self.tasks: dict[int, Submitted] = {}
        self.settled: dict[int, Verdict] = {}
        self.cancelled: set[int] = set()
        self.withdrawn: set[int] = set()
        self.begun: set[int] = set()
        self.stopped: set[int] = set()  # a node gave it up
        self.starts: dict[int, int] = {}
        self.free_starts: dict[int, int] = {}
        self.refused_by: dict[int, set[str]] = {}
        self.failed: dict[str, list[Outcome]] = {}  # of each node, since it last had a result
        self.others: dict[str, int] = {}  # results of others meanwhile
        self.expelled: set[str] = set()
        self.nodes: dict[str, int] = {}
        self.out: dict[str, dict[int, bool]] = {}  # node -> task -> still wanted
        self.asked: dict[str, int] = {}  # nodes that have been asked to give so many tasks back, and have not answered
        self.resting: set[str] = set()  # nodes that were asked since the last tick
        self.timer_runs = False
        self.names = 0
        self.hopeless = False
        self.ended = False
        self.given_up: set[int] = set()

    tasks_in = Bundle("tasks")
    nodes_in = Bundle("nodes")

    def handle(self, event: Any) -> None:
        for command in self.schedule.handle(event):
            if isinstance(command, Run):
                assert command.task not in self.settled, "ran after it was settled"
                assert command.task not in self.withdrawn or command.task in self.begun, "ran after it was withdrawn"
                assert all(command.task not in out for out in self.out.values()), "runs twice at a time"
                assert command.node not in self.expelled
                assert command.node not in self.refused_by.get(command.task, ())
                pinned = self.tasks[command.task].node
                assert pinned in (None, command.node)
                self.out[command.node][command.task] = True
                self.starts[command.task] = self.starts.get(command.task, 0) + 1
                allowed = self.tasks[command.task].attempts + self.free_starts.get(command.task, 0)
                assert self.starts[command.task] <= allowed
                assert command.alone == bool(self.free_starts.get(command.task))
                self.check_limit(self.tasks[command.task])
            elif isinstance(command, Stop):
                assert command.task in self.cancelled | self.given_up
                self.out[command.node][command.task] = False
            elif isinstance(command, Withdraw):
                assert command.task in self.withdrawn - self.begun
                assert self.out[command.node][command.task]
            elif isinstance(command, Recall):
                assert 0 < command.limit <= len(self.out[command.node]) - self.nodes[command.node]
                assert command.node not in self.resting
                self.resting.add(command.node)
                self.asked[command.node] = command.limit
                idle = sum(max(slots - len(self.out[name]), 0) for name, slots in self.nodes.items())
                assert sum(self.asked.values()) <= idle
            elif isinstance(command, Expel):
                assert command.node not in self.expelled
                row = self.failed[command.node]
                assert command.failures == len(row) > 2 * self.nodes[command.node]
                assert self.others[command.node] or row.count(Outcome.REFUSED) > 2 * self.nodes[command.node]
                self.expelled.add(command.node)
            elif isinstance(command, StartTimer):
                assert not self.timer_runs
                self.timer_runs = True
            else:
                assert isinstance(command, Settle)
                self.settle(command)

    def settle(self, command: Settle) -> None:
        assert command.task not in self.settled, "settled twice"
        if command.verdict is Verdict.REFUSED:
            can = [self.tasks[command.task].node] if self.tasks[command.task].node else self.nodes
            assert set(can) - self.expelled <= self.refused_by[command.task]
        if command.verdict is Verdict.CANCELLED:
            assert command.task in self.cancelled | self.stopped | (self.withdrawn - self.begun)
        self.settled[command.task] = command.verdict

    def out_of(self, group: int) -> int:
        """How many tasks of a group are out there, as far as anybody wants them."""
        wanted = [task for tasks in self.out.values() for task, wanted in tasks.items() if wanted]
        return sum(self.tasks[task].group == group for task in wanted)

    def check_limit(self, event: Submitted) -> None:
        """Of a group whose task was sent out just now."""
        limit = self.limit(event)
        if limit is not None and sum(self.nodes.values()) > limit:
            assert self.out_of(event.group) <= limit

    def limit(self, event: Submitted) -> int | None:
        """How many of its group may be out now."""
        if event.limit is None or event.limit >= 0:
            return event.limit
        return max(sum(self.nodes.values()) + event.limit, 1)

    @rule(target=nodes_in, slots=st.integers(1, 3))
    def node_up(self, slots: int) -> str:
        self.names += 1
        name = f"n{self.names}"
        self.nodes[name] = slots
        self.out[name] = {}
        self.failed[name], self.others[name] = [], 0
        self.hopeless = self.ended
        self.handle(NodeUp(name, slots))
        return name

    @rule(node=consumes(nodes_in), begun=st.booleans())
    def node_down(self, node: str, begun: bool = True) -> None:
        if not begun:  # then those starts do not count
            for task, wanted in self.out[node].items():
                self.starts[task] -= wanted
        del self.nodes[node]
        del self.out[node]
        self.asked.pop(node, None)
        self.resting.discard(node)
        self.expelled.discard(node)
        self.handle(NodeDown(node, begun))
        self.handle(NodeDown(node))  # saying it twice does no harm

    @rule(
        target=tasks_in,
        group=st.integers(1, 3),
        limited=st.sampled_from((0, 1, -1)),
        attempts=st.integers(1, 3),
    )
    def submit(self, group: int, limited: int, attempts: int) -> int:
        self.names += 1
        # A limit belongs to the group, so it is part of the name here.
        event = Submitted(self.names, group * 3 + limited, group * limited if limited else None, None, attempts)
        self.tasks[event.task] = event
        self.handle(event)
        return event.task

    @rule(target=tasks_in, node=nodes_in, attempts=st.integers(1, 2))
    def submit_pinned(self, node: str, attempts: int) -> int:
        self.names += 1
        event = Submitted(self.names, 1000 + self.names, None, node, attempts)
        self.tasks[event.task] = event
        self.handle(event)
        return event.task

    @rule(task=tasks_in)
    def cancel(self, task: int) -> None:
        self.cancelled.add(task)
        self.handle(Cancelled(task))
        assert task in self.settled

    @rule(task=tasks_in)
    def withdraw(self, task: int) -> None:
        out = any(task in tasks for tasks in self.out.values())
        self.withdrawn.add(task)
        self.handle(Withdrawn(task))
        assert out or task in self.begun or task in self.settled

    @rule(node=nodes_in, data=st.data())
    def begin(self, node: str, data: st.DataObject) -> None:
        """Any tasks that are out there, and one that is not known there."""
        if self.out[node]:
            tasks = data.draw(st.lists(st.sampled_from(sorted(self.out[node])), unique=True))
            self.begun.update(tasks)
            self.handle(Began(node, [*tasks, -1]))
        self.handle(Began("nobody", [1]))

    @rule(task=tasks_in, outcome=st.sampled_from(Outcome), seconds=st.floats(0, 1), overhead=st.floats(0, 0.1))
    def finish(self, task: int, outcome: Outcome, seconds: float, overhead: float) -> None:
        node = next((name for name, out in self.out.items() if task in out), None)
        if node is None:  # a late word about a task that is not out there: must not matter
            before = dict(self.settled)
            for name in self.nodes:
                self.handle(Finished(task, name, outcome, seconds, overhead))
            assert self.settled == before
            return
        wanted = self.out[node].pop(task)
        if wanted and outcome is Outcome.SHARED_CRASH and self.tasks[task].attempts > 1:
            self.free_starts.setdefault(task, 1)
        self.count(node, outcome)
        if outcome is Outcome.REFUSED and wanted:
            self.refused_by.setdefault(task, set()).add(node)
            self.starts[task] -= 1
        if outcome is Outcome.STOPPED:
            self.stopped.add(task)
        self.handle(Finished(task, node, outcome, seconds, overhead))
        if wanted and outcome is Outcome.ANSWERED:
            assert self.settled[task] is Verdict.ANSWERED

    def count(self, node: str, outcome: Outcome) -> None:
        """Of the runs of a node that fail one after another."""
        if outcome is Outcome.ANSWERED:
            self.failed[node], self.others[node] = [], 0
            for other, row in self.failed.items():
                self.others[other] += bool(row)
        elif outcome is not Outcome.STOPPED:
            self.failed[node].append(outcome)

    @rule(node=nodes_in, outcome=st.sampled_from([Outcome.REFUSED, Outcome.CRASHED, Outcome.SHARED_CRASH]))
    def fail_for_a_while(self, node: str, outcome: Outcome) -> None:
        """Nothing goes well there, for as many runs as it may take until the node must go."""
        for _ in range(2 * self.nodes[node] + 3):
            if self.out[node]:
                self.finish(next(iter(self.out[node])), outcome, 0.1, 0.01)

    @rule(node=nodes_in, data=st.data())
    def give_back(self, node: str, data: st.DataObject) -> None:
        """Any tasks that are out there, though it asked for fewer, or for none."""
        tasks = data.draw(st.lists(st.sampled_from(sorted(self.out[node])), unique=True)) if self.out[node] else []
        for task in tasks:
            if self.out[node].pop(task):
                self.starts[task] -= 1
        self.asked.pop(node, None)
        self.handle(Returned(node, tasks))

    @precondition(lambda self: self.timer_runs)
    @rule()
    def time_passes(self) -> None:
        self.timer_runs = False
        self.resting = set(self.asked)
        self.handle(TimerFired())

    @rule(ending=st.booleans())
    def hopeless_now(self, ending: bool = False) -> None:
        """With `ending`, what runs is stopped, too."""
        if ending or not self.nodes:
            self.hopeless, self.ended = True, self.ended or ending
            self.given_up |= self.tasks.keys() - self.settled.keys()
        self.handle(Hopeless(ending))

    @invariant()
    def nothing_is_over_filled(self) -> None:
        for name, slots in self.nodes.items():
            depth = self.schedule._nodes[name].depth
            assert len(self.out[name]) <= slots + max(depth, 32 * slots)

    @invariant()
    def no_slot_idles_while_a_task_waits(self) -> None:
        out = {task for tasks in self.out.values() for task in tasks}
        waiting = [task for task in self.tasks if task not in self.settled and task not in out]
        if self.hopeless:
            assert not waiting
        for task in waiting:
            event = self.tasks[task]
            limit = self.limit(event)
            if limit is not None and self.out_of(event.group) >= limit:
                continue
            for name in {event.node} if event.node else set(self.nodes) - self.refused_by.get(task, set()):
                if name in self.expelled:
                    continue
                assert len(self.out[name]) >= self.nodes[name], f"{name} idles while {task} waits"

    @invariant()
    def what_all_nodes_refuse_waits_for_none(self) -> None:
        usable = set(self.nodes) - self.expelled
        for task, nodes in self.refused_by.items():
            assert task in self.settled or not usable or usable - nodes

    @invariant()
    def what_lies_ahead_is_asked_back_for_idle_slots(self) -> None:
        nodes = {name: slots for name, slots in self.nodes.items() if name not in self.expelled}
        if any(len(self.out[name]) < slots for name, slots in nodes.items()):
            ahead = [name for name, slots in nodes.items() if len(self.out[name]) > slots]
            assert not ahead or self.timer_runs

    @invariant()
    def forgets_what_is_over(self) -> None:
        assert len(self.schedule._tasks) == len(self.tasks) - len(self.settled)
        if not self.schedule._tasks:
            assert not self.schedule._groups
            assert not self.schedule._refused
            assert not self.schedule._turns

    def teardown(self) -> None:
        """Everything settles once all nodes are gone and none will come."""
        for name in list(self.nodes):
            self.node_down(name)
        self.hopeless_now()
        assert set(self.settled) == set(self.tasks)


ScheduleMachine.TestCase.settings = examples(150, stateful_step_count=40)
TestSchedule = ScheduleMachine.TestCase


def _commands(schedule: Schedule, *events: Any) -> list[Any]:
    return [command for event in events for command in schedule.handle(event)]


def test_next_run_comes_before_the_settlement() -> None:
    """A slot gets its next task before anybody is told about the last one."""
    schedule = Schedule()
    _commands(schedule, NodeUp("a", 1), Submitted(1, 1), Submitted(2, 1))
    assert schedule.handle(Finished(1, "a", Outcome.ANSWERED)) == [Run("a", 2, False), Settle(1, Verdict.ANSWERED)]


def test_groups_take_turns() -> None:
    """A group with many tasks does not starve one that comes later."""
    schedule = Schedule()
    _commands(schedule, NodeUp("a", 1), *[Submitted(i, 1) for i in range(10)], Submitted(99, 2))
    ran = []
    task = 0
    for _ in range(3):
        (command, _settle) = schedule.handle(Finished(task, "a", Outcome.ANSWERED))
        task = command.task
        ran.append(task)
    assert 99 in ran


def test_a_group_goes_on_after_one_of_its_tasks_that_waited_for_its_node() -> None:
    schedule = Schedule()
    schedule.handle(NodeUp("one", 1))
    schedule.handle(Submitted(1, 1, None, None, 1))
    schedule.handle(Submitted(2, 2, None, "one", 1))  # waits, though not in its group's queue
    schedule.handle(Submitted(3, 2, None, None, 1))
    assert Run("one", 2, False) in schedule.handle(Finished(1, "one", Outcome.ANSWERED))
    assert Run("one", 3, False) in schedule.handle(Finished(2, "one", Outcome.ANSWERED))


def test_nodes_fill_evenly() -> None:
    """Tasks spread over nodes rather than fill one first."""
    schedule = Schedule()
    commands = _commands(schedule, NodeUp("a", 2), NodeUp("b", 2), Submitted(1, 1), Submitted(2, 1))
    assert {command.node for command in commands} == {"a", "b"}


@pytest.mark.parametrize(("limit", "ahead"), [(None, True), (3, True), (2, True), (1, False)])
def test_a_limit_of_all_slots_costs_nothing(limit: int | None, ahead: bool) -> None:
    """``n_jobs=100`` on a hundred slots is as fast as -1 is: a slot need not wait for a round trip."""
    schedule = Schedule()
    _commands(schedule, NodeUp("a", 2), *[Submitted(i, 1, limit) for i in range(200)])
    for task in range(20):
        schedule.handle(Finished(task, "a", Outcome.ANSWERED, 0.001, 0.05))
    assert (len(schedule._nodes["a"].out) > 2) is ahead


def test_a_limit_holds_when_there_are_more_slots_than_before() -> None:
    """And is none again when there are fewer."""
    schedule = Schedule()
    _commands(schedule, NodeUp("a", 2), *[Submitted(i, 1, 3) for i in range(200)])
    for task in range(20):
        schedule.handle(Finished(task, "a", Outcome.ANSWERED, 0.001, 0.05))
    out = list(schedule._nodes["a"].out)
    assert not [command for command in schedule.handle(NodeUp("b", 2)) if isinstance(command, Run)]
    for task in out[:-3]:
        commands = schedule.handle(Finished(task, "a", Outcome.ANSWERED, 0.001, 0.05))
        assert not [command for command in commands if isinstance(command, Run)]
    for task in out[-3:]:
        commands = schedule.handle(Finished(task, "a", Outcome.ANSWERED, 0.001, 0.05))
        assert len([command for command in commands if isinstance(command, Run)]) == 1
    commands = schedule.handle(NodeDown("b"))
    assert len(schedule._nodes["a"].out) > 3


def test_a_limit_below_zero_follows_the_slots() -> None:
    """``n_jobs=-2`` is all slots but one: those that come count too, and those that go no more."""
    schedule = Schedule()

    def out() -> list[int]:
        return [len(node.out) for node in schedule._nodes.values()]

    _commands(schedule, NodeUp("a", 2), *[Submitted(i, 1, -1) for i in range(20)])
    assert out() == [1]
    schedule.handle(NodeUp("b", 4))
    assert sum(out()) == 5
    schedule.handle(NodeDown("a"))
    assert out() == [3]
    for task in list(schedule._nodes["b"].out):
        schedule.handle(Finished(task, "b", Outcome.ANSWERED, 1.0, 0.001))
        assert out() == [3]


def test_how_many_tasks_of_a_group_run_at_a_time_follows_the_slots() -> None:
    schedule = Schedule()
    schedule.handle(NodeUp("n0", 2))
    assert [schedule.at_a_time(limit) for limit in (None, 1, 5, -1, -9)] == [2, 1, 2, 1, 1]
    schedule.handle(NodeUp("n1", 4))
    assert [schedule.at_a_time(limit) for limit in (None, 1, 5, -1, -9)] == [6, 1, 5, 5, 1]
    schedule.handle(NodeDown("n1"))
    assert schedule.at_a_time(None) == 2


def test_short_tasks_are_held_ahead_long_ones_are_not() -> None:
    """A node holds more than its slots only where a round trip costs more than the task."""
    for seconds, most in ((0.0001, 16), (5.0, 1)):
        schedule = Schedule()
        _commands(schedule, NodeUp("a", 1), *[Submitted(i, 1) for i in range(40)])
        more = schedule.handle(Finished(0, "a", Outcome.ANSWERED, seconds, 0.001))
        assert sum(isinstance(command, Run) for command in more) == most


def test_what_a_node_holds_ahead_goes_back_to_an_idle_one() -> None:
    """A task behind a long one runs elsewhere as soon as somebody has nothing to do."""
    schedule = Schedule()
    _commands(schedule, NodeUp("a", 1), *[Submitted(i, 1, attempts=1) for i in range(4)])
    schedule.handle(Finished(0, "a", Outcome.ANSWERED, 0.04, 0.05))  # 1 runs there now, 2 and 3 are ahead
    assert schedule.handle(NodeUp("b", 1)) == [Recall("a", 1), StartTimer()]
    assert schedule.handle(Returned("a", [3])) == [Run("b", 3, False)]
    assert schedule.handle(TimerFired()) == []
    assert schedule.handle(Finished(3, "b", Outcome.ANSWERED, 0.04, 0.05)) == [
        StartTimer(),
        Settle(3, Verdict.ANSWERED),
    ]
    assert schedule.handle(TimerFired()) == [Recall("a", 1), StartTimer()]
    assert schedule.handle(Finished(1, "a", Outcome.ANSWERED)) == [Settle(1, Verdict.ANSWERED)]
    assert schedule.handle(Returned("a", [])) == []


def test_what_will_begin_at_once_is_asked_for_only_when_it_does_not() -> None:
    """Tasks that run for less than a round trip stay where they are, unless one of them takes long."""
    schedule = Schedule()
    _commands(schedule, NodeUp("a", 1), *[Submitted(i, 1) for i in range(4)])
    schedule.handle(Finished(0, "a", Outcome.ANSWERED, 0.001, 0.05))
    assert schedule.handle(NodeUp("b", 2)) == [StartTimer()]
    assert schedule.handle(TimerFired()) == [StartTimer()]
    schedule.handle(Finished(1, "a", Outcome.ANSWERED, 0.001, 0.05))  # as usual
    assert schedule.handle(TimerFired()) == [StartTimer()]
    assert schedule.handle(TimerFired()) == [Recall("a", 1), StartTimer()]


def test_no_more_is_asked_for_than_slots_are_idle() -> None:
    """However many nodes hold tasks, one that has nothing to do makes one question."""
    schedule = Schedule()
    _commands(schedule, *[NodeUp(f"n{i}", 1) for i in range(50)], *[Submitted(i, 1) for i in range(150)])
    for i in range(50):
        schedule.handle(Finished(i, f"n{i}", Outcome.ANSWERED, 0.04, 0.05))
    recalls = [command for command in schedule.handle(NodeUp("b", 1)) if isinstance(command, Recall)]
    assert [command.limit for command in recalls] == [1]
    asked = recalls[0].node
    again = schedule.handle(Returned(asked, []))  # nothing to be had there: the next
    assert [type(command) for command in again] == [Recall]
    assert again[0].node != asked


def test_what_is_withdrawn_ends_unless_it_has_begun() -> None:
    """One that waits here at once, one at a node as the node says; what runs goes on, though its process dies."""
    schedule = Schedule()
    _commands(schedule, NodeUp("a", 2), *[Submitted(i, 1) for i in (1, 2, 3)], Began("a", [1]))
    withdrawn = _commands(schedule, *[Withdrawn(i) for i in (1, 2, 3, 3)])
    assert withdrawn == [Withdraw("a", 2), Settle(3, Verdict.CANCELLED)]
    assert schedule.handle(Finished(2, "a", Outcome.STOPPED)) == [Settle(2, Verdict.CANCELLED)]
    assert schedule.handle(Finished(1, "a", Outcome.CRASHED)) == [Run("a", 1, False)]
    assert schedule.handle(Finished(1, "a", Outcome.ANSWERED)) == [Settle(1, Verdict.ANSWERED)]


@pytest.mark.parametrize("event", [Returned("a", [1]), NodeDown("a")])
def test_what_was_withdrawn_and_comes_back_unbegun_is_cancelled(event: Any) -> None:
    """It is not sent to another node."""
    schedule = Schedule()
    _commands(schedule, NodeUp("a", 1), NodeUp("b", 1), Submitted(1, 1), Withdrawn(1))
    assert schedule.handle(event) == [Settle(1, Verdict.CANCELLED)]


def test_innocent_tasks_of_a_shared_crash_run_alone_and_do_not_count_it() -> None:
    """When a process with two tasks dies, both run again alone; only the guilty one fails."""
    schedule = Schedule()
    _commands(schedule, NodeUp("a", 2), Submitted(1, 1, attempts=2), Submitted(2, 1, attempts=2))
    commands = _commands(
        schedule,
        Finished(1, "a", Outcome.SHARED_CRASH),
        Finished(2, "a", Outcome.SHARED_CRASH),
    )
    assert commands == [Run("a", 1, True), Run("a", 2, True)]
    assert Settle(2, Verdict.ANSWERED) in schedule.handle(Finished(2, "a", Outcome.ANSWERED))
    assert schedule.handle(Finished(1, "a", Outcome.CRASHED)) == [Run("a", 1, True)]
    assert schedule.handle(Finished(1, "a", Outcome.CRASHED)) == [Settle(1, Verdict.CRASHED)]


def test_a_refusal_costs_no_attempt_and_goes_elsewhere() -> None:
    """The node that could not begin it gets it never again; the task waits for one that has not refused it."""
    schedule = Schedule()
    _commands(schedule, NodeUp("a", 1), NodeUp("b", 1), Submitted(1, 1, attempts=1), Submitted(2, 1, attempts=1))
    assert schedule.handle(Finished(1, "a", Outcome.REFUSED)) == []
    assert schedule.handle(Submitted(3, 1)) == [Run("a", 3, False)]
    assert schedule.handle(Finished(2, "b", Outcome.ANSWERED)) == [Run("b", 1, False), Settle(2, Verdict.ANSWERED)]
    assert schedule.handle(Finished(1, "b", Outcome.REFUSED)) == [Settle(1, Verdict.REFUSED)]


def test_what_the_only_node_refuses_is_settled_until_that_must_go() -> None:
    """Nobody waits for ever; and what comes when it must go is for the node that takes its place."""
    schedule = Schedule()
    _commands(schedule, NodeUp("a", 1))
    for task in range(4):
        assert schedule.handle(Submitted(task, 1))[0] == Run("a", task, False)
        assert schedule.handle(Finished(task, "a", Outcome.REFUSED)) == [Settle(task, Verdict.REFUSED)]
    schedule.handle(Submitted(4, 1))
    assert schedule.handle(Finished(4, "a", Outcome.REFUSED)) == [Expel("a", 5)]
    assert schedule.handle(Submitted(5, 1)) == []
    assert schedule.handle(NodeDown("a")) == []
    assert {command.task for command in schedule.handle(NodeUp("b", 2)) if isinstance(command, Run)} == {4, 5}


@pytest.mark.parametrize("others", [True, False], ids=["while others have results", "as everywhere"])
def test_a_node_where_everything_crashes_must_go_unless_it_is_the_tasks(others: bool) -> None:
    """Code that kills its process wherever it runs must not cost one machine after another."""
    schedule = Schedule()
    _commands(schedule, NodeUp("a", 1), NodeUp("b", 1), *[Submitted(task, 1, attempts=99) for task in range(9)])
    expelled = []
    for _ in range(20):
        for node, outcome in (("a", Outcome.CRASHED), ("b", Outcome.ANSWERED if others else Outcome.CRASHED)):
            for task in list(schedule._nodes[node].out):
                commands = schedule.handle(Finished(task, node, outcome))
                expelled += [command for command in commands if isinstance(command, Expel)]
    assert expelled == [Expel("a", 5)] * others


def test_a_result_in_between_forgives_what_failed_before() -> None:
    """Only failures in a row tell that it is the node."""
    schedule = Schedule()
    _commands(schedule, NodeUp("a", 1), NodeUp("b", 1))
    for task in range(40):
        (run,) = schedule.handle(Submitted(task, 1, node="a"))
        outcome = Outcome.ANSWERED if task % 5 == 4 else Outcome.REFUSED
        assert not any(isinstance(each, Expel) for each in schedule.handle(Finished(run.task, "a", outcome)))


def test_every_event_has_a_handler() -> None:
    assert set(Schedule._EVENTS) == set(get_args(Event))
