"""Drives the slots: does what `SlotTable` decides, with processes, sockets, pipes and timers.

Everything here happens on the agent's loop. No decision about which task runs where is taken in this module.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence

from skyward.core.payload.shared_file import remove
from skyward.core.protocol.mailbox import Quota
from skyward.core.protocol.messages import (
    Began,
    Blob,
    Cancel,
    Done,
    Failed,
    Inquire,
    Kept,
    Message,
    Missing,
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
from skyward.core.protocol.wire import Buffer, Filled, Received, Role, Wire
from skyward.core.system import open_files
from skyward.worker import exit_status
from skyward.worker.blob_store import Corrupt, Store
from skyward.worker.bridge import Bridge
from skyward.worker.forkserver.client import Ended, ForkServerClient, fork_config
from skyward.worker.forkserver.launch import ForkServerProcess
from skyward.worker.forkserver.protocol import EXITED, FAILED, FORKED, UP
from skyward.worker.output import SlotOutput
from skyward.worker.result_files import UnclaimedFiles
from skyward.worker.slot_process import PendingTask, SlotProcess
from skyward.worker.slot_table import Command, Fork, Settle, Slot, SlotTable, Start, TakeBack
from skyward.worker.tickets import Tickets
from skyward.worker.wire_socket import WireSocket

__all__ = ["SlotPool", "allow_files"]

_OUTPUT_LIMIT = 4 * 1024 * 1024
_STREAM_LIMIT = 8 * 1024 * 1024
_REST = 0.0002  # seconds
_LONG = 3  # times the mean: a task that has run for so long may run on for any time
_SHORT = 0.02  # seconds after which that may be said
_FILES_EACH = 5  # that a slot takes: its socket, two pipes for what it prints, one for tickets
_FILES_OURS = 24  # the agent's own, with a connection, and a slot that is being made
_FILES_MORE = 1024  # for blobs and streams, where we are free to choose
_RETRIES = (0.0, 0.1, 0.5, 2.0, 5.0)  # seconds until a fork server that died is replaced, one time after another
_WELL = 10.0  # seconds; one that was up for longer has shown that they can live here
_HUNG_UP = 1.0  # seconds that a slot whose connection has ended may take to end itself
_SOON = 0.05  # seconds until it is looked which tasks have begun
_ROLL_CALL = 1.0  # seconds between two looks at what slots have


class SlotPool:
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
    told
        What fork servers are told of the agent's own: see `fork_config`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        setup: Setup,
        cores: int,
        folder: str,
        post: Callable[[Message, Sequence[Buffer], bool], int],
        server: ForkServerProcess | None,
        told: Mapping[str, object],
    ) -> None:
        self.setup = setup
        self.table = SlotTable(setup.concurrency)
        self.store = Store(most_adopted=(open_files.limit() - _files(setup.concurrency)) // 2)
        self.grew: Callable[[], None] = lambda: None  # told when a part of a blob came
        self._loop = loop
        self._send = post
        self._processes: dict[int, SlotProcess] = {}
        self._calls: dict[int, PendingTask] = {}
        self._warming: set[int | None] = set()  # slots that were made ahead and are not up yet
        self._awaited: dict[bytes, set[int]] = {}  # blob that has not come -> tasks that need it
        self._given = 0
        self._said: dict[int, int] = {}  # task -> number of the message that the owner has not acknowledged
        self._watching: asyncio.TimerHandle | None = None
        self._last_roll = 0.0
        self._printed = Quota(_OUTPUT_LIMIT)
        self._streamed = Quota(_STREAM_LIMIT)
        self._oom = exit_status.OutOfMemory()
        self._said_full = self._up = self._announced = self._resting = False
        self._up_since = math.inf
        self._retries = iter(_RETRIES)
        self._bridge = Bridge(loop, f"{folder}/bridge.sock", self._post_stream)
        result_files = self.store.result_files() if setup.shares else None
        self._results = UnclaimedFiles(result_files)
        self._config = fork_config(setup, cores, self._bridge.path, result_files, told)
        self._forks = ForkServerClient(loop, self._config, self._reported, self._forks_ended, server)

    def __repr__(self) -> str:
        return f"<SlotPool of {self.setup.node!r}: {self.table!r}>"

    # --- the owner's words ---

    def submit(self, run: Run, buffers: Sequence[Buffer]) -> None:
        """A task came."""
        if run.task in self._calls:
            return
        call = self._calls[run.task] = PendingTask(run, buffers)
        if run.blobs:
            self.store.use(run.blobs.values())
            call.missing = {digest for digest in run.blobs.values() if digest not in self.store}
            for digest in call.missing:
                self._awaited.setdefault(digest, set()).add(run.task)
        self._apply(self.table.submit(run.task, run.isolated, bool(call.missing)))

    def cancel(self, wish: Cancel) -> None:
        """The owner does not want a task any more, or only if it has not begun."""
        slot = self.table.running.get(wish.task)
        if slot is not None:
            self._take_back(slot.number)
        if wish.running or wish.task not in self.table.running:
            self._apply(self.table.cancel(wish.task))
        else:
            self._apply(self.table.dispatch())

    def recall(self, wish: Recall) -> None:
        """Another node is idle: part with what this one will not begin soon."""
        for number in [number for number, slot in self.table.slots.items() if slot.ahead]:
            self._take_back(number)
        tasks = self.table.recall(wish.limit, self.table.soon(wish.within, self._in_time()))
        for task in tasks:
            self._release(task)
        self._answer(tasks, Returned(tasks))
        self._apply(self.table.dispatch())

    def inquire(self, tasks: list[int]) -> None:
        """The owner counts on these; what has been answered may not have reached it yet."""
        self._post(Missing([task for task in tasks if task not in self._calls and task not in self._said]), ())

    def _in_time(self) -> int:
        """How many slots run a task that has not taken longer than tasks do here."""
        limit = self._loop.time() - max(_LONG * (self.table.mean or 0.0), _SHORT)
        return sum(self._calls[task].began > limit for task in self.table.running)

    def keep(self, blob: Blob, data: Buffer, peer: bool = False, number: int = 0) -> None:
        """A part of a blob came, from the owner, in a message with this number, or from a peer."""
        try:
            whole = self.store.add(blob.digest, blob.size, blob.offset, data, peer=peer, number=number)
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

    def forget(self, digests: list[bytes], number: int) -> None:
        """The owner will not name these again, unless it has sent them since."""
        self.store.forget(digests, number)

    def stream(self, message: StreamData | StreamClose, data: Filled | None) -> None:
        """Bytes for a slot."""
        self._bridge.receive(message, data)

    def acknowledged(self, received: int) -> None:
        """The owner has everything up to this number; what was held back may flow again."""
        self._printed.acknowledge(received)
        self._streamed.acknowledge(received)
        self._results.acknowledge(received)
        while self._said:
            task, number = next(iter(self._said.items()))
            if number > received:
                break
            del self._said[task]
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
        if self._watching is not None:
            self._watching.cancel()
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
        slot = self.table.slots[number]
        if not slot.shared:
            process.tickets.add(task)
        if process.up and (slot.shared or slot.first == task):
            self._begins(task)
        self._given += 1
        call.given = self._given
        process.link.queue(run, buffers)

    def _take_back(self, number: int) -> None:
        """Take back the tasks that a slot has not begun."""
        process, slot = self._processes.get(number), self.table.slots.get(number)
        if process is None or slot is None or slot.shared or not slot.tasks:
            return
        tasks = process.tickets.take_back()
        for task in tasks:
            if call := self._calls.get(task):  # it may have been given up since
                call.stop_timer()
                call.began = 0.0
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
        call.began = now = self._loop.time()
        if self._watching is None or self._watching.when() > now + _SOON:
            self._watch_in(_SOON)
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
        self._answer([command.task], Failed(command.task, seconds, command.reason.value, command.detail))

    def _release(self, task: int) -> None:
        call = self._calls.pop(task)
        call.stop_timer()
        if call.run.blobs:
            for digest in call.missing:
                self._awaited[digest].discard(task)
            self.store.free(call.run.blobs.values())

    # --- processes ---

    def _fork(self, number: int, shared: bool) -> None:
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
        link = WireSocket(
            self._loop,
            socket.socket(fileno=sock),
            Wire.opened(Role.OWNER, fifo=True),  # tickets rely on it
            lambda received: self._answered(number, received),
            lambda _: self._hung_up(number),
            eager=True,
        )
        output = SlotOutput(self._loop, (out, err), self._print)
        output.pause(self._printed.full)
        self._processes[number] = SlotProcess(link, output, Tickets(read, write))

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
        """A slot is at its end, as we shall hear from the fork server; or has closed its files, and can't answer."""
        self._apply(self.table.retire(number))
        self._loop.call_later(_HUNG_UP, self._give_up, number, "it closed its connection to the agent, and was ended")

    def _give_up(self, number: int, why: str) -> None:
        """End a slot that is not to be relied on, if it has not ended yet."""
        process = self._processes.get(number)
        if process is not None:
            process.lost = process.lost or why
            self._forks.kill(number)

    def _answered(self, number: int, received: Received) -> None:
        """A slot says something."""
        message = received.message
        process = self._processes[number]
        if isinstance(message, (Done, Failed)):
            slot = self.table.running.get(message.task)
            wanted = slot is not None and slot.number == number
            if wanted:
                self._release(message.task)
            # First the next task, then the result of this one.
            self._apply(self.table.finished(number, message.task, message.seconds))
            process.output.flush(whole=number in self.table.slots and bool(self.table.slots[number].tasks))
            if slot is not None and not slot.shared:
                for task in slot.current:
                    self._begins(task)
            if not wanted and isinstance(message, Done):
                remove(message.files.values())
            if wanted:
                posted = self._answer([message.task], message, received.buffers, self.table.is_stocked)
                if isinstance(message, Done) and message.files:
                    self._results.told(posted, message.files.values())
            if self.table.is_supplied and not self._resting:
                self._resting = True
                self._loop.call_soon(self._rest)
        elif isinstance(message, Ready):
            process.up = message.error is None
            self._warmed(number)
            slot = self.table.slots.get(number)
            if slot is not None and process.up:
                for task in slot.current:
                    self._begins(task)
            if message.error is not None:
                self._take_back(number)
                self._apply(self.table.refused(number, message.error))
        elif isinstance(message, Missing):
            self._missed(number, process, message.tasks)

    def _bury(self, number: int) -> SlotProcess | None:
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
        self._apply(self.table.died(number, (process and process.lost) or detail))

    # --- what has begun, and whether it is still there ---

    def _watch_in(self, seconds: float) -> None:
        if self._watching is not None:
            self._watching.cancel()
        self._watching = self._loop.call_later(seconds, self._watch)

    def _watch(self) -> None:
        """Tell the owner what has begun, and now and then ask the slots what they have."""
        self._watching = None
        began: list[int] = []
        roll = self._loop.time() >= self._last_roll + _ROLL_CALL
        for number, process in self._processes.items():
            slot = self.table.slots.get(number)
            if slot is None or not slot.tasks or not process.up:
                continue
            for task in self._begun(process, slot):
                call = self._calls[task]
                call.told = True
                call.buffers = ()  # they can't be needed again, and the wire has what it still has to write
                began.append(task)
            if roll and (asked := process.roll.ask(self._held(slot))):
                process.link.send(Inquire(asked))
        if roll:
            self._last_roll = self._loop.time()
        if began:
            self._post(Began(began), ())
        if self.table.running:
            self._watch_in(_ROLL_CALL)

    def _begun(self, process: SlotProcess, slot: Slot) -> list[int]:
        """The tasks of a slot that have begun, and of which the owner does not know that yet."""
        new = [task for task in slot.current if not self._calls[task].told]
        return new if slot.shared or (new and len(slot.tasks) > process.tickets.undrawn) else []

    def _held(self, slot: Slot) -> dict[int, int]:
        """What a slot was given and should have, and when, as `RollCall` wants it."""
        return {task: self._calls[task].given for task in slot.live}

    def _missed(self, number: int, process: SlotProcess, tasks: list[int]) -> None:
        """A slot does not have these: it is not to be relied on any more if it should."""
        slot = self.table.slots.get(number)
        lost = process.roll.lost(tasks, self._held(slot)) if slot is not None else []
        if lost:
            self._give_up(
                number, f"it neither ran nor answered what it was given (task {lost[0]}), and was ended for that"
            )

    # --- the fork server's words ---

    def _reported(self, what: int, number: int, value: int) -> None:
        if what == FORKED:
            if process := self._processes.get(number):
                process.pid = value
        elif what == EXITED:
            self._died(number, exit_status.describe(value, self._oom))
        elif what == FAILED:
            self._refuse(number, f"can't fork a slot: {os.strerror(value)}")
        elif what == UP:
            self._up, self._up_since = True, self._loop.time()
            commands = self.table.warm(self.setup.isolated)
            self._warming = {command.slot for command in commands if isinstance(command, Fork)}
            self._apply(commands)
            self._warmed(None)

    def _forks_ended(self, end: Ended) -> None:
        """The fork server has died, and all slots with it: it is replaced, if that seems to be of use."""
        if self._loop.time() - end.hung > self._up_since + _WELL:
            self._retries = iter(_RETRIES)
        useful = self._up if end.hung else end.killed or self._announced
        delay = next(self._retries, None) if useful else None
        if end.hung and delay is not None:
            self._print(2, f"skyward: on {self.setup.node} {end.words}; its workers are replaced\n".encode())
        self._up, self._up_since = False, math.inf
        buried = [(number, self._bury(number)) for number in list(self._processes)]
        made = {number for number, process in buried if process is not None and process.up}
        self._apply(self.table.all_ended(made, end.words))
        if delay is not None:
            self._forks = ForkServerClient(self._loop, self._config, self._reported, self._forks_ended, delay=delay)
            self._apply(self.table.dispatch())
        else:  # by now the owner has an answer for all that had begun
            self._post(Ready(0, end.words), ())
            self._apply(self.table.give_up(end.words))

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

    def _answer(
        self, tasks: Sequence[int], message: Message, buffers: Sequence[Buffer] = (), lazy: bool = False
    ) -> int:
        """Post what is the last word about some tasks from here; its number."""
        number = self._send(message, buffers, lazy)
        for task in tasks:
            self._said.pop(task, None)  # so that the order is that of the numbers
            self._said[task] = number
        return number

    def _print(self, stream: int, data: bytes, more: bool = False) -> None:
        self._printed.add(self._post(Output(stream, more), (data,)), len(data))
        if self._printed.full:
            self._balance()

    def _post_stream(self, message: Message, buffers: Sequence[Buffer]) -> None:
        self._streamed.add(self._post(message, buffers), sum(len(buffer) for buffer in buffers))
        if self._streamed.full:
            self._balance()

    def _balance(self) -> None:
        """Hold back, or let flow, what slots print and stream."""
        for process in self._processes.values():
            process.output.pause(self._printed.full)
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


def allow_files(concurrency: int) -> None:
    """Let this process open what so many slots need.

    Raises
    ------
    ValueError
        It may not.
    """
    needed = _files(concurrency)
    limit = open_files.allow(needed + concurrency + _FILES_MORE)
    if limit < needed:
        fit = max(0, (limit - _FILES_OURS) // _FILES_EACH)
        instead = f"or have at most {fit} slots on a node: Worker(concurrency={fit})" if fit else "or use another host"
        raise ValueError(
            f"{concurrency} slots need {needed} open files in one process, of which the system allows {limit} on this "
            f"node; have that limit raised (ulimit -Hn, limits.conf), {instead}"
        )


def _files(concurrency: int) -> int:
    return _FILES_OURS + _FILES_EACH * concurrency
