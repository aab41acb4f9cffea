"""An agent within the event loop, for tests of sessions and dispatch: the real wire, no process, faults on demand."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

from skyward.core.blobs.snapshots import digest
from skyward.core.events import Events
from skyward.core.interfaces import Channel
from skyward.core.ioloop import IOThread
from skyward.core.nodes.session import Session
from skyward.core.nodes.timing import Timing
from skyward.core.payload import exceptions, pickling
from skyward.core.payload.shared_file import open_shared
from skyward.core.protocol import mailbox, messages, wire
from skyward.core.protocol.messages import Setup
from skyward.core.tasks.dispatch import Dispatcher
from skyward.transport.memory import MemoryChannel, pair

SETUP = Setup("", 2, True, None, {}, [], None, [], [], 60.0)
QUICK = Timing(greeting=0.3, beat=0.05, silence=0.5, give_up=0.5, give_up_alone=0.3, give_up_all=0.5, farewell=1.0)


class MemoryAgent:
    """Runs calls as they come, in the loop; or holds them while `holding`."""

    def __init__(self, slots: int = 2, secret: bytes = b"s") -> None:
        self.slots, self.secret = slots, secret
        self.inbox, self.outbox = mailbox.Inbox(), mailbox.Outbox()
        self.holding = False
        self.forgetful = False  # loses what it is given
        self.reticent = False  # does not say what it has
        self.asked = 0  # times that it was asked for what it has
        self.dead = False
        self.mute = False
        self.sleepy = False  # its slots never start
        self.held: dict[int, tuple[messages.Run, list[bytearray]]] = {}
        self.ran: list[int] = []
        self.begun: set[int] = set()  # of those it holds, what has begun
        self.cancelled: list[int] = []
        self.blobs: dict[bytes, bytearray] = {}
        self.blobs_sent = 0
        self.refuses = False  # begins no task
        self.blind = False  # can't open files of its owner
        self.shares = 0
        self.growing: dict[bytes, bytearray] = {}
        self.missing: dict[bytes, int] = {}
        self.fetches: list[messages.Fetch] = []
        self.peers: dict[str, list[Any]] = {}
        self.codes: list[int] = []  # versions of the code that were announced
        self.evil: Callable[[MemoryAgent], object] | None = None
        """Done once it has a task, on this link and on each that follows."""
        self.fault: str | None = None  # why it broke the last link, as it says
        self.links = 0
        self._channel: Channel | None = None
        self._wire: wire.Wire | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def accept(self, channel: MemoryChannel) -> None:
        self.links += 1
        task = asyncio.get_running_loop().create_task(self._serve(channel))
        self._tasks.add(task)

    async def connect(self) -> Channel:
        """What a session's connector does."""
        from skyward.core.errors import LinkError

        if self.dead:
            raise LinkError("the agent is gone")
        near, far = pair()
        self.accept(far)
        return near

    async def _serve(self, channel: MemoryChannel) -> None:
        link = wire.Wire(wire.Role.AGENT, secret=self.secret, nonce=b"w")
        while data := await channel.read():
            for received in link.receive_data(data):
                if isinstance(received.message, messages.Hello):
                    link.welcome(self.inbox.received, {"memory": 10**9, "fault": self.fault})
                    heard = received.message.received
                elif isinstance(received.message, messages.Proof):
                    self._channel, self._wire = channel, link
                    self.outbox.acknowledge(heard)
                    self.outbox.repeat(link)
                    if self.evil is not None and self.held:
                        self.evil(self)
                elif not received.number or self.inbox.accept(received.number):
                    self.take(received.message, received.buffers)
            self.flush(channel, link)

    def flush(self, channel: Channel | None = None, link: wire.Wire | None = None) -> None:
        channel, link = channel or self._channel, link or self._wire
        if channel is not None and link is not None and not self.mute:
            while link.has_data:
                channel.write(link.data_to_send())

    def say(self, message: messages.Message, buffers: Any = ()) -> None:
        self.outbox.post(message, buffers, self._wire if self._wire is not None and self._wire.is_open else None)

    def take(self, message: messages.Message, buffers: list[bytearray]) -> None:  # noqa: PLR0915 - one for each message
        if isinstance(message, messages.Setup):
            if not self.sleepy:
                self.say(messages.Ready(self.slots, None))
        elif isinstance(message, messages.Ping):
            if self._wire is not None:  # None: cut while this was being read
                self._wire.send(messages.Pong(message.stamp))
                self._wire.send(messages.Ack(self.inbox.received))
        elif isinstance(message, messages.Ack):
            self.outbox.acknowledge(message.received)
        elif isinstance(message, messages.Blob):
            blob = self.growing.setdefault(message.digest, bytearray(message.size))
            blob[message.offset : message.offset + len(buffers[0])] = buffers[0]
            self.missing[message.digest] = self.missing.get(message.digest, message.size) - len(buffers[0])
            if not self.missing[message.digest]:
                self.keep(message.digest)
        elif isinstance(message, messages.Share) and self.blind:
            self.say(messages.Kept(message.digest, 0, "no such file"))
        elif isinstance(message, messages.Share):
            with os.fdopen(open_shared(message.path, message.inode, message.size), "rb") as file:
                self.growing[message.digest] = bytearray(file.read())
            self.shares += 1
            self.keep(message.digest)
        elif isinstance(message, messages.Fetch) and message.peer is None:
            self.say(messages.Kept(message.digest, 0, "dropped"))
        elif isinstance(message, messages.Fetch):
            self.fetches.append(message)
        elif isinstance(message, messages.Peers):
            self.peers.update(message.peers)
        elif isinstance(message, messages.Forget):
            for name in message.digests:
                del self.blobs[name]
        elif isinstance(message, messages.Run):
            if self.forgetful:
                return
            self.held[message.task] = (message, buffers)
            if self.evil is not None:
                self.evil(self)
            elif self.refuses:
                self.crash(message.task, messages.Failure.REFUSED, "no room")
            elif not self.holding and self._complete(message):
                self.answer(message.task)
        elif isinstance(message, messages.Code):
            self.codes.append(message.version)
        elif isinstance(message, messages.Inquire):
            self.asked += 1
            if self.reticent:
                return
            self.say(messages.Missing([task for task in message.tasks if task not in self.held]))
        elif isinstance(message, messages.Recall):
            given = sorted(self.held)[-message.limit :]
            for task in given:
                del self.held[task]
            self.say(messages.Returned(given))
        elif isinstance(message, messages.Cancel) and message.task in self.begun and not message.running:
            pass  # it goes on
        elif isinstance(message, messages.Cancel) and message.task in self.held:
            del self.held[message.task]
            self.cancelled.append(message.task)
            self.say(messages.Failed(message.task, 0.0, messages.Failure.CANCELLED.value, ""))
        elif isinstance(message, messages.Bye):
            self.dead = True
            if self._wire is not None:
                self._wire.send(messages.Bye())
                self.flush()
            self.cut()

    def keep(self, name: bytes) -> None:
        """A blob is whole."""
        self.blobs_sent += 1
        self.blobs[name] = self.growing.pop(name)
        self.missing.pop(name, None)
        assert digest(memoryview(self.blobs[name])) == name
        self.say(messages.Kept(name, len(self.blobs[name]), None))
        if not self.holding:
            self.release()

    def _complete(self, run: messages.Run) -> bool:
        return all(name in self.blobs for name in run.blobs.values())

    def release(self) -> None:
        """Hold no longer: run what is complete now, and the rest as it comes."""
        self.holding = False
        for task in [task for task, (run, _) in self.held.items() if self._complete(run)]:
            self.answer(task)
        self.flush()

    def begin(self, *tasks: int) -> None:
        """Say that held calls have begun."""
        self.begun.update(tasks)
        self.say(messages.Began(list(tasks), [0] * len(tasks)))
        self.flush()

    def answer(self, task: int) -> None:
        """Run a held call now."""
        run, buffers = self.held.pop(task)
        self.ran.append(task)
        rest = iter(buffers[1:])
        count = len(buffers) - 1 + len(run.blobs)
        parts = [self.blobs[run.blobs[i]] if i in run.blobs else next(rest) for i in range(count)]
        began = time.perf_counter()
        try:
            function, args, kwargs = pickling.loads(buffers[0], parts)
            result = pickling.dumps(function(*args, **kwargs), "result", large=None)
        except BaseException as error:
            seconds = time.perf_counter() - began
            self.say(messages.Failed(task, seconds, messages.Failure.RAISED.value, ""), exceptions.dump(error))
        else:
            self.say(messages.Done(task, time.perf_counter() - began), [result.head, *result.buffers])

    def crash(
        self, task: int, reason: messages.Failure = messages.Failure.CRASHED, detail: str = "killed by SIGKILL"
    ) -> None:
        """Say that the process of a held call died."""
        del self.held[task]
        self.say(messages.Failed(task, 0.1, reason.value, detail))
        self.flush()

    def cut(self) -> None:
        """Break the link as a fault would."""
        if self._channel is not None:
            self._channel.close()
        self._channel = self._wire = None


class MemoryPool:
    """An I/O thread, a dispatcher and sessions with agents in memory."""

    def __init__(
        self, timeout: float | None = None, attempts: int = 2, shares: bool = False, timing: Timing | None = None
    ) -> None:
        self.io = IOThread("test-io")
        self.events = Events()
        self.dispatcher = Dispatcher(
            self.io, self.events, isolated=True, timeout=timeout, attempts=attempts, shares=shares, roll_call=0.05
        )
        self.shares = shares
        self.timing = timing or QUICK
        self.agents: list[MemoryAgent] = []
        self.sessions: list[Session] = []
        self.ends: list[Any] = []
        self.submit = self.dispatcher.submit

    def add(self, slots: int = 2, **settings: Any) -> MemoryAgent:
        """One more node, ready when this returns."""
        agent = MemoryAgent(slots)
        for name, value in settings.items():
            setattr(agent, name, value)
        ready = self.io.start(self._add(agent))
        ready.result(30)
        return agent

    async def _add(self, agent: MemoryAgent) -> None:
        up = asyncio.Event()

        def on_ready(session: Session, message: messages.Ready) -> None:
            self.dispatcher.runner.node_up(session, message.slots)
            up.set()

        name = f"m{len(self.agents)}"
        setup = SETUP._replace(node=name, shares=self.shares)
        session = Session(name, agent.connect, b"s", setup, self.dispatcher.runner, on_ready, self.timing)
        self.agents.append(agent)
        self.sessions.append(session)

        async def live() -> None:
            reason = await session.run()
            self.ends.append(reason)
            self.dispatcher.runner.node_down(name, reason or "closed")

        self._life = asyncio.get_running_loop().create_task(live())
        await up.wait()

    def do(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call something in the I/O thread and wait for it."""

        async def call() -> Any:
            return function(*args)

        return self.io.start(call()).result(30)

    def close(self) -> None:
        if self.io.loop.is_closed():
            return
        self.dispatcher.shut("closed")
        self.do(self.dispatcher.cancel_all)
        for session in self.sessions:
            self.io.start(session.close()).result(30)
        self.io.stop()
        self.dispatcher.close()
