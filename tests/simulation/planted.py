"""Faults of this project's past, to be planted again: whether the simulation, which knows none of them, finds each."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from skyward.core.code.local_code import CodeVersion, LocalCode
from skyward.core.machines.fleet import Fleet
from skyward.core.machines.order_book import OrderBook
from skyward.core.machines.purse import Purse
from skyward.core.nodes.agent_link import AgentLink
from skyward.core.protocol import compression
from skyward.core.protocol.mailbox import Inbox, Outbox
from skyward.core.protocol.wire import Wire
from skyward.core.resume.journal import Journal
from skyward.core.resume.plan import CallPlan
from skyward.core.tasks import runner
from skyward.core.tasks.kept_calls import KeptCalls
from skyward.core.tasks.runner import TaskRunner
from skyward.core.tasks.schedule import Schedule
from skyward.core.tasks.schedule_events import Recall
from skyward.worker import slot_processes, slot_table, tickets
from skyward.worker.forkserver.seating import Seating
from skyward.worker.held_answers import HeldAnswers

__all__ = ["FAULTS"]

Plant = Callable[[pytest.MonkeyPatch], None]
FAULTS: dict[str, Plant] = {}


def plant(function: Plant) -> Plant:
    FAULTS[function.__name__] = function
    return function


@plant
def tickets_in_the_order_of_arrival(patch: pytest.MonkeyPatch) -> None:
    """A slot took tasks to arrive in the order of their tickets, while small messages overtook large ones."""

    def claim(self: tickets.Claims, task: int) -> bool:
        with contextlib.suppress(BlockingIOError, struct.error):
            return bool(struct.unpack("!Q", os.read(self._fd, 8))[0] == task)
        return False

    class Overtaking:
        @staticmethod
        def opened(role: Any, **_: Any) -> Wire:
            return Wire.opened(role)

    patch.setattr(tickets.Claims, "claim", claim)
    patch.setattr(slot_processes, "Wire", Overtaking)


@plant
def a_lost_goodbye(patch: pytest.MonkeyPatch) -> None:
    """The goodbye stayed behind data that waited, and the connection was closed before it."""

    def say_goodbye(self: AgentLink) -> bool:
        self.channel.close()
        return True

    patch.setattr(AgentLink, "say_goodbye", say_goodbye)


@plant
def a_link_that_forgets(patch: pytest.MonkeyPatch) -> None:
    """What was on its way when a link broke was not sent again over the next one."""
    patch.setattr(Outbox, "repeat", lambda *_: None)


@plant
def messages_taken_twice(patch: pytest.MonkeyPatch) -> None:
    """A message that was sent again counted as new."""

    def accept(self: Inbox, number: int) -> bool:
        self.received = max(self.received, number)
        return True

    patch.setattr(Inbox, "accept", accept)


@plant
def tasks_taken_back_and_forgotten(patch: pytest.MonkeyPatch) -> None:
    """Of several tasks that were taken back from a slot the last was lost."""
    reclaim = tickets.Tickets.reclaim
    patch.setattr(tickets.Tickets, "reclaim", lambda self: reclaim(self)[:-1])


@plant
def a_refusal_that_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    """When another order brought a machine, why one was refused was forgotten, and nobody could say it."""
    patch.setattr(OrderBook, "note", lambda *_, **__: None)


@plant
def a_rate_of_zero(patch: pytest.MonkeyPatch) -> None:
    """Whether compression pays was computed by dividing by the line's rate; one that stands still has a rate of 0."""

    def pays(sample: compression.Sample, rate: float | None) -> bool:
        if rate is None or sample.ratio < 1.2:
            return False
        return 1 / sample.speed + 1 / (sample.ratio * rate) < 0.9 / rate

    patch.setattr(compression, "pays", pays)
    patch.setattr(Wire, "_packed", lambda _, packer, message, body: packer.pack(message, body))


@plant
def tasks_that_nobody_recalls(patch: pytest.MonkeyPatch) -> None:
    """Tasks that waited at a busy node stayed there while another had nothing to do."""
    patch.setitem(TaskRunner._COMMANDS, Recall, lambda *_: None)


@plant
def a_clock_that_is_read_twice(patch: pytest.MonkeyPatch) -> None:
    """What fell due while the fleet decided was neither done nor waited for: the clock was read again afterwards."""
    next_tick = Fleet.next_tick
    patch.setattr(Fleet, "next_tick", lambda self, _: next_tick(self, asyncio.get_running_loop().time()))


@plant
def a_group_that_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A group was forgotten while a task of it waited for its node, whose end then took another's turn."""
    enqueue = Schedule._enqueue

    def forget(self: Schedule, task: Any, commands: list[Any], *, first: bool) -> None:
        enqueue(self, task, commands, first=first)
        group = task.group
        if task.pinned is not None and task.node is None and not group.waiting and not group.out:
            group.tasks = -(10**9)
            self._groups.pop(group.name, None)
            self._turns.pop(group.name, None)

    def turn(self: Schedule, group: Any) -> None:
        while group.waiting and group.waiting[0].over:
            group.waiting.popleft()
        if group.waiting and group.may_send(self._slots):
            self._turns.setdefault(group.name, group)
            return
        self._turns.pop(group.name, None)
        if not group.tasks:
            self._groups.pop(group.name, None)

    patch.setattr(Schedule, "_enqueue", forget)
    patch.setattr(Schedule, "_turn", turn)


@plant
def answers_before_files(patch: pytest.MonkeyPatch) -> None:
    """What had ended while files were being saved counted as saved with them."""
    hold = HeldAnswers.hold

    def early(self: HeldAnswers, task: int, group: int | None, release: Any) -> None:
        if self._saving:
            self._saving[task] = group, release
        else:
            hold(self, task, group, release)

    patch.setattr(HeldAnswers, "hold", early)


@plant
def equal_calls_at_a_time(patch: pytest.MonkeyPatch) -> None:
    """A call was computed although an equal one was."""

    def enter(self: KeptCalls, key: Any, _: Any) -> bool:
        self._open.setdefault(key, deque())
        return True

    leave = KeptCalls.leave
    patch.setattr(KeptCalls, "_enter", enter)
    patch.setattr(KeptCalls, "leave", lambda self, key: leave(self, key) if key in self._open else None)


@plant
def money_that_is_spent_twice(patch: pytest.MonkeyPatch) -> None:
    """A machine that was gone had cost nothing any more, and the next was bought with its share."""
    patch.setattr(Purse, "gone", lambda *_: None)


@plant
def results_that_are_stored_late(patch: pytest.MonkeyPatch) -> None:
    """A result was handed over, and stored only with the next one."""
    keep, late = Journal.keep, []

    def keep_others(self: Journal, computed: Any) -> None:
        keep(self, [each for journal, each in late if journal is self])
        late[:] = [(self, each) for each in computed]

    patch.setattr(Journal, "keep", keep_others)


@plant
def known_results_come_first(patch: pytest.MonkeyPatch) -> None:
    """Of a batch of which some results were known, these came before the others, whatever their places were."""
    patch.setattr(CallPlan, "merge", lambda self, computed: [*computed, *self.known.values()])


@plant
def gpus_of_a_slot_that_lives(patch: pytest.MonkeyPatch) -> None:
    """The GPUs of a slot that was killed were given to the next one at once, while the kernel still cleaned up."""
    patch.setattr(Seating, "killed", Seating.release)


@plant
def modules_that_only_the_next_task_has(patch: pytest.MonkeyPatch) -> None:
    """What was imported during a call was sent with the first task after that; later ones had the call's version."""

    def of_job(self: LocalCode, pinned: CodeVersion | None, _: bytes) -> CodeVersion | None:
        return pinned if pinned is not None and len(self._program.modules) == self._modules else self.now()

    patch.setattr(LocalCode, "of_job", of_job)


@plant
def slots_that_keep_old_code(patch: pytest.MonkeyPatch) -> None:
    """A slot that had imported one version of the user's code was given tasks of another."""
    patch.setattr(slot_table, "_fits", lambda *_: True)


@plant
def code_that_only_one_node_gets(patch: pytest.MonkeyPatch) -> None:
    """A version of the code was sent once, and not to nodes that needed it later."""
    send, sent = runner._send_code, set()

    def once(node: Any, code: Any, distributor: Any) -> tuple[int, int]:
        if (id(distributor), code.number) in sent:
            return code.number, code.since
        sent.add((id(distributor), code.number))
        return send(node, code, distributor)

    patch.setattr(runner, "_send_code", once)
