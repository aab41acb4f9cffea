"""The processes of slots: made by the fork server, connected by a socket and pipes, and buried when they have ended.

Which slots there are is decided in slot_table.py. This makes and kills them, and reports to the table how they end.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from skyward.core.protocol.messages import Ready, Setup
from skyward.core.protocol.roll_call import RollCall
from skyward.core.protocol.wire import Received, Role, Wire
from skyward.worker import exit_status
from skyward.worker.agent_system import AgentSystem
from skyward.worker.forkserver.client import ForkServerClient
from skyward.worker.forkserver.launch import ForkServerProcess
from skyward.worker.forkserver.protocol import EXITED, FAILED, FORKED, PEAK, SEATED, UP
from skyward.worker.forkserver.restarts import Ended, RestartPolicy
from skyward.worker.output import SlotOutput
from skyward.worker.owner_traffic import OwnerTraffic
from skyward.worker.slot_table import Command, Fork, SlotTable
from skyward.worker.tickets import Tickets
from skyward.worker.wire_socket import WireSocket

__all__ = ["SlotProcess", "SlotProcesses"]

_HUNG_UP = 1.0  # seconds that a slot may take to end after its connection has closed


class SlotProcess:
    """The agent's ends of a slot's socket and pipes.

    Parameters
    ----------
    link
        The socket.
    output
        The pipes that the slot prints to.
    tickets
        The pipe of tickets.
    """

    __slots__ = ("link", "lost", "output", "peak", "pid", "roll", "seat", "tickets", "up")

    def __init__(self, link: WireSocket, output: SlotOutput, tickets: Tickets) -> None:
        self.link = link
        self.output = output
        self.tickets = tickets
        self.pid: int | None = None
        self.peak: int | None = None  # the most memory that it has used, in bytes, if it was killed
        self.seat = 0  # its number for tasks, as in `Done`; 0 if it is not known, or differs from task to task
        self.up = False
        self.roll = RollCall()
        self.lost: str | None = None  # why the agent killed it, if it did

    def hand_over(self) -> None:
        """Send the slot what was queued for it."""
        self.tickets.issue()
        self.link.wake()

    def close(self) -> None:
        """Close the socket and the pipes."""
        self.output.close()
        self.link.close()
        self.tickets.close()


class SlotProcesses:
    """All slot processes of a node, and the fork server that makes them.

    Parameters
    ----------
    loop
        The agent's loop.
    setup, config
        How tasks run here, and what follows for the fork server: see `fork_config`.
    server
        A fork server that waits for its configuration; None to start one.
    system
        How fork servers are started, and whether the kernel's OOM killer has struck.
    table
        Hears how slots end.
    owner
        Gets what slots print, and the news that the node is ready or has given up.
    hear
        Called with a slot's number and each message of it.
    buried
        Called with a slot that has ended, by number, after its last message and before its files are closed.
    apply
        Carries out what the table answers.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        setup: Setup,
        config: dict[str, Any],
        server: ForkServerProcess | None,
        system: AgentSystem,
        table: SlotTable,
        owner: OwnerTraffic,
        hear: Callable[[int, Received], None],
        buried: Callable[[int, SlotProcess], None],
        apply: Callable[[list[Command]], None],
    ) -> None:
        self.by_number: dict[int, SlotProcess] = {}
        """The processes that have not been buried, by the slot's number."""
        self._loop = loop
        self._setup = setup
        self._config = config
        self._start_server = system.start_server
        self._pipe = system.pipe
        self._oom = system.watch_memory()
        self._table = table
        self._owner = owner
        self._hear = hear
        self._buried = buried
        self._apply = apply
        self._warming: set[int | None] = set()  # slots that were made ahead and are not up yet
        self._announced = False  # to the owner, as ready
        self._restarts = RestartPolicy()
        self._fork_server = self._new_fork_server(server=server)

    def __repr__(self) -> str:
        return f"<SlotProcesses {sorted(self.by_number)} of {self._fork_server!r}>"

    # --- what the pool asks for ---

    def fork(self, number: int, shared: bool) -> None:
        """Make a slot: an isolated one, or the one that runs tasks in threads."""
        opened: list[int] = []
        try:
            ours, theirs = socket.socketpair()
            opened += (ours.detach(), theirs.detach())
            for _ in range(3):  # one by one: those before one that fails are closed
                opened += self._pipe()
            opened.append(os.dup(opened[6]))
        except OSError as error:
            for fd in opened:
                os.close(fd)
            self._loop.call_soon(self._refuse, number, f"can't make a slot: {error}")
            return
        sock, theirs_sock, out, theirs_out, err, theirs_err, read, write, theirs_read = opened
        self._fork_server.fork(number, shared, (theirs_sock, theirs_out, theirs_err, theirs_read))
        link = WireSocket(
            self._loop,
            socket.socket(fileno=sock),
            Wire.opened(Role.OWNER, fifo=True),  # tickets rely on it
            partial(self._hear, number),
            lambda _: self._hung_up(number),
            eager=True,
        )
        output = SlotOutput(self._loop, (out, err), self._owner.print)
        output.pause(self._owner.output_full)
        self.by_number[number] = SlotProcess(link, output, Tickets(read, write))

    def kill(self, number: int, reason: str | None = None) -> None:
        """Kill a slot and all that it started; its tasks fail for this reason, if it is given one."""
        if (process := self.by_number.get(number)) is not None and reason is not None:
            process.lost = process.lost or reason
        self._fork_server.kill(number)

    def started(self, number: int, up: bool) -> None:
        """A slot has said that it runs tasks from now on, or that it can't."""
        self.by_number[number].up = up
        self._warmed(number)

    def pause(self, paused: bool) -> None:
        """Stop or resume reading what slots print."""
        for process in self.by_number.values():
            process.output.pause(paused)

    async def end(self) -> None:
        """Let idle slots end in order, and kill the others."""
        for number, process in self.by_number.items():
            slot = self._table.slots.get(number)
            if slot is not None and slot.tasks:
                self._fork_server.kill(number)
            process.link.close()
        await self._fork_server.end(wait=3.0 if self._setup.around else 1.0)

    def close(self) -> None:
        """Kill all slots and the fork server, at once."""
        self._fork_server.kill_all()

    # --- the end of slots ---

    def _hung_up(self, number: int) -> None:
        """A slot has closed its connection: it is ending, or has closed its files and can't answer."""
        self._apply(self._table.retire(number))
        self._loop.call_later(_HUNG_UP, self._end_hung_up, number)

    def _end_hung_up(self, number: int) -> None:
        if number in self.by_number:
            self.kill(number, "it closed its connection to the agent, and was killed")

    def _refuse(self, number: int, detail: str) -> None:
        self._bury(number)
        self._apply(self._table.refused(number, detail))

    def _bury(self, number: int) -> SlotProcess | None:
        """Read what a dead slot sent last, and close its files."""
        process = self.by_number.get(number)
        self._warmed(number)
        if process is not None:
            process.link.drain()
            self._buried(number, process)
            process.close()
            del self.by_number[number]
        return process

    # --- the fork server ---

    def _new_fork_server(self, server: ForkServerProcess | None = None, delay: float | None = None) -> ForkServerClient:
        reported, ended, start = self._reported, self._fork_server_ended, self._start_server
        return ForkServerClient(self._loop, self._config, reported, ended, server, delay, start)

    def _reported(self, what: int, number: int, value: int) -> None:
        """Handle a report of the fork server: what, slot, value."""
        self._REPORTS[what](self, number, value)

    def _forked(self, number: int, pid: int) -> None:
        if process := self.by_number.get(number):
            process.pid = pid

    def _seated(self, number: int, seat: int) -> None:
        if process := self.by_number.get(number):
            process.seat = seat

    def _peaked(self, number: int, kilobytes: int) -> None:
        if process := self.by_number.get(number):
            process.peak = kilobytes * 1024

    def _exited(self, number: int, status: int) -> None:
        process = self._bury(number)
        peak = None if process is None else process.peak
        slots = self._setup.concurrency
        detail = exit_status.describe(status, self._oom.look(), peak, self._oom.limit(), slots)
        self._apply(self._table.died(number, (process and process.lost) or detail))

    def _fork_failed(self, number: int, code: int) -> None:
        self._refuse(number, f"can't fork a slot: {os.strerror(code)}")

    def _fork_server_up(self, *_: int) -> None:
        self._restarts.up(self._loop.time())
        commands = self._table.warm(self._setup.isolated)
        self._warming = {command.slot for command in commands if isinstance(command, Fork)}
        self._apply(commands)
        self._warmed(None)

    _REPORTS: ClassVar[dict[int, Callable[[SlotProcesses, int, int], None]]] = {
        FORKED: _forked,
        SEATED: _seated,
        PEAK: _peaked,
        EXITED: _exited,
        FAILED: _fork_failed,
        UP: _fork_server_up,
    }

    def _fork_server_ended(self, end: Ended) -> None:
        """The fork server has died, and all slots with it: replace it if that is likely to help."""
        delay = self._restarts.ended(end, self._loop.time(), self._announced)
        if end.hung and delay is not None:
            self._owner.warn(f"on {self._setup.node} {end.description}; its workers are replaced")
        buried = [(number, self._bury(number)) for number in list(self.by_number)]
        made = {number for number, process in buried if process is not None and process.up}
        while self.by_number:  # what a slot said last may have asked for another, which nobody makes any more
            self.by_number.popitem()[1].close()
        self._apply(self._table.all_ended(made, end.description))
        if delay is not None:
            self._fork_server = self._new_fork_server(delay=delay)
            self._apply(self._table.dispatch())
        else:  # by now the owner has an answer for all tasks that had begun
            self._owner.post(Ready(0, end.description))
            self._apply(self._table.give_up(end.description))

    def _warmed(self, number: int | None) -> None:
        """A slot that was made ahead is up, or never will be; with the last of them, the node is ready.

        Forking takes time, which should not count as a task's.
        """
        self._warming.discard(number)
        if self._restarts.is_up and not self._warming and not self._announced:
            self._announced = True  # the owner need not know of replaced fork servers
            self._owner.post(Ready(self._setup.concurrency, None))
