"""A machine: the real agent with its slot pool, tickets and store, over simulated processes.

What is not real is the kernel's share: a fork server and slots are processes of the world, which do with the same files
and messages what `worker.forkserver.server` and `worker.slot` do, and whose tasks take virtual time.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import math
import os
import shutil
import signal
import socket
import tempfile
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import msgpack

from skyward.core.errors import PayloadError
from skyward.core.payload import exceptions, pickling
from skyward.core.protocol.framing import read_frame
from skyward.core.protocol.messages import Done, Failed, Failure, Inquire, Message, Missing, Pong, Ready, Run
from skyward.core.protocol.wire import Role, Wire
from skyward.core.resume.separately import Separately
from skyward.core.tasks.several_calls import SeveralCalls
from skyward.worker.agent import Agent, Start
from skyward.worker.agent_system import AgentSystem
from skyward.worker.blob_store import Store
from skyward.worker.exit_status import Kill, OutOfMemory
from skyward.worker.forkserver.launch import ForkServerProcess
from skyward.worker.forkserver.protocol import (
    ECHO,
    END,
    EXITED,
    FAILED,
    FORK_ISOLATED,
    FORK_SHARED,
    FORKED,
    KILL,
    PEAK,
    REPORT,
    REQUEST,
    SEATED,
    UP,
)
from skyward.worker.forkserver.seating import Seating
from skyward.worker.held_answers import HeldAnswers
from skyward.worker.machine_load import Usage
from skyward.worker.result_files import ResultFiles
from skyward.worker.tickets import Claims
from tests.simulation.cards import Cards
from tests.simulation.folders import UsersFolder
from tests.simulation.keeping import Saving
from tests.simulation.load import MAX_BYTES, Array, Load, importing
from tests.simulation.neighbours import Neighbourhood
from tests.simulation.network import SIZES
from tests.simulation.sharing import RESULTS, open_file, private_folder, results_in
from tests.simulation.talk import Talk
from tests.simulation.world import MEMORY, Process, World

__all__ = ["SECRET", "Machine"]

SECRET = b""
_NO_PID = 1 << 30  # beyond all pids there are: a signal to one of ours meets nobody
_PIECES = (64 * 1024, 64 * 1024, 64 * 1024, 1, 5, 64)
_RAISED = 1 << 8  # wait status of a process that an exception ended


def _each(calls: Any) -> list[Any]:
    """As `Batch` runs its calls, without what joblib keeps for a slot."""
    return [call(*args, **kwargs) for call, args, kwargs in calls]


def _plan_of(function: Any, args: Any, kwargs: Any) -> tuple[Load, Callable[[], Any]]:
    """What a task does, and what returns its result."""
    task = function.task if isinstance(function, Separately) else function
    if not isinstance(task, SeveralCalls):
        return args[0], partial(function, *args, **kwargs)
    calls = task.each()
    run = partial(_each, calls)
    return calls[0][1][0], Separately(run) if task is not function else run


class _Slot:
    """A slot's process."""

    def __init__(self, server: _ForkServer, number: int, shared: bool, fds: list[int]) -> None:
        self.server = server
        self.machine = server.machine
        self.number = number
        self.shared = shared
        self.pid = _NO_PID + next(self.machine.pids)
        world = self.machine.world
        self.process = world.process(f"{self.machine.name}/slot-{number}", self.machine.process.offset)
        seat = server.seating.seated.get(number)
        self.gpus = server.shares[seat - 1] if seat is not None and server.shares else ()
        self.machine.cards.used(self.gpus)
        sock, self.out, self.err, self.tickets = fds
        self.sock = socket.socket(fileno=sock)
        self.sock.setblocking(False)
        os.set_blocking(self.out, False)
        self.claims = Claims(self.tickets)
        self.results = ResultFiles(server.results, self.pid, 0) if server.results is not None else None
        self.wire = Wire.opened(Role.AGENT, fifo=True)  # an answer is sent whole before the next one
        self.inbox: deque[Any] = deque()
        self._sizes = world.random.choice(SIZES)
        self.busy = False
        self.held: dict[int, Load] = {}  # by task
        self.talks: dict[int, Talk] = {}  # by task
        self._code = 0  # the version that this process has
        self._modules: dict[str, str] = {}  # what it has imported
        self._parts: list[bytes | memoryview] = []
        self.process.call_later(world.random.uniform(0.0, 0.05), self._begin)

    def _begin(self) -> None:
        self.machine.slots_begin()
        if self.machine.stillborn > 0:
            self.machine.stillborn -= 1
            self.end(signal.SIGKILL)
            return
        unready = self.machine.unready > 0
        self.machine.unready -= unready
        self._send(Ready(1, "simulated: it can't begin" if unready else None))
        if unready:
            self.end(_RAISED)
        if self.process.alive:
            self.process.add_reader(self.sock, self._readable)

    def _readable(self) -> None:
        try:
            data = self.sock.recv(self.machine.world.random.choice(self._sizes))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.end(0)
            return
        self.inbox += self.wire.receive_data(data)
        self._work()

    def _work(self) -> None:
        """As `Slot.work`: in the order in which messages came, and an isolated slot does one thing at a time."""
        while self.process.alive and self.inbox and not self._is_occupied:
            received = self.inbox.popleft()
            message = received.message
            if isinstance(message, Inquire):
                self._send(Missing([task for task in message.tasks if task not in self.held]))
            elif isinstance(message, Run) and (self.shared or self.claims.claim(message.task)):
                self._run(message, received.buffers)
        if self.process.alive:
            (self.process.remove_reader if self._is_occupied else self._read_on)(self.sock)

    @property
    def _is_occupied(self) -> bool:
        """Whether nothing is read: an isolated slot runs a task, or sends an answer."""
        return self.busy or (not self.shared and (bool(self._parts) or self.wire.has_data))

    def _read_on(self, sock: socket.socket) -> None:
        if sock.fileno() not in self.process.readers:
            self.process.add_reader(sock, self._readable)

    def _run(self, run: Run, buffers: list[Any]) -> None:
        self.busy = not self.shared
        rest = iter(buffers[1:])
        try:
            parts = [
                Path(os.fsdecode(run.blobs[index])).read_bytes() if index in run.blobs else next(rest)
                for index in range(len(buffers) - 1 + len(run.blobs))
            ]
        except FileNotFoundError as error:  # of a task that was cancelled while this process was frozen
            self._unloadable(run.task, f"{error}")
            return
        self._code = max(self._code, run.code)  # as `Slot._enter_code` has it
        with importing(self._import):
            function, args, kwargs = pickling.loads(buffers[0], parts)
        plan, work = _plan_of(function, args, kwargs)
        if plan.end == "lacks" and not self.machine.has_package:
            self._unloadable(run.task, "No module named a_simulated_package", "a_simulated_package")
            return
        self.held[run.task] = plan
        self.machine.check_folder()
        self.machine.started(self.process.name, plan)
        if self.machine.deadly > 0:
            self.machine.deadly -= 1
            self.end(signal.SIGKILL)
            return
        if self.machine.babbles > 0:
            self.machine.babbles -= 1
            self._send(Pong(0.0))  # which no slot says
        if self.machine.forgets > 0 and not self.shared:
            self.machine.forgets -= 1
            self.busy = False
            self.machine.ended(self.process.name, self.held.pop(run.task))
            return
        if plan.prints:
            with contextlib.suppress(BlockingIOError):
                os.write(self.out, (b"x" * 40 + b"\n") * (plan.prints // 41))
        if plan.end == "hang":
            return
        seconds = plan.seconds * (0.5 if plan.end == "die" else 1.0)
        then = self._talk if plan.talks else self._ended
        self.process.call_later(seconds, then, run.task, plan, work)

    def _unloadable(self, task: int, why: str, missing: str = "") -> None:
        """Answer for a task that can't be loaded, since a package is missing, say."""
        self.busy = False
        error = PayloadError(f"the task can't be loaded: {why}")
        answer = Failed(task, 0.0, Failure.UNLOADABLE.value, "PayloadError", missing)
        self._send(answer, exceptions.dump(error, as_data=self.machine.data))

    def _import(self, name: str) -> str:
        """Import one of the user's modules, unless it is; return what it says."""
        if name not in self._modules:
            text = Path(self.machine.folder, "code", str(self._code), f"{name}.py").read_text()
            self._modules[name] = text.rstrip("#")
        return self._modules[name]

    def _talk(self, task: int, plan: Load, work: Callable[[], Any]) -> None:
        """Let the task talk to the driver's process before it ends."""

        def done(error: str | None) -> None:
            agent = self.machine.agent
            if error is not None and agent is not None and not agent.stopped.done():
                self.machine.world.broken.append(f"task {plan.number} talks: {error}")
            if self.talks.pop(task, None) is not None:
                self._ended(task, plan, work)

        data = bytes(Array.made(plan.talks, noise=True).data) * (2 if plan.talks == MAX_BYTES else 1)
        talk = Talk(self.machine.world, self.process, f"{self.machine.folder}/bridge.sock", data, done)
        self.talks[task] = talk

    def _ended(self, task: int, plan: Load, work: Callable[[], Any]) -> None:
        if plan.end == "die":
            self.end(signal.SIGKILL)
            return
        self.held.pop(task)
        self.machine.saving.wrote(plan.number, self.pid)
        self.machine.ended(self.process.name, plan)
        try:
            self.machine.cards.ask(self.gpus)
            head, views = pickling.dumps(work(), "result", large=None)
        except BaseException as error:
            answer: Message = Failed(task, plan.seconds, Failure.RAISED.value, type(error).__name__)
            self._send(answer, exceptions.dump(error, as_data=self.machine.data))
        else:
            files, rest = self.results.put(views, RESULTS) if self.results is not None else ({}, views)
            self._send(Done(task, plan.seconds, files, self.number), [head, *rest])
        self.busy = False
        self._work()

    def _send(self, message: Message, buffers: Any = ()) -> None:
        self.wire.send(message, buffers)
        self._write()

    def _write(self) -> None:
        while self.process.alive:
            if not self._parts:
                self._parts = list(self.wire.data_to_send())
            if not self._parts:
                self.process.remove_writer(self.sock)
                return
            try:
                sent = self.sock.send(self._parts[0])
            except BlockingIOError:
                self.process.add_writer(self.sock, self._writable)
                return
            except OSError:  # the agent has closed it
                self.end(_RAISED)
                return
            rest = memoryview(self._parts[0])[sent:]
            self._parts[:1] = [rest] if rest else []

    def _writable(self) -> None:
        self._write()
        self._work()

    def end(self, status: int) -> None:
        """The process ends, with this wait status."""
        if self.process.alive:
            self.process.die()
            self.machine.world.unwatch(self.process)
            for fd in (self.out, self.err, self.tickets):
                os.close(fd)
            self.sock.close()
            for talk in self.talks.values():
                talk.close()
            for plan in self.held.values():
                self.machine.ended(self.process.name, plan)
            self.server.reap(self, status)


class _Memory(OutOfMemory):
    """What the kernel says about memory."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __repr__(self) -> str:
        return "<_Memory>"

    def look(self) -> Kill:
        return self._world.random.choice(("no", "ours", "somebody's", "unknown"))

    def limit(self) -> int | None:
        return self._world.random.choice((1 << 30, None))


class _Handle:
    """A process of the agent's, as `subprocess.Popen` shows one."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        assert self.returncode is not None
        return self.returncode


@dataclass(frozen=True)
class _Server(ForkServerProcess):
    """What the agent has of a fork server."""

    server: _ForkServer

    def ends_within(self, seconds: float) -> bool:
        return self.process.returncode is not None

    def kill(self) -> None:
        self.server.die(-signal.SIGKILL)
        self.control.close()
        self.output.close()


class _ForkServer:
    """A fork server's process: makes slots, ends them, and says how they ended."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        world = machine.world
        self.process = world.process(f"{machine.name}/forkserver", machine.process.offset)
        self.slots: dict[int, _Slot] = {}
        self.control, theirs = socket.socketpair()
        self.theirs = theirs
        theirs.setblocking(False)
        read, self.write = os.pipe()
        self.handle = _Handle(_NO_PID + next(machine.pids))
        self.output = os.fdopen(read, "rb", buffering=0)
        self.configured = False
        self.results: str | None = None  # where slots leave large results for an owner on the same machine
        self.seating: Seating[int] = Seating(0)
        self.shares: list[tuple[str, ...]] = []  # of GPUs
        self._piece = world.random.choice(_PIECES)  # bytes that its socket carries at a time
        self._data = self._unsent = b""
        self._fds: list[int] = []
        self._doomed: set[int] = set()
        self._unborn: dict[int, list[int]] = {}  # descriptors of slots that are about to be forked
        self.process.add_reader(theirs, self._readable)
        if machine.short_lived > 0:
            machine.short_lived -= 1
            status = world.random.choice((-signal.SIGKILL, 1))
            self.process.call_later(world.random.choice((0.01, 1.0)), self.die, status)

    def _readable(self) -> None:
        try:
            # The configuration is read at once: its length depends on the number of this process.
            data, fds, _, _ = socket.recv_fds(self.theirs, self._piece if self.configured else 64 * 1024, 64)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self.die(0)
            return
        self._data += data
        self._fds += fds
        if not self.configured:
            rest = io.BytesIO(self._data)
            try:
                config = read_frame(rest.read)
            except EOFError:  # it has not arrived whole; the real one waits
                return
            self._data = rest.read()
            self.configured = True
            settings = msgpack.unpackb(config)
            self.results = settings["result_files"]
            for variables in settings["gpus"]:
                self.shares.append(tuple(variables["CUDA_VISIBLE_DEVICES"].split(",")))
            self.seating = Seating(len(self.shares))
            self.process.call_later(self.machine.world.random.uniform(0.0, 0.5), self._report, UP, 0, 0)
        while len(self._data) >= REQUEST.size and self.process.alive:
            what, number = REQUEST.unpack(self._data[: REQUEST.size])
            self._data = self._data[REQUEST.size :]
            self._obey(what, number)

    def _obey(self, what: int, number: int) -> None:
        if what in (FORK_ISOLATED, FORK_SHARED):
            self._unborn[number], self._fds = self._fds[:4], self._fds[4:]
            self._seat_and_fork(what, number)
        elif what == KILL:
            self._kill(number)
        elif what == ECHO:
            self._report(ECHO, number, 0)
        elif what == END:
            self.die(0)

    def _seat_and_fork(self, what: int, number: int) -> None:
        """As `ForkServer` of the product has it."""
        if not self.seating.has_place:
            self.seating.wait(number, what, self.process.time())
            self.process.call_later(61.0, self._attend_waiting)
            return
        if what == FORK_ISOLATED:
            self._report(SEATED, number, self.seating.take(number))
        self.process.call_later(self.machine.world.random.uniform(0.0, 0.01), self._fork, what, number)

    def _attend_waiting(self) -> None:
        for number, what, has_place in self.seating.due(self.process.time()):
            if has_place:
                self._seat_and_fork(what, number)
            else:
                self._discard(number)
                self._report(FAILED, number, errno.EBUSY)

    def _kill(self, number: int) -> None:
        if (slot := self.slots.get(number)) is not None:
            slot.end(signal.SIGKILL)
        elif self.seating.withdraw(number) is not None:
            self._discard(number)
            self._report(EXITED, number, signal.SIGKILL)
        elif number in self._unborn:
            self._doomed.add(number)
        self.seating.killed(number)

    def _discard(self, number: int) -> None:
        for fd in self._unborn.pop(number):
            os.close(fd)

    def _fork(self, what: int, number: int) -> None:
        fds = self._unborn.pop(number)
        if self.machine.forks_fail > 0:
            self.machine.forks_fail -= 1
            for fd in fds:
                os.close(fd)
            self.seating.release(number)
            self._report(FAILED, number, errno.EAGAIN)
            return
        slot = self.slots[number] = _Slot(self, number, what == FORK_SHARED, fds)
        self._report(FORKED, number, slot.pid)
        if number in self._doomed:  # requests are obeyed in order, and forking takes a while
            slot.end(signal.SIGKILL)

    def reap(self, slot: _Slot, status: int) -> None:
        """A slot has ended; said a little later."""
        if self.process.alive:
            longest = 3.0 if self.shares and self.machine.world.random.random() < 0.3 else 0.01
            self.process.call_later(self.machine.world.random.uniform(0.0, longest), self._exited, slot, status)

    def _exited(self, slot: _Slot, status: int) -> None:
        if self.slots.pop(slot.number, None) is slot:
            self.machine.cards.free(slot.gpus)
            self.seating.release(slot.number)
            self._attend_waiting()
            if status == signal.SIGKILL:
                self._report(PEAK, slot.number, 1 << 20)
            self._report(EXITED, slot.number, status)

    def _report(self, what: int, number: int, value: int) -> None:
        if self.process.alive:
            self._unsent += REPORT.pack(what, number, value)
            self._send()

    def _send(self) -> None:
        """Send reports, in pieces of any size if the kernel cuts them."""
        with contextlib.suppress(OSError):
            self.theirs.send(self._unsent[: self._piece])
        self._unsent = self._unsent[self._piece :]
        if self._unsent:
            self.process.call_later(0.0001, self._send)

    def die(self, status: int) -> None:
        """It ends, and all slots with it."""
        if not self.process.alive:
            return
        self.handle.returncode = status
        self.process.die()
        self.machine.world.unwatch(self.process)
        for slot in list(self.slots.values()):
            slot.end(signal.SIGKILL)
            self.machine.cards.free(slot.gpus)
        self.theirs.close()
        os.close(self.write)
        for fd in itertools.chain(self._fds, *self._unborn.values()):
            os.close(fd)


class Machine:
    """One machine with an agent.

    Parameters
    ----------
    world, name
        Where it is, and what it is called in stories.
    started, ended
        Told of each task that a slot begins and ends: with its number and plan.
    neighbourhood
        The other machines.
    cards
        Its GPUs.
    saved
        Told of each task whose files are saved; None if nothing has to be.

    Attributes
    ----------
    visitors
        Sockets of strangers that are connected to the agent.
    impostors
        What others will say in the agent's place, one each time that the driver connects.
    folder_of_user
        What tasks must find.
    memory
        Its size in bytes, of which a quarter may hold blobs that no task needs.
    cache
        Folder of what is kept between pools; empty: nothing is.
    room, files
        Bytes that may still be written to its disks, and how many of the driver's files it may have open.
    """

    def __init__(
        self,
        world: World,
        name: str,
        started: Callable[[Any, Load], object],
        ended: Callable[[Any, Load], object],
        neighbourhood: Neighbourhood,
        cards: Cards,
        saved: Callable[[int], object] | None = None,
    ) -> None:
        self.world = world
        self.name = name
        self.neighbourhood = neighbourhood
        self.cards = cards
        self.started, self.ended = started, ended
        self.pids = iter(range(1, 1 << 20))
        self.forks_fail = 0
        # How many more slots will die before they begin, or can't begin; and how many tasks will be forgotten by slots.
        self.stillborn = self.unready = self.forgets = 0
        self.babbles = 0  # how many more tasks will have their slot say what no slot says
        self.denies = False  # whether it says that it has no task
        self.has_package = False  # which tasks need that lack it
        self.deadly = 0  # how many more tasks will have their process killed at once
        # How many more fork servers will not start, and end soon; and how many pipes can't be made.
        self.unstartable = self.short_lived = self.no_pipes = 0
        self.saving = Saving(world, saved or (lambda _: None))
        self._saves = saved is not None
        self.visitors: list[socket.socket] = []
        self.impostors: list[bytes] = []
        self.folder_of_user: UsersFolder | None = None
        self.memory = 1 << 34
        self.data = False  # whether what tasks raise must not run code where it arrives
        self.room = math.inf  # bytes that may still be written to its disk
        self.cache = ""
        self.files = 1 << 16  # of other processes that it may have open
        self.blind = 0  # how many more of the driver's files can't be opened
        self.servers: list[_ForkServer] = []
        self.folder = tempfile.mkdtemp(prefix="skyward-simulation-", dir=MEMORY)
        # Its clock began when it booted, which may be now.
        self.process: Process = world.process(f"{name}/agent", world.random.choice((-world.now, 0.0, 1e6)))
        self.full_until = 0.0  # its disk
        for each in ("memory", "disk"):
            Path(self.folder, each).mkdir()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind("")  # Linux finds a name that no file has
        self._listener.listen(64)
        self._address = self._listener.getsockname()
        self.process.call_soon(self._begin)
        self.agent: Agent | None = None

    def __repr__(self) -> str:
        return f"<Machine {self.name}{'' if self.process.alive else ', gone'}>"

    def _begin(self) -> None:
        start = Start("unix", SECRET, False, 60.0, run=f"{self.folder}/run" if self.cache else "", cache=self.cache)
        system = AgentSystem(
            start_server=lambda _: self._new_server(),
            sleep=lambda _: None,  # for the sake of speed only
            random_bytes=self.world.random.randbytes,
            log=lambda text: self.world.tell(f"{self.name} logs: {text}"),
            peer_network=lambda _, identity, __: self._network(identity),
            start_thread=lambda run, _: self.process.run_in_executor(None, run),
            find_gpus=lambda _: self.cards.find(),
            memory=lambda: self.memory,
            make_meter=lambda _: lambda: Usage(0.5, 4, 1 << 30, 1 << 32, 1 << 34),
            watch_memory=lambda: _Memory(self.world),
            make_store=self._make_store,
            pipe=self._pipe,
        )
        self.agent = Agent(self.process, start, self._listener, self.folder, self.server(), system)
        self.world.run_task(self.process, self._live(self.agent))

    async def _live(self, agent: Agent) -> None:
        reason = await agent.stopped
        self.world.tell(f"{self.name}: the agent ends: {reason}")
        await agent.end()
        self.gone()

    def slots_begin(self) -> None:
        """Have what tasks write saved before their answers, if it has to be."""
        slots = self.agent.slots if self.agent is not None else None
        if self._saves and slots is not None:
            self._saves = False
            slots.answers.hold(HeldAnswers(self.process, self.saving.save))

    def server(self) -> ForkServerProcess:
        """A new fork server."""
        server = _ForkServer(self)
        self.servers.append(server)
        return _Server(server.handle, server.control, cast("IO[bytes]", server.output), server)

    def _new_server(self) -> ForkServerProcess:
        if self.unstartable > 0:
            self.unstartable -= 1
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return self.server()

    def _network(self, identity: dict[str, str]) -> Any:
        """The way to others, unless too many files are open."""
        if not self.files and self.world.random.random() < 0.3:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return self.neighbourhood.network(self.name, self.process, identity)

    def _pipe(self) -> tuple[int, int]:
        """Make a pipe, unless too many files are open."""
        if self.no_pipes > 0 and self.world.random.random() < 0.5:
            self.no_pipes -= 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return os.pipe()

    def connect(self) -> socket.socket:
        """A connection to the agent; OSError if it is gone, or too many wait at its door."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            sock.connect(self._address)
        except OSError:
            sock.close()
            raise
        return sock

    def answer(self) -> socket.socket:
        """What the driver gets when it connects: the agent, unless somebody else listens there for the moment."""
        if not self.impostors or not self.process.alive:
            return self.connect()
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            theirs.send(self.impostors.pop(0))
        if self.world.random.random() < 0.5:
            theirs.close()
        else:
            self.visitors.append(theirs)
        return ours

    def sleep(self, seconds: float) -> None:
        """Sleep, with all that runs on it; no clock of it goes on."""
        for server in self.servers:
            for process in (server.process, *(slot.process for slot in server.slots.values())):
                process.sleep(seconds)
        self.process.sleep(seconds)

    def _make_store(self, most: int) -> Store:
        places = [f"{self.folder}/{each}" for each in ("memory", "disk")]
        return Store(places, min(most, self.files), self._pwrite, self._open_file, self._make_folder)

    def _make_folder(self, parent: str, kind: str) -> tuple[str, int]:
        """Make one of the store's folders, unless the disk is full."""
        if self.world.now < self.full_until or self.room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return private_folder(parent, kind)

    def _open_file(self, path: str, number: int, size: int) -> tuple[int, str]:
        """Open one of the driver's files, on whose machine this is then."""
        if self.blind > 0:
            self.blind -= 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return open_file(path, number, size)

    @property
    def results(self) -> list[str]:
        """Names of the files in which results are, and nobody has taken them yet."""
        return results_in(f"{self.folder}/memory")

    def _pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        """Write to a disk that may be full, perhaps in the middle."""
        if self.world.now < self.full_until:
            if len(data) < 2 or self.world.random.random() < 0.5:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            data = data[: len(data) // 2]
        if self.room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.room < len(data):
            data = data[: int(self.room)]
        self.room -= len(data)
        return os.pwrite(fd, data, offset)

    def check_folder(self) -> None:
        """The user's folder must be there, and whole, when the first task begins."""
        if self.folder_of_user is not None and self.agent is not None and self.agent.files is not None:
            folder, self.folder_of_user = self.folder_of_user, None
            if wrong := folder.differs(self.agent.files._work):
                self.world.broken.append(f"{self.name}: a task begins, and of the user's folder {wrong} is not right")

    @property
    def slots(self) -> list[_Slot]:
        """All slots that live."""
        return [slot for server in self.servers for slot in server.slots.values() if slot.process.alive]

    def gone(self) -> None:
        """The agent has ended, or is killed with all that it had."""
        if not self.process.alive:
            return
        self.process.die()
        self.world.unwatch(self.process)
        self.neighbourhood.gone(self.name)
        for server in self.servers:
            server.die(-signal.SIGKILL)
            server.control.close()
            server.output.close()
        agent = self.agent
        if agent is not None:
            _close_files(agent)
        for sock in self.visitors:
            sock.close()
        self.visitors.clear()
        self._listener.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _close_files(agent: Agent) -> None:
    """What the kernel does when a process has ended."""
    agent._listener._listener.close()
    if (session := agent.session) is not None and session.link is not None:
        for link in (session.link, *session.link._stripes):
            link._sock.close()
    for connection in agent._connections:
        connection.link._sock.close()
    if (slots := agent.slots) is not None:
        for process in slots._processes.by_number.values():
            process.link._sock.close()
            for fd in process.output._fds.values():
                os.close(fd)
            process.tickets.close()
        slots.bridge._listener._listener.close()
        for stream in slots.bridge._streams.values():
            stream.sock.close()
        slots.needs.blobs.store.close()
        for _, fds in slots._processes._fork_server._queue:
            for fd in fds:
                os.close(fd)
