"""Drives the slots: does what `slots.Table` decides, with processes, sockets, pipes and timers.

Everything here happens on the agent's loop. No decision about which task runs where is taken in this module.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from skyward.core.messages import (
    Blob,
    Done,
    Failed,
    Kept,
    Message,
    Output,
    Ready,
    Recall,
    Returned,
    Run,
    Setup,
    Share,
    StreamClose,
    StreamData,
)
from skyward.core.shared import remove
from skyward.core.wire import Buffer, Filled, Received, Role, Wire
from skyward.worker import deaths, threads
from skyward.worker.bridge import Bridge
from skyward.worker.control import EXITED, FAILED, FORKED, UP
from skyward.worker.forks import Forks
from skyward.worker.link import Link
from skyward.worker.output import Outputs
from skyward.worker.owner import Quota
from skyward.worker.servers import Server
from skyward.worker.shelf import Results
from skyward.worker.slots import Command, Fork, Settle, Start, Table, TakeBack
from skyward.worker.store import Corrupt, Store
from skyward.worker.tickets import Tickets

__all__ = ["Crew"]

_OUTPUT_LIMIT = 4 * 1024 * 1024
_STREAM_LIMIT = 8 * 1024 * 1024
_REST = 0.0002  # seconds
_LONG = 3  # times the mean: a task that has run for so long may run on for any time
_SHORT = 0.02  # seconds after which that may be said


class _Call:
    """A task that has not been answered."""

    __slots__ = ("began", "buffers", "missing", "run", "timer")

    def __init__(self, run: Run, buffers: Sequence[Buffer]) -> None:
        self.run = run
        self.buffers = buffers
        self.missing: set[bytes] = set()
        self.began = 0.0
        self.timer: asyncio.TimerHandle | None = None

    def stop_timer(self) -> None:
        """It does not run (any more)."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class _Process:
    """Our ends of a slot: its socket and its pipes."""

    __slots__ = ("error", "link", "outputs", "pid", "tickets", "up")

    def __init__(self, link: Link, outputs: Outputs, tickets: Tickets) -> None:
        self.link = link
        self.outputs = outputs
        self.tickets = tickets
        self.pid: int | None = None
        self.up = False
        self.error: str | None = None  # why it could not begin

    def hand_over(self) -> None:
        """Let the slot have what was queued for it."""
        self.tickets.issue()
        self.link.wake()

    def close(self) -> None:
        """Let its files go."""
        self.outputs.close()
        self.link.close()
        self.tickets.close()


class Crew:
    """All slots of a node, and the tasks that wait for them.

    Parameters
    ----------
    loop
        The agent's loop.
    setup
        How tasks run here.
    cores
        Cores of the machine that we may use.
    folder
        A folder that only we can enter.
    post
        Sends a numbered message to the owner, perhaps a little later, and returns its number.
    server
        A fork server that waits, whose environment is ours.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        setup: Setup,
        cores: int,
        folder: str,
        post: Callable[[Message, Sequence[Buffer], bool], int],
        server: Server | None = None,
    ) -> None:
        self.setup = setup
        self.table = Table(setup.concurrency)
        self.store = Store()
        self.grew: Callable[[], None] = lambda: None  # told when a part of a blob came
        self._loop = loop
        self._send = post
        self._processes: dict[int, _Process] = {}
        self._calls: dict[int, _Call] = {}
        self._warming: set[int | None] = set()  # slots that were made ahead and are not up yet
        self._awaited: dict[bytes, set[int]] = {}  # blob that has not come -> tasks that need it
        self._printed = Quota(_OUTPUT_LIMIT)
        self._streamed = Quota(_STREAM_LIMIT)
        self._oom = deaths.OutOfMemory()
        self._said_full = self._up = self._announced = self._resting = False
        self._failed: str | None = None  # why there is no fork server
        self._bridge = Bridge(loop, f"{folder}/bridge.sock", self._post_stream)
        shelf = self.store.shelf() if setup.shares else None
        self._results = Results(shelf)
        self._config = _config(setup, cores, self._bridge.path, shelf)
        self._forks = Forks(loop, self._config, self._reported, self._forks_ended, server)

    def __repr__(self) -> str:
        return f"<Crew of {self.setup.node!r}: {self.table!r}>"

    # --- the owner's words ---

    def submit(self, run: Run, buffers: Sequence[Buffer]) -> None:
        """A task came."""
        if run.task in self._calls:
            return
        call = self._calls[run.task] = _Call(run, buffers)
        if run.blobs:
            self.store.use(run.blobs.values())
            call.missing = {digest for digest in run.blobs.values() if digest not in self.store}
            for digest in call.missing:
                self._awaited.setdefault(digest, set()).add(run.task)
        self._apply(self.table.submit(run.task, run.isolated, bool(call.missing)))

    def cancel(self, task: int) -> None:
        """The owner does not want it any more."""
        slot = self.table.running.get(task)
        if slot is not None:
            self._take_back(slot.number)
        self._apply(self.table.cancel(task))

    def give_back(self, wish: Recall) -> None:
        """Another node is idle: part with what this one will not begin soon."""
        for number in [number for number, slot in self.table.slots.items() if slot.ahead]:
            self._take_back(number)
        tasks = self.table.give_back(wish.most, self.table.soon(wish.within, self._in_time()))
        for task in tasks:
            self._release(task)
        self._post(Returned(tasks), ())
        self._apply(self.table.dispatch())

    def _in_time(self) -> int:
        """How many slots run a task that has not taken longer than tasks do here."""
        limit = self._loop.time() - max(_LONG * (self.table.mean or 0.0), _SHORT)
        return sum(self._calls[task].began > limit for task in self.table.running)

    def keep(self, blob: Blob, data: Buffer, peer: bool = False) -> None:
        """A part of a blob came, from the owner or from a peer."""
        try:
            whole = self.store.add(blob.digest, blob.size, blob.offset, data, peer=peer)
        except Corrupt as error:
            self._post(Kept(blob.digest, 0, str(error)), ())
            return
        finally:
            self.grew()
        if whole:
            self._kept(blob)

    def adopt(self, blob: Share) -> None:
        """A blob lies in a file of the owner's."""
        try:
            self.store.adopt(blob.digest, blob.path, blob.inode, blob.size)
        except OSError as error:  # the bytes themselves will come
            self._post(Kept(blob.digest, 0, str(error)), ())
        else:
            self._kept(blob)

    def forget(self, digests: list[bytes]) -> None:
        """The owner will not name these again."""
        self.store.forget(digests)

    def stream(self, message: StreamData | StreamClose, data: Filled | None) -> None:
        """Bytes for a slot."""
        self._bridge.receive(message, data)

    def acknowledged(self, received: int) -> None:
        """The owner has everything up to this number; what was held back may flow again."""
        self._printed.acknowledge(received)
        self._streamed.acknowledge(received)
        self._results.acknowledge(received)
        self._balance()

    async def end(self) -> None:
        """Let idle slots end in order, kill the others, remove all that is ours."""
        for number, process in self._processes.items():
            slot = self.table.slots.get(number)
            if slot is not None and slot.tasks:
                self._forks.kill(number)
            process.link.close()
        await self._forks.end(wait=3.0 if self.setup.around else 1.0)
        self.close()

    def close(self) -> None:
        """Remove all that is ours, at once."""
        self._forks.kill_all()
        self._bridge.close()
        self.store.close()

    # --- doing what the table says ---

    def _apply(self, commands: list[Command]) -> None:
        started: set[int] = set()
        for command in commands:
            if isinstance(command, Start):
                started.add(command.slot)
                self._start(command.task, command.slot)
            elif isinstance(command, Settle):
                self._settle(command)
            elif isinstance(command, Fork):
                self._fork(command.slot, command.shared)
            elif isinstance(command, TakeBack):
                self._take_back(command.slot)
                self._apply(self.table.dispatch())
            else:
                self._forks.kill(command.slot)
        for number in started:
            if process := self._processes.get(number):
                process.hand_over()

    def _start(self, task: int, number: int) -> None:
        call = self._calls[task]
        process = self._processes.get(number)
        if process is None:
            return  # it could not be made, and `refused` is on its way
        run, buffers = call.run, call.buffers
        if run.blobs:
            run, buffers = self._place(run, buffers)
        ahead = self.table.slots[number].first != task
        if ahead:
            process.tickets.add(task)
        else:
            call.buffers = ()  # the wire has them now, and lets them go when they are written
            if process.up:
                self._begins(task)
        process.link.queue(run, buffers, number=int(ahead))

    def _take_back(self, number: int) -> None:
        """Take back the tasks that a slot has not begun."""
        process, slot = self._processes.get(number), self.table.slots.get(number)
        if process is None or slot is None or slot.shared or not slot.tasks:
            return
        tasks = process.tickets.take_back()
        for task in tasks:
            self._calls[task].stop_timer()
        self.table.took_back(number, tasks)

    def _place(self, run: Run, buffers: Sequence[Buffer]) -> tuple[Run, Sequence[Buffer]]:
        """Put paths in the place of digests; a blob without a file goes along as a buffer."""
        rest = iter(buffers)
        placed: list[Buffer] = [next(rest)]
        paths: dict[int, bytes] = {}
        for index in range(len(buffers) - 1 + len(run.blobs)):
            if index not in run.blobs:
                placed.append(next(rest))
                continue
            found = self.store.find(run.blobs[index])
            if isinstance(found, str):
                paths[index] = os.fsencode(found)
            else:
                placed.append(found)
        return run._replace(blobs=paths), placed

    def _begins(self, task: int) -> None:
        """Its slot is taken to run it from now on."""
        call = self._calls[task]
        call.began = self._loop.time()
        timeout = call.run.timeout
        if timeout is not None and call.timer is None:
            call.timer = self._loop.call_later(timeout, self._expire, task, timeout)

    def _expire(self, task: int, timeout: float) -> None:
        if task in self.table.running:
            self._take_back(self.table.running[task].number)
        expired = self.table.expire(task, f"ran longer than its limit of {timeout:g} s")
        self._apply([*expired, *self.table.dispatch()])  # it may not have begun after all

    def _settle(self, command: Settle) -> None:
        call = self._calls[command.task]
        seconds = self._loop.time() - call.began if call.began else 0.0
        self._release(command.task)
        self._post(Failed(command.task, seconds, command.reason.value, command.detail), ())

    def _release(self, task: int) -> None:
        call = self._calls.pop(task)
        call.stop_timer()
        if call.run.blobs:
            for digest in call.missing:
                self._awaited[digest].discard(task)
            self.store.free(call.run.blobs.values())

    # --- processes ---

    def _fork(self, number: int, shared: bool) -> None:
        if self._failed is not None:
            self._loop.call_soon(self._refuse, number, self._failed)
            return
        opened: list[int] = []
        try:
            ours, theirs = socket.socketpair()
            opened += (ours.detach(), theirs.detach(), *os.pipe(), *os.pipe(), *os.pipe())
            opened.append(os.dup(opened[6]))
        except OSError as error:
            for fd in opened:
                os.close(fd)
            self._loop.call_soon(self._refuse, number, f"can't make a slot: {error}")
            return
        sock, theirs_sock, out, theirs_out, err, theirs_err, read, write, theirs_read = opened
        self._forks.fork(number, shared, (theirs_sock, theirs_out, theirs_err, theirs_read))
        link = Link(
            self._loop,
            socket.socket(fileno=sock),
            Wire.opened(Role.OWNER),
            lambda received: self._answered(number, received),
            lambda _: self._hung_up(number),
            eager=True,
        )
        outputs = Outputs(self._loop, (out, err), self._print)
        outputs.pause(self._printed.full)
        self._processes[number] = _Process(link, outputs, Tickets(read, write))

    def _refuse(self, number: int, detail: str) -> None:
        self._bury(number)
        self._apply(self.table.refused(number, detail))

    def _rest(self) -> None:
        """Sleep a moment, for nothing is urgent while every slot has tasks ahead: answers then come several at once.

        Waking up costs more than handling an answer. A slot runs tasks for longer than this out of what it has.
        """
        self._resting = False
        time.sleep(_REST)

    def _hung_up(self, number: int) -> None:
        self._take_back(number)
        self._apply(self.table.retire(number))

    def _answered(self, number: int, received: Received) -> None:
        """A slot says something."""
        message = received.message
        process = self._processes[number]
        if isinstance(message, (Done, Failed)):
            process.outputs.settle()
            slot = self.table.running.get(message.task)
            wanted = slot is not None and slot.number == number
            if wanted:
                self._release(message.task)
            # First the next task, then the result of this one.
            self._apply(self.table.finished(number, message.task, message.seconds))
            if slot is not None and slot.first in slot.live and not slot.shared:
                self._begins(slot.first)
            if not wanted and isinstance(message, Done):
                remove(message.files.values())
            if wanted:
                posted = self._send(message, received.buffers, self.table.is_stocked)
                if isinstance(message, Done) and message.files:
                    self._results.told(posted, message.files.values())
            if self.table.is_supplied and not self._resting:
                self._resting = True
                self._loop.call_soon(self._rest)
        elif isinstance(message, Ready):
            process.up = message.error is None
            process.error = message.error
            self._warmed(number)
            slot = self.table.slots.get(number)
            for task in slot.live if slot and process.up else ():
                self._begins(task)

    def _bury(self, number: int) -> _Process | None:
        """Take what a dead slot had still said, and let its files go."""
        process = self._processes.get(number)
        self._warmed(number)
        if process is not None:
            process.link.drain()
            if process.pid is not None:
                self._results.clear(process.pid)
            self._take_back(number)
            process.close()
            del self._processes[number]
        return process

    def _died(self, number: int, detail: str) -> None:
        process = self._bury(number)
        if process is not None and process.error is not None:
            self._apply(self.table.refused(number, process.error))
        else:
            self._apply(self.table.died(number, detail))

    # --- the fork server's words ---

    def _reported(self, what: int, number: int, value: int) -> None:
        if what == FORKED:
            self._forks.pids[number] = value
            if process := self._processes.get(number):
                process.pid = value
        elif what == EXITED:
            self._forks.pids.pop(number, None)
            self._died(number, deaths.describe(value, self._oom))
        elif what == FAILED:
            self._refuse(number, f"can't fork a slot: {os.strerror(value)}")
        elif what == UP:
            self._up = True
            commands = self.table.warm(self.setup.isolated)
            self._warming = {command.slot for command in commands if isinstance(command, Fork)}
            self._apply(commands)
            self._warmed(None)

    def _forks_ended(self, words: str) -> None:
        """The fork server has died, and all slots with it; one that had worked is replaced."""
        self._failed = None if self._up else words
        if self._up:
            self._up = False  # if the next one dies before it is up, that is final
            try:
                self._forks = Forks(self._loop, self._config, self._reported, self._forks_ended)
            except OSError as error:
                self._failed = str(error)
        else:
            self._announce(Ready(0, words))
        for number in list(self._processes):
            if self._failed is None:
                self._died(number, words)
            else:
                self._refuse(number, words)

    def _warmed(self, number: int | None) -> None:
        """A slot that was made ahead is up, or will never be; we are ready when none of them is awaited.

        Forking takes time, and what the owner measures of its tasks should not be that.
        """
        self._warming.discard(number)
        if self._up and not self._warming:
            self._announce(Ready(self.setup.concurrency, None))

    def _announce(self, ready: Ready) -> None:
        """Said once: the owner need not know that a fork server was replaced."""
        if not self._announced:
            self._announced = True
            self._post(ready, ())

    # --- traffic to the owner ---

    def _post(self, message: Message, buffers: Sequence[Buffer]) -> int:
        return self._send(message, buffers, False)

    def _print(self, stream: int, data: bytes) -> None:
        self._printed.add(self._post(Output(stream), (data,)), len(data))
        if self._printed.full:
            self._balance()

    def _post_stream(self, message: Message, buffers: Sequence[Buffer]) -> None:
        self._streamed.add(self._post(message, buffers), sum(len(buffer) for buffer in buffers))
        if self._streamed.full:
            self._balance()

    def _balance(self) -> None:
        """Hold back, or let flow, what slots print and stream."""
        for process in self._processes.values():
            process.outputs.pause(self._printed.full)
        self._bridge.pause(self._streamed.full)

    # --- blobs ---

    def _kept(self, blob: Blob | Share) -> None:
        self._post(Kept(blob.digest, blob.size, None), ())
        if self.store.problem is not None and not self._said_full:
            self._said_full = True
            self._print(2, f"skyward: large arguments stay in memory on this node: {self.store.problem}\n".encode())
        for task in self._awaited.pop(blob.digest, ()):
            call = self._calls[task]
            call.missing.discard(blob.digest)
            if not call.missing:
                self._apply(self.table.unblock(task))


def _config(setup: Setup, cores: int, bridge: str, shelf: str | None) -> dict[str, Any]:
    """What the fork server is told."""
    limit = setup.threads or max(1, cores // setup.concurrency)
    # A variable that the user has set wins; one that is only found in the environment, over a mere default.
    given = setup.env if setup.threads else {**os.environ, **setup.env}
    env = {**os.environ, **threads.defaults(limit, given), **setup.env, "SKYWARD_NODE": setup.node}
    return {
        "node": setup.node,
        "env": env,
        "path": setup.path,
        "cwd": setup.cwd,
        "preload": setup.preload,
        "authkey": setup.authkey,
        "around": setup.around,
        "bridge": bridge,
        "threads": limit,
        "shelf": shelf,
    }
