"""A synchronous owner that starts a real agent and talks with it over a real socket."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import struct
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack

from skyward.core.payload import exceptions, pickling
from skyward.core.protocol.mailbox import Inbox, Outbox
from skyward.core.protocol.messages import (
    Ack,
    Began,
    Blob,
    Bye,
    Done,
    Failed,
    Message,
    Output,
    Ready,
    Returned,
    Run,
    Setup,
    StreamClose,
    StreamData,
    StreamOpen,
    Welcome,
)
from skyward.core.protocol.wire import Received, Role, Wire
from skyward.core.system.launch import command
from skyward.core.system.socket_paths import socket_path
from tests.processes import alive, descendants
from tests.worker.nursery import forked

ROOT = Path(__file__).parents[2]
SECRET = b"the pool's secret"
PATIENCE = 60.0


def setup(**changes: Any) -> Setup:
    """Return a Setup for tests."""
    values: dict[str, Any] = {
        "node": "n0", "concurrency": 2, "isolated": True, "threads": None, "env": {}, "path": [str(ROOT)], "cwd": None,
        "preload": [], "around": [], "orphan_timeout": 30.0, "load": 0.0,
    }  # fmt: skip
    return Setup(**{**values, **changes})


def wait_for(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Wait for a condition, and return its first true value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(0.005)
    return value


def run_until(loop: asyncio.AbstractEventLoop, condition: Callable[[], object]) -> None:
    """Run a loop until a condition is true."""

    async def wait() -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():  # noqa: ASYNC110 - any condition, of which nothing reports
                await asyncio.sleep(0.002)

    loop.run_until_complete(wait())


class Owner:
    """Starts an agent, and is its owner.

    Parameters
    ----------
    secret, session
        As the protocol knows them.
    program
        Whether the agent is a program of its own, and not the fork of one. It is if it has no lifeline, and so leaves
        the process that started it.
    start
        Changes to the start map.
    """

    def __init__(self, *, secret: bytes = SECRET, session: str = "s1", program: bool = False, **start: Any) -> None:
        self.secret = secret
        self.session = session
        values = {"listen": "unix", "secret": SECRET, "lifeline": True, "orphan_timeout": 30.0, **start}
        self.process = _program() if program or not values["lifeline"] else forked(str(ROOT))
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        packed = msgpack.packb(values)
        self.process.stdin.write(struct.pack("!I", len(packed)) + packed)
        self.process.stdin.flush()
        self.line = json.loads(self.process.stdout.readline())
        self.pid = self.line["pid"]
        self.outbox = Outbox()
        self.inbox = Inbox()
        self.answers: dict[int, Received] = {}
        self.output: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}
        self.streams: list[Received] = []
        self.ready: Ready | None = None
        self.returned: list[list[int]] = []
        self.twice: list[int] = []
        self.order: deque[Received] = deque()
        self.acks = True
        self.sock: socket.socket | None = None
        self.welcome: Welcome | None = None
        self._last = 0
        self.isolated = True

    # --- link ---

    def open(self) -> socket.socket:
        """Open a bare connection to the agent."""
        where = self.line["listening"]
        if where.startswith("/"):
            sock = socket.socket(socket.AF_UNIX)
            with socket_path(where) as name:
                sock.connect(name)
            return sock
        host, _, port = where.rpartition(":")
        return socket.create_connection((host, int(port)))

    def connect(self) -> Owner:
        """Greet, authenticate, and repeat what was not acknowledged."""
        self.sock = self.open()
        self.wire = Wire(Role.OWNER, secret=self.secret, nonce=os.urandom(16))
        self.wire.hello(self.session, self.inbox.received)
        self.flush()
        self.until(lambda: self.welcome is not None, "Welcome")
        assert self.welcome is not None
        self.wire.prove()
        self.outbox.acknowledge(self.welcome.received)
        self.outbox.repeat(self.wire)
        self.welcome = None
        self.flush()
        return self

    def cut(self) -> None:
        """Lose the connection without a Bye."""
        assert self.sock is not None
        self.sock.close()
        self.sock = None

    def flush(self) -> None:
        """Write everything; reads too, so that neither end waits for the other."""
        assert self.sock is not None
        while parts := self.wire.data_to_send():
            for part in parts:
                view = memoryview(part)
                while view:
                    readable, writable, _ = select.select([self.sock], [self.sock], [], PATIENCE)
                    if readable:
                        self.receive()
                    if writable:
                        view = view[self.sock.send(view[: 64 * 1024]) :]

    def receive(self) -> None:
        """Read once."""
        assert self.sock is not None
        data = self.sock.recv(1 << 20)
        if not data:
            raise ConnectionError("the agent has closed the connection")
        for received in self.wire.receive_data(data):
            self.hear(received)

    def hear(self, received: Received) -> None:
        """Take one message."""
        message = received.message
        if isinstance(message, Welcome):
            self.welcome = message
            self.facts = message.facts
            return
        if isinstance(message, Ack):
            self.outbox.acknowledge(message.received)
            return
        if received.number and not self.inbox.accept(received.number):
            return
        if received.number and self.acks and self.inbox.received % 16 == 0:
            self.wire.send(Ack(self.inbox.received))
        self.order.append(received)
        if isinstance(message, (Done, Failed)):
            if message.task in self.answers:
                self.twice.append(message.task)
            self.answers[message.task] = received
        elif isinstance(message, Output):
            self.output[message.stream] += received.buffers[0]
        elif isinstance(message, Ready):
            self.ready = message
        elif isinstance(message, Returned):
            self.returned.append(message.tasks)
        elif isinstance(message, (StreamOpen, StreamData, StreamClose)):
            self.streams.append(received)

    def poll(self) -> None:
        """Read what comes within a moment."""
        assert self.sock is not None
        if select.select([self.sock], [], [], 0.005)[0]:
            self.receive()

    def until(self, condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
        """Read until a condition is true."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert self.sock is not None
            left = deadline - time.monotonic()
            if left < 0:
                raise AssertionError(f"{what}: not within {seconds} s")
            if select.select([self.sock], [], [], min(left, 0.05))[0]:
                self.receive()
                if self.wire.has_data:
                    self.flush()
        return value

    # --- messages ---

    def send(self, message: Message, buffers: Any = ()) -> None:
        """Send a numbered message."""
        self.outbox.post(message, buffers, self.wire if self.sock is not None else None)
        if self.sock is not None:
            self.flush()

    def set_up(self, **changes: Any) -> Owner:
        """Connect, set up, and wait until the node is ready."""
        self.connect()
        self.send(setup(**changes))
        self.until(lambda: self.ready, "Ready")
        return self

    def submit(self, function: Any, *args: Any, **options: Any) -> int:
        """Send a task; options are those of Run, and `large` and `mode` those of `payload.dumps`."""
        self._last += 1
        large, mode = options.pop("large", None), options.pop("mode", "c")
        head, buffers = pickling.dumps((function, args, {}), "call", large=large, mode=mode)
        blobs: dict[int, bytes] = {}
        if large is not None:
            for index, buffer in enumerate(buffers):
                if len(buffer) >= large:
                    blobs[index] = b"digest-%d-%d" % (self._last, index)
        values = {"isolated": self.isolated, "timeout": None, "threads": None, "blobs": blobs, **options}
        rest = [buffer for index, buffer in enumerate(buffers) if index not in blobs]
        self.send(Run(task=self._last, **values), [head, *rest])
        for index, digest in blobs.items():
            self.send(Blob(digest, len(buffers[index]), 0), [buffers[index]])
        return self._last

    def answer(self, task: int, seconds: float = PATIENCE) -> Received:
        """Wait for Done or Failed."""
        self.until(lambda: task in self.answers, f"answer of task {task}", seconds)
        return self.answers[task]

    def result(self, task: int) -> Any:
        """Wait for what a task returned; its exception is raised, other failures are RuntimeErrors."""
        message, buffers = self.answer(task)[1:]
        if isinstance(message, Done):
            return pickling.loads(buffers[0], buffers[1:])
        assert isinstance(message, Failed)
        if buffers:
            raise exceptions.load(buffers[0])
        raise RuntimeError(f"{message.reason}: {message.detail}")

    def failed(self, task: int) -> Failed:
        """Wait for a task's Failed."""
        message = self.answer(task).message
        assert isinstance(message, Failed), message
        return message

    def call(self, function: Any, *args: Any, **options: Any) -> Any:
        """Submit and wait."""
        return self.result(self.submit(function, *args, **options))

    def end(self) -> None:
        """Send Bye, and check that nothing is left."""
        pids = {self.pid} | descendants(self.pid)
        try:
            if self.sock is not None:
                self.wire.send(Bye())
                self.flush()
                self.sock.close()
        except OSError:
            pass
        if self.sock is None and alive(self.pid):
            os.kill(self.pid, signal.SIGTERM)
        wait_for(lambda: not any(map(alive, pids)), "end of all processes", 10.0)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


def _program() -> subprocess.Popen[bytes]:
    agent = command("skyward.worker.agent", str(ROOT))
    return subprocess.Popen(agent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)


@contextmanager
def owner(**start: Any) -> Iterator[Owner]:
    """An owner, whose agent ends in any case."""
    it = Owner(**start)
    try:
        yield it
        assert not it.twice, f"answered twice: {it.twice}"
    finally:
        it.end()


def began(node: Owner, task: int) -> bool:
    """Whether the agent has said that a task has begun."""
    return any(task in received.message.tasks for received in node.order if isinstance(received.message, Began))
