"""Tasks that have begun are reported once and timed, and slots are asked whether they still have theirs."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator

import pytest

from skyward.core.protocol.messages import Inquire, Message, Run
from skyward.core.protocol.wire import Role, Wire
from skyward.worker.output import SlotOutput
from skyward.worker.slot_processes import SlotProcess
from skyward.worker.slot_table import SlotTable
from skyward.worker.task_progress import PendingTask, TaskProgress
from skyward.worker.tickets import Tickets
from skyward.worker.wire_socket import WireSocket
from tests.worker.helpers import run_until


class Node:
    """One isolated slot with real sockets and pipes; the test is the slot."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.table = SlotTable(1)
        self.tasks: dict[int, PendingTask] = {}
        self.reported: list[tuple[list[int], list[int]]] = []
        self.expired: list[tuple[int, float]] = []
        ours, self.sock = socket.socketpair()
        self.sock.setblocking(False)
        self.wire = Wire.opened(Role.AGENT)
        link = WireSocket(
            self.loop, ours, Wire.opened(Role.OWNER, fifo=True), lambda _: None, lambda _: None, eager=True
        )
        (out, self.out), (err, self.err) = os.pipe(), os.pipe()
        self.tickets, write = os.pipe()
        output = SlotOutput(self.loop, (out, err), lambda *_: None)
        self.process = SlotProcess(link, output, Tickets(os.dup(self.tickets), write))
        self.process.up = True
        self.process.seat = 7
        self.processes = {1: self.process}
        self.progress = TaskProgress(
            self.loop,
            self.table,
            self.processes,
            self.tasks,
            lambda *begun: self.reported.append(begun),
            lambda *expired: self.expired.append(expired),
        )

    def submit(self, task: int, timeout: float | None = None) -> None:
        """Hand a task to the slot."""
        pending = self.tasks[task] = PendingTask(
            Run(task=task, isolated=True, timeout=timeout, threads=None, blobs={}), [b"head"]
        )
        pending.mark = task
        self.table.submit(task, True)
        self.process.tickets.add(task)
        self.process.hand_over()
        self.progress.began(task)

    def heard(self) -> list[Message]:
        """Read what was sent to the slot."""
        try:
            return [received.message for received in self.wire.receive_data(self.sock.recv(1 << 16))]
        except BlockingIOError:
            return []

    def until(self, condition: Callable[[], object]) -> None:
        run_until(self.loop, condition)

    def close(self) -> None:
        self.progress.close()
        self.process.close()
        self.sock.close()
        for fd in (self.out, self.err, self.tickets):
            os.close(fd)
        self.loop.close()


@pytest.fixture
def node() -> Iterator[Node]:
    it = Node()
    yield it
    it.close()


def test_a_task_is_reported_once_when_its_ticket_was_drawn(node: Node) -> None:
    node.submit(1)
    node.until(lambda: node.progress._last_roll_call)
    assert node.reported == [], "the slot has not begun it"
    os.read(node.tickets, 8)
    node.until(lambda: node.reported)
    assert node.reported == [([1], [7])]
    assert node.tasks[1].buffers == (), "they are not needed again"
    before = node.progress._last_roll_call
    node.until(lambda: node.progress._last_roll_call > before)
    assert node.reported == [([1], [7])]


def test_a_slot_is_asked_for_what_it_had_at_two_roll_calls(node: Node) -> None:
    node.submit(1)
    heard: list[Message] = []
    node.until(lambda: heard.extend(node.heard()) or heard)
    assert heard == [Inquire([1])]
    assert node.progress.lost(1, node.process, [1]) == [1]
    assert node.progress.lost(1, node.process, [1]) == [], "that was not asked"


def test_a_task_that_was_handed_over_again_is_not_lost(node: Node) -> None:
    node.submit(1)
    node.until(node.heard)
    node.tasks[1].mark = 7
    assert node.progress.lost(1, node.process, [1]) == []
    assert node.progress.lost(2, node.process, [1]) == [], "a slot that is gone"


def test_a_task_that_has_begun_may_run_for_so_long_and_no_longer(node: Node) -> None:
    node.submit(1, timeout=0.01)
    node.until(lambda: node.expired)
    assert node.expired == [(1, 0.01)]


def test_a_task_that_was_reclaimed_is_not_timed_until_it_begins_again(node: Node) -> None:
    node.submit(1, timeout=60.0)
    node.progress.reclaimed([1, 2])
    assert node.tasks[1].timer is None
    assert node.progress.punctual() == 0, "it does not run"
    node.progress.began(1)
    assert node.tasks[1].timer is not None
    assert node.progress.punctual() == 1
    node.tasks[1].stop_timer()
