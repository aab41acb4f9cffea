"""Which task runs in which slot, through events in any order."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from skyward.core.protocol.messages import Failure
from skyward.worker.slot_table import Command, Fork, Kill, Reclaim, Settle, SlotTable, Start
from tests.examples import examples


def test_first_come_first_served_in_a_slot_that_is_used_again() -> None:
    table = SlotTable(1)
    assert table.submit(1, True) == [Fork(1, False), Start(1, 1)]
    assert table.submit(2, True) == table.submit(3, True) == []
    assert table.finished(1, 1) == [Start(2, 1)]
    assert table.finished(1, 2) == [Start(3, 1)]


def test_slots_are_made_ahead_and_then_used() -> None:
    table = SlotTable(2)
    assert table.warm(True) == [Fork(1, False), Fork(2, False)]
    assert [type(command) for command in table.submit(1, True)] == [Start]
    assert table.warm(True) == []
    table = SlotTable(2)
    assert table.warm(False) == [Fork(1, True)]
    assert table.submit(1, False) == [Start(1, 1)]
    assert table.warm(False) == []


def test_shared_and_isolated_tasks_count_together() -> None:
    table = SlotTable(2)
    assert table.submit(1, False) == [Fork(1, True), Start(1, 1)]
    assert table.submit(2, True) == [Fork(2, False), Start(2, 2)]
    assert table.submit(3, False) == []
    assert table.finished(2, 2) == [Start(3, 1)]


def test_a_task_that_waits_for_a_blob_blocks_nobody() -> None:
    table = SlotTable(1)
    assert table.submit(1, True, blocked=True) == []
    assert table.submit(2, True) == [Fork(1, False), Start(2, 1)]
    assert table.unblock(1) == []
    assert table.finished(1, 2) == [Start(1, 1)]
    assert table.unblock(1) == table.unblock(9) == []


def test_a_cancel_may_come_first() -> None:
    table = SlotTable(1)
    assert table.cancel(1) == []
    assert [command.reason for command in table.submit(1, True) if isinstance(command, Settle)] == [Failure.CANCELLED]
    assert table.submit(2, True) == [Fork(1, False), Start(2, 1)]


def test_early_cancels_are_bounded() -> None:
    table = SlotTable(1)
    for task in range(5000):
        table.cancel(task)
    assert isinstance(table.submit(4999, True)[0], Settle)
    assert isinstance(table.submit(0, True)[0], Fork)


def test_a_cancelled_isolated_task_ends_its_process_at_once() -> None:
    table = SlotTable(1)
    table.submit(1, True)
    table.submit(2, True)
    settle, kill, *rest = table.cancel(1)
    assert isinstance(settle, Settle)
    assert settle.reason is Failure.CANCELLED
    assert kill == Kill(1)
    assert rest == [Fork(2, False), Start(2, 2)]
    assert table.died(1, "killed") == []


def test_a_cancelled_thread_leaves_the_others_alone() -> None:
    table = SlotTable(2)
    table.submit(1, False)
    table.submit(2, False)
    table.submit(3, False)
    settle, *rest = table.expire(1, "too long")
    assert settle == Settle(1, Failure.TIMEOUT, "too long")
    assert rest == [Fork(2, True), Start(3, 2)]  # the old process gets nothing new
    assert table.finished(1, 2) == [Kill(1)]
    assert table.died(1, "killed") == []


def test_a_death_is_blamed_on_a_task_only_if_it_was_alone() -> None:
    table = SlotTable(3)
    table.submit(1, True)
    assert table.died(1, "x") == [Settle(1, Failure.CRASHED, "x")]
    table.submit(2, False)
    assert table.died(2, "x") == [Settle(2, Failure.CRASHED, "x")]
    table.submit(3, False)
    table.submit(4, False)
    assert table.died(3, "x") == [Settle(3, Failure.SHARED_CRASH, "x"), Settle(4, Failure.SHARED_CRASH, "x")]
    table.submit(5, False)
    table.submit(6, False)
    table.cancel(5)  # it still runs, and may be the one
    assert table.died(4, "x") == [Settle(6, Failure.SHARED_CRASH, "x")]


def test_a_fork_that_fails_refuses_its_tasks() -> None:
    table = SlotTable(1)
    table.submit(1, True)
    table.submit(2, True)
    assert table.refused(1, "no memory") == [
        Settle(1, Failure.REFUSED, "no memory"), Fork(2, False), Start(2, 2),
    ]  # fmt: skip


def test_a_slot_that_hung_up_is_not_used_again() -> None:
    table = SlotTable(1)
    table.submit(1, True)
    assert table.retire(1) == []
    assert table.finished(1, 1) == [Kill(1)]
    assert table.submit(2, True) == [Fork(2, False), Start(2, 2)]
    assert table.retire(1) == table.retire(99) == []


def test_short_tasks_are_handed_over_ahead_and_reclaimed_for_an_idle_slot() -> None:
    table = SlotTable(2)
    table.submit(1, True)
    table.submit(2, True)
    for task in range(3, 9):
        assert table.submit(task, True) == []
    assert table.finished(1, 1, 0.0005) == [Start(3, 1), Start(4, 1), Start(5, 1), Start(6, 1), Start(7, 1)]
    assert table.finished(2, 2, 0.0005) == [Start(8, 2)]
    assert table.finished(2, 8, 0.0005) == [Reclaim(1)]
    table.reclaimed(1, [5, 6, 7])  # by then it has begun 4, whose predecessor's answer is on its way
    assert table.dispatch() == [Start(5, 2)]
    assert table.finished(1, 3, 0.0005) == [Start(6, 1), Start(7, 1)]
    assert table.finished(1, 4, 0.0005) == []


def test_long_tasks_are_not_handed_over_ahead() -> None:
    table = SlotTable(1)
    for task in range(1, 5):
        table.submit(task, True)
    assert table.finished(1, 1, 0.5) == [Start(2, 1)]


def test_what_is_ahead_survives_the_death_of_its_slot() -> None:
    table = SlotTable(1)
    for task in range(1, 5):
        table.submit(task, True)
    assert table.finished(1, 1, 1e-5) == [Start(2, 1), Start(3, 1), Start(4, 1)]
    table.reclaimed(1, [3, 4])
    assert table.died(1, "x") == [Settle(2, Failure.CRASHED, "x"), Fork(2, False), Start(3, 2)]


def test_the_newest_are_returned() -> None:
    table = SlotTable(1)
    for task in range(1, 6):
        table.submit(task, True)
    assert table.recall(2) == [5, 4]
    assert table.recall(9, keep=1) == [3]
    assert table.recall(9, keep=2) == []
    assert table.recall(9) == [2]
    assert table.finished(1, 1) == []
    assert table.submit(5, True) == [Start(5, 1)]


def test_a_slot_runs_tasks_of_one_version_of_the_code() -> None:
    table = SlotTable(2)
    table.warm(True)
    assert table.submit(1, True, code=1) == [Start(1, 2)]
    assert table.submit(2, True) == [Start(2, 1)]
    table.finished(2, 1)
    table.finished(1, 2)
    assert table.submit(3, True, code=2) == [Start(3, 1)], "the other slot has seen no code yet"
    table.finished(1, 3)
    assert table.submit(4, True, code=1) == [Start(4, 2)]
    assert table.submit(5, True, code=3) == [Kill(1), Fork(3, False), Start(5, 3)]
    assert table.submit(6, True, code=3) == []
    assert table.died(1, "killed") == []
    assert table.finished(2, 4) == [Kill(2), Fork(4, False), Start(6, 4)]


def test_threads_of_one_version_finish_in_a_process_that_gets_nothing_new() -> None:
    table = SlotTable(3)
    assert table.submit(1, False, code=1) == [Fork(1, True), Start(1, 1)]
    assert table.submit(2, False, code=2) == [Fork(2, True), Start(2, 2)]
    assert table.finished(1, 1) == [Kill(1)]


def test_a_task_whose_code_will_not_arrive_is_refused() -> None:
    table = SlotTable(1)
    assert table.submit(1, True, blocked=True, code=1) == []
    assert table.refuse(1, "full") == [Settle(1, Failure.REFUSED, "full")]
    assert table.refuse(1, "full") == table.refuse(9, "full") == []


class AnyOrder(RuleBasedStateMachine):
    """In any order of events, each task settles once, no slot is overfilled, and no task waits while a slot is free."""

    @initialize(concurrency=st.integers(1, 4), warm=st.sampled_from([None, True, False]))
    def begin(self, concurrency: int, warm: bool | None) -> None:
        self.table = SlotTable(concurrency)
        self.concurrency = concurrency
        self.next = 0
        self.isolated: dict[int, bool] = {}
        self.code: dict[int, int] = {}  # the version that a task needs; 0 for any
        self.seen: dict[int, int] = {}  # the version that a slot has seen
        self.blocked: set[int] = set()
        self.waiting: list[int] = []
        self.settled: set[int] = set()
        self.processes: dict[int, bool] = {}  # number -> shared
        self.killed: set[int] = set()
        self.inside: dict[int, set[int]] = {}  # what slots have begun
        self.ahead: dict[int, list[int]] = {}  # what they were given and have not begun; at first all that is isolated
        self.early: set[int] = set()
        self.over = False  # no process can be made any longer
        if warm is not None:
            self.apply(self.table.warm(warm))

    def apply(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, Fork):
                assert not self.over
                assert command.slot not in self.processes
                self.processes[command.slot] = command.shared
                self.inside[command.slot] = set()
                self.ahead[command.slot] = []
            elif isinstance(command, Start):
                assert command.task not in self.settled | self.blocked | self.given()
                assert self.processes[command.slot] != self.isolated[command.task]
                assert command.slot not in self.killed
                assert command.task == self.waiting.pop(0)  # first come first served
                if code := self.code[command.task]:
                    assert self.seen.setdefault(command.slot, code) == code, "no slot sees two versions"
                if self.isolated[command.task]:
                    self.ahead[command.slot].append(command.task)
                else:
                    self.inside[command.slot].add(command.task)
            elif isinstance(command, Reclaim):
                self.take_back(command.slot)
                self.apply(self.table.dispatch())
            elif isinstance(command, Kill):
                assert command.slot in self.processes
                self.killed.add(command.slot)
            else:
                self.settle(command.task)

    def settle(self, task: int) -> None:
        assert task not in self.settled
        self.settled.add(task)
        self.blocked.discard(task)
        if task in self.waiting:
            self.waiting.remove(task)

    def take_back(self, slot: int) -> None:
        tasks, self.ahead[slot] = self.ahead[slot], []
        self.waiting[:0] = tasks
        self.table.reclaimed(slot, tasks)

    def draw(self, slot: int) -> None:
        if not self.inside[slot] and self.ahead[slot]:
            self.inside[slot].add(self.ahead[slot].pop(0))

    def given(self) -> set[int]:
        return set().union(*self.inside.values(), *self.ahead.values()) - self.settled

    def busy(self) -> int:
        tasks = [{*self.inside[slot], *self.ahead[slot][:1]} - self.settled for slot in self.processes]
        return sum(
            len(live) if shared else min(len(live), 1)
            for live, shared in zip(tasks, self.processes.values(), strict=True)
        )

    @rule(isolated=st.booleans(), blocked=st.booleans(), code=st.sampled_from([0, 1, 1, 2, 3]))
    def submit(self, isolated: bool, blocked: bool, code: int) -> None:
        self.next += 1
        task = self.next
        self.isolated[task] = isolated
        self.code[task] = code
        if task not in self.early:
            (self.blocked.add if blocked else self.waiting.append)(task)
        self.apply(self.table.submit(task, isolated, blocked, code))
        assert (task in self.early) <= (task in self.settled)

    @rule(data=st.data())
    def submit_again(self, data: st.DataObject) -> None:
        known = sorted(self.blocked | set(self.waiting) | self.given())
        if known:
            assert self.table.submit(data.draw(st.sampled_from(known)), True) == []

    @precondition(lambda self: self.blocked)
    @rule(data=st.data())
    def unblock(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(sorted(self.blocked)))
        self.blocked.discard(task)
        self.waiting.append(task)
        self.apply(self.table.unblock(task))

    @precondition(lambda self: self.blocked)
    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(sorted(self.blocked)))
        self.apply(self.table.refuse(task, "no room"))
        assert task in self.settled

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        task = data.draw(st.integers(1, self.next + 2))
        known = task in self.given() or task in self.waiting or task in self.blocked
        if task > self.next:
            self.early.add(task)
        if task in self.table.running:
            self.take_back(self.table.running[task].number)
        self.apply(self.table.cancel(task))
        assert not known or task in self.settled

    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        task = data.draw(st.integers(1, self.next + 1))
        if task in self.table.running:
            self.take_back(self.table.running[task].number)
        running = task in self.given()
        self.apply(self.table.expire(task, "late"))
        self.apply(self.table.dispatch())
        assert not running or task in self.settled

    @rule(data=st.data(), seconds=st.sampled_from([None, 1e-5, 5e-4, 1.0]), draws=st.booleans())
    def finish(self, data: st.DataObject, seconds: float | None, draws: bool) -> None:
        inside = [(slot, task) for slot, tasks in self.inside.items() for task in tasks]
        if not inside:
            return
        slot, task = data.draw(st.sampled_from(sorted(inside)))
        if task in self.table.running:
            assert self.table.running[task].number == slot
            self.settle(task)
        self.inside[slot].discard(task)
        if draws:
            self.draw(slot)
        self.apply(self.table.finished(slot, task, seconds))

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        self.draw(data.draw(st.sampled_from(sorted(self.processes))))

    @rule(count=st.integers(0, 3))
    def recall(self, count: int) -> None:
        given = self.table.recall(count)
        assert len(given) == min(count, len(self.waiting))
        for task in given:
            assert task == self.waiting.pop()
            self.settle(task)  # here, that is; another node may have it now

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), how=st.sampled_from(["died", "refused", "retire"]))
    def end(self, data: st.DataObject, how: str) -> None:
        slot = data.draw(st.sampled_from(sorted(self.processes)))
        if slot in self.table.slots:
            self.take_back(slot)
        if how != "retire":
            del self.processes[slot], self.inside[slot], self.ahead[slot]
            self.killed.discard(slot)
            self.apply(getattr(self.table, how)(slot, "x"))
        else:
            self.apply(self.table.retire(slot))

    @precondition(lambda self: not self.killed)
    @rule(data=st.data())
    def all_end(self, data: st.DataObject) -> None:
        """The fork server dies, and with it some slots and the tasks that they have begun."""
        made = {slot for slot in self.processes if data.draw(st.booleans())}
        for slot in self.processes:
            self.take_back(slot)
        for slot in reversed(list(self.processes)):
            if slot not in made:  # what we took to be begun was not
                self.waiting[:0] = [task for task in self.table.slots[slot].tasks if task not in self.settled]
        self.processes, self.inside, self.ahead = {}, {}, {}
        self.apply(self.table.all_ended(made, "the fork server ended"))
        self.apply(self.table.dispatch())
        assert all(slot > max(made, default=0) for slot in self.table.slots)

    @rule()
    def nothing_can_be_made(self) -> None:
        """From then on waiting and new tasks are refused; running ones continue."""
        waiting = {*self.waiting, *self.blocked}
        self.apply(self.table.give_up("no memory"))
        assert waiting <= self.settled
        self.over = True

    @invariant()
    def is_sound(self) -> None:
        given, busy = self.given(), self.busy()
        assert busy <= self.concurrency
        assert not self.waiting or busy == self.concurrency
        assert set(self.table.running) == given
        for slot, tasks in self.inside.items():
            assert self.processes[slot] or len(tasks) <= 1
            assert slot not in self.killed or not tasks & given
            # Nothing lies ahead in one slot while another is idle.
            assert busy == self.concurrency or not tasks & given or not self.ahead[slot]
        usable = [slot for slot in self.processes if slot in self.table.slots and not self.table.slots[slot].retired]
        assert sum(not self.processes[slot] for slot in usable) <= self.concurrency
        assert sum(self.processes[slot] for slot in usable) <= 1


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = examples(100, stateful_step_count=40)


@pytest.mark.parametrize(("seconds", "count"), [(0.08, 0), (1.9, 0), (2.1, 1), (5.9, 1), (6.1, 2)])
def test_no_task_counts_as_soon_that_waits_behind_a_long_one(seconds: float, count: int) -> None:
    """Half of a running task is still to come, on average."""
    table = SlotTable(1)
    table.mean = 4.0
    assert table.soon(seconds, 1) == count
