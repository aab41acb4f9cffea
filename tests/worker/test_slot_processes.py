"""Slot processes are connected, heard out when they end, and replaced with their fork server."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

import pytest

from skyward.core.protocol.framing import read_frame
from skyward.core.protocol.messages import Done, Message, Output, Ready
from skyward.core.protocol.wire import Received, Role, Wire
from skyward.worker import slot_processes
from skyward.worker.agent_system import AgentSystem
from skyward.worker.forkserver.client import fork_config
from skyward.worker.forkserver.launch import ForkServerProcess
from skyward.worker.forkserver.liveness import LIMITS
from skyward.worker.forkserver.protocol import (
    EXITED,
    FAILED,
    FILES,
    FORK_ISOLATED,
    KILL,
    PEAK,
    REPORT,
    REQUEST,
    UP,
)
from skyward.worker.owner_traffic import OwnerTraffic
from skyward.worker.slot_processes import SlotProcess, SlotProcesses
from skyward.worker.slot_table import Command, Fork, Kill, Settle, SlotTable
from tests.worker.helpers import run_until, setup


class Server:
    """A process that can die, and the test in its place at the other end of its socket."""

    def __init__(self) -> None:
        self.slots: dict[int, tuple[int, ...]] = {}
        ours, self.theirs = socket.socketpair()
        self.theirs.setblocking(False)
        self.process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self.handle = ForkServerProcess(self.process, ours, cast("IO[bytes]", self.process.stdout))
        self.requests: list[tuple[int, int]] = []
        self._configured = False

    def read(self) -> list[tuple[int, int]]:
        """All requests so far."""
        while True:
            try:
                if not self._configured:
                    read_frame(self.theirs.recv, limit=1 << 20)
                    self._configured = True
                data, fds, _, _ = socket.recv_fds(self.theirs, REQUEST.size, FILES)
            except OSError:  # nothing more for now, or its client is gone
                return self.requests
            if not data:
                return self.requests
            what, number = REQUEST.unpack(data)
            self.requests.append((what, number))
            if fds:
                self.slots[number] = tuple(fds)

    def report(self, what: int, number: int = 0, value: int = 0) -> None:
        self.theirs.send(REPORT.pack(what, number, value))

    def close_slot(self, number: int) -> None:
        for fd in self.slots.pop(number):
            os.close(fd)

    def die(self) -> None:
        self.process.kill()
        self.theirs.close()

    def exit(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.theirs.close()

    def close(self) -> None:
        if self.theirs.fileno() >= 0:
            self.read()
        for number in list(self.slots):
            self.close_slot(number)
        self.handle.kill()
        self.theirs.close()
        assert self.process.stdin is not None
        self.process.stdin.close()


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


class Node:
    """A table of two slots, their processes, and what is said of them, in its order."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.told: list[Any] = []
        self.servers: list[Server] = []
        self.on_message: Callable[[int], object] = lambda _: None
        self.table = SlotTable(2)
        self.owner = OwnerTraffic(self.post, lambda: None)
        settings = setup(concurrency=2)
        config = fork_config(settings, 1, {}, {"limits": list(LIMITS)})
        self.pipes = 100  # that can still be made
        system = AgentSystem(start_server=self.start, pipe=self.pipe)
        self.processes = SlotProcesses(
            self.loop, settings, config, None, system, self.table, self.owner, self.hear, self.buried, self.apply
        )

    @property
    def server(self) -> Server:
        return self.servers[-1]

    def start(self, _: Mapping[str, str]) -> ForkServerProcess:
        self.servers.append(Server())
        return self.server.handle

    def pipe(self) -> tuple[int, int]:
        if not self.pipes:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        self.pipes -= 1
        return os.pipe()

    def post(self, message: Message, buffers: Sequence[Any], _: bool) -> int:
        self.told.append((message, *map(bytes, buffers)) if buffers else message)
        return len(self.told)

    def hear(self, number: int, received: Received) -> None:
        self.told.append((number, received.message))
        self.on_message(number)

    def buried(self, number: int, process: SlotProcess) -> None:
        assert self.processes.by_number[number] is process
        self.told.append(f"slot {number} is buried")

    def apply(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, Fork):
                self.processes.fork(command.slot, command.shared)
            elif isinstance(command, Kill):
                self.processes.kill(command.slot)
            elif isinstance(command, Settle):
                self.told.append(command)

    def until(self, condition: Callable[[], object]) -> None:
        run_until(self.loop, condition)

    def make_slots(self) -> None:
        """Let both slots be made and say that they are up."""
        self.server.report(UP)
        self.until(lambda: len(self.server.read()) == 2)
        for number in (1, 2):
            self.processes.started(number, up=True)

    def close(self) -> None:
        self.processes.close()
        for process in self.processes.by_number.values():
            process.close()
        for server in self.servers:
            server.close()
        self.loop.close()


@pytest.fixture
def node() -> Iterator[Node]:
    it = Node()
    yield it
    it.close()


def test_a_node_is_ready_when_the_last_slot_that_was_made_ahead_is_up(node: Node) -> None:
    node.server.report(UP)
    node.until(lambda: len(node.server.read()) == 2)
    assert node.server.requests == [(FORK_ISOLATED, 1), (FORK_ISOLATED, 2)]
    node.processes.started(2, up=True)
    assert node.told == []
    node.processes.started(1, up=True)
    assert node.told == [Ready(2, None)]


def test_what_a_slot_said_and_printed_last_comes_before_the_news_of_its_death(node: Node) -> None:
    node.make_slots()
    node.table.submit(7, True)
    slot = node.table.running[7].number
    sock, out, _, _ = node.server.slots.pop(slot)
    wire = Wire.opened(Role.AGENT)
    wire.send(Done(7, 0.5, {}), [b"result"])
    with socket.socket(fileno=sock) as connection:
        connection.sendall(b"".join(wire.data_to_send()))
        os.write(out, b"last words")
        os.close(out)
        node.server.report(PEAK, slot, 2000)
        node.server.report(EXITED, slot, signal.SIGKILL)
        node.told.clear()
        node.until(lambda: len(node.told) == 4)
    heard, buried, printed, settled = node.told
    assert heard[0] == slot
    assert buried == f"slot {slot} is buried"
    assert printed == (Output(1, False), b"last words")
    assert settled.task == 7
    assert "used 2 MB" in settled.detail
    assert slot not in node.processes.by_number


def test_the_reason_for_which_a_slot_was_killed_is_the_one_its_task_fails_with(node: Node) -> None:
    node.make_slots()
    node.table.submit(7, True)
    slot = node.table.running[7].number
    node.processes.kill(slot, "it was of no use")
    node.processes.kill(slot, "nor was it later")
    node.until(lambda: (KILL, slot) in node.server.read())
    node.server.report(EXITED, slot, signal.SIGKILL)
    node.until(lambda: isinstance(node.told[-1], Settle))
    assert node.told[-1].detail == "it was of no use"


def test_a_slot_that_hangs_up_and_lives_on_is_killed(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_processes, "_HUNG_UP", 0.01)
    node.make_slots()
    node.table.submit(7, True)
    slot = node.table.running[7].number
    node.server.close_slot(slot)
    node.until(lambda: (KILL, slot) in node.server.read())
    assert (KILL, 3 - slot) not in node.server.requests
    assert "closed its connection" in (node.processes.by_number[slot].lost or "")


def test_a_slot_that_can_not_be_forked_is_buried_and_its_task_refused(node: Node) -> None:
    node.server.report(UP)
    node.until(lambda: len(node.server.read()) == 2)
    node.table.submit(7, True)
    slot = node.table.running[7].number
    node.server.report(FAILED, slot, errno.EAGAIN)
    node.until(lambda: slot not in node.processes.by_number)
    assert node.told[0] == f"slot {slot} is buried"
    assert node.told[1].detail.startswith("can't fork a slot: ")
    node.processes.started(3 - slot, up=True)
    assert node.told[2] == Ready(2, None), "the one that failed is not waited for"


def test_a_slot_for_which_a_pipe_is_lacking_leaves_no_file_open(node: Node) -> None:
    node.make_slots()
    before = open_files()
    node.pipes = 2
    node.apply(node.table.submit(7, True))
    slot = node.table.running[7].number
    node.processes.fork(slot + 10, False)
    node.until(lambda: node.pipes == 0)
    node.loop.run_until_complete(asyncio.sleep(0))
    assert open_files() == before


def test_a_slot_that_is_asked_for_as_the_fork_server_ends_is_forgotten_with_it(node: Node) -> None:
    node.make_slots()
    wire = Wire.opened(Role.AGENT)
    wire.send(Ready(1, None))
    os.write(node.server.slots[1][0], b"".join(wire.data_to_send()))
    node.loop.remove_reader(node.processes.by_number[1].link._fd)  # so nobody reads it before the slot is buried
    node.on_message = lambda _: node.processes.fork(3, False)
    node.told.clear()
    node.server.die()
    node.until(lambda: len(node.servers) == 2)
    assert node.processes.by_number == {}
    assert node.told == [(1, Ready(1, None)), "slot 1 is buried", "slot 2 is buried"]


def test_tasks_in_slots_that_were_never_made_survive_their_fork_server(node: Node) -> None:
    node.make_slots()
    node.table.submit(7, True)
    node.server.die()
    node.until(lambda: len(node.servers) == 2)
    assert [command.task for command in node.told if isinstance(command, Settle)] == [7]
    node.told.clear()
    node.apply(node.table.submit(8, True))
    node.server.die()
    node.until(lambda: len(node.servers) == 3)
    assert node.told == [f"slot {node.table.running[8].number - 1} is buried"]
    assert node.table.running[8].number in node.processes.by_number, "it is to be made by the third"


def test_a_fork_server_that_ends_by_itself_before_it_is_up_is_not_replaced(node: Node) -> None:
    node.server.exit()
    node.until(lambda: node.told)
    (ready,) = node.told
    assert ready == Ready(0, "the fork server ended with status 0")
    assert [command.detail for command in node.table.submit(7, True)] == [ready.error]  # type: ignore[union-attr]
