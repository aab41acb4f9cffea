"""The agent: the one process of a node that its owner talks to. It never unpickles or runs a user's code.

Started as `core.launch` says, with a start map on standard input (for further agents on this machine,
see `process.multiply`), it listens on a Unix socket in a folder of its own or on the loopback address, and prints one
line of JSON that says where. It outlives its owner's connection: results are kept until they are acknowledged, and the
same session may come back. It ends, with all slots and files, when the owner says Bye, when nobody has come for a
while, on SIGTERM, or when its lifeline is cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import math
import os
import shutil
import signal
import socket
import stat
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from mmap import mmap
from pathlib import Path
from typing import Any

import msgpack

from skyward.core.errors import ProtocolError
from skyward.core.protocol.framing import read_frame
from skyward.core.protocol.messages import (
    HEARD_FILE,
    Ack,
    Blob,
    Bye,
    Cancel,
    Fetch,
    Forget,
    Hello,
    Inquire,
    Peers,
    Ping,
    Pong,
    Proof,
    Ready,
    Recall,
    Run,
    Setup,
    Share,
    StreamClose,
    StreamData,
)
from skyward.core.protocol.wire import Received, Role, Wire
from skyward.core.system.socket_paths import socket_path
from skyward.worker import blob_store, scratch
from skyward.worker.forkserver.launch import ForkServerProcess, forked
from skyward.worker.forkserver.liveness import LIMITS
from skyward.worker.listening_socket import ListeningSocket
from skyward.worker.owner_session import OwnerSession
from skyward.worker.peers import PeerExchange
from skyward.worker.process import ignore_interrupts, multiply, name_process, reap
from skyward.worker.slot_pool import SlotPool, allow_files
from skyward.worker.wire_socket import WireSocket

__all__ = ["Agent", "Start", "main"]

_SILENCE = 20.0  # seconds; an owner that is connected has a heart beat every two
_TOUCH = 1.0  # seconds between two marks that the owner was heard
_GREETING = 10.0  # seconds in which a visitor must prove who it is
_MAX_CONNECTIONS = 32  # that have not proved it
_OTHERS = 0.5  # seconds for agents that are our forks and end with us: in a container nobody else may reap them
_LOG = 1024 * 1024  # bytes of the log file
_NO_SOCKETS = {errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}  # of a file system without them


@dataclass(frozen=True)
class Start:
    """The start map.

    Attributes
    ----------
    listen
        ``unix:/path/agent.sock``; ``unix`` for a socket in a new folder of the agent's own; or ``tcp``.
    secret
        What the owner must know.
    lifeline
        Whether to end when standard input ends; else the agent leaves the session that started it.
    orphan_timeout
        Seconds to wait for an owner.
    scratch
        Folders that are removed at the end. One that it makes itself is, too.
    limits
        When a fork server counts as hung: see `liveness.Limits`.
    """

    listen: str
    secret: bytes
    lifeline: bool
    orphan_timeout: float
    scratch: Sequence[str] = ()
    limits: Sequence[float] = LIMITS


class _Connection:
    """A connection; its maker is the owner as soon as it has proved so."""

    def __init__(self, agent: Agent, sock: socket.socket) -> None:
        self.agent = agent
        self.hello: Hello | None = None
        wire = Wire(Role.WORKER, secret=agent.start.secret, nonce=os.urandom(16))
        self.link = WireSocket(agent.loop, sock, wire, self.hear, self.gone)
        self.timer = agent.loop.call_later(_GREETING, self.gone, "no greeting")

    def hear(self, received: Received) -> None:
        """One message."""
        message = received.message
        if isinstance(message, Hello):
            self.hello = message
            self.agent.greet(self, message)
        elif isinstance(message, Proof) and self.hello is not None:
            self.timer.cancel()
            if self.hello.link:
                self.agent.join(self, self.hello)
            else:
                self.agent.adopt(self, self.hello)
        else:
            self.agent.hear(received)

    def gone(self, reason: str) -> None:
        """The connection has ended, or its maker is not the owner."""
        self.timer.cancel()
        self.link.close()
        self.agent.left(self, reason)


class Agent:
    """Joins owner, slots and store.

    Parameters
    ----------
    loop
        Everything happens on it.
    start
        The start map.
    listener
        The listening socket.
    folder
        A folder that only we can enter.
    server
        A fork server that waits for its task; None to start one when it is needed.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        start: Start,
        listener: socket.socket,
        folder: str,
        server: ForkServerProcess | None = None,
    ) -> None:
        self.loop = loop
        self.start = start
        self.session: OwnerSession | None = None
        self.slots: SlotPool | None = None
        self.peers: PeerExchange | None = None
        self.stopped: asyncio.Future[str] = loop.create_future()
        self.cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._fault: str | None = None  # why we ended the owner's last connection, if that was an error
        self._folder = folder
        self._server = server
        self._connections: set[_Connection] = set()
        self._patience = start.orphan_timeout
        self._heard = loop.time()  # when the owner last said anything
        self._touched = -math.inf
        self._orphan = loop.call_later(self._patience, self._watch)
        self._listener = ListeningSocket(loop, listener, self._accept)
        loop.set_exception_handler(self._unexpected)

    def __repr__(self) -> str:
        return f"<Agent {self._listener!r}, {self.session!r}, {self.slots!r}>"

    def stop(self, reason: str) -> None:
        """End soon; the first reason counts."""
        if not self.stopped.done():
            self.stopped.set_result(reason)

    async def end(self) -> None:
        """End all slots and remove all files."""
        self._listener.close()
        self._orphan.cancel()
        for connection in list(self._connections):
            connection.gone("the agent ends")
        if self.session is not None and self.session.link is not None:
            self.session.link.close()
        if self.peers is not None:
            self.peers.close()
        if self.slots is not None:
            await self.slots.end()
        elif self._server is not None:
            self._server.kill()

    def _unexpected(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An error came out of a callback or a task. The owner learns of it: what it waits for may have been lost."""
        error = context.get("exception")
        log("".join(traceback.format_exception(error)) if error else context["message"])
        if not isinstance(error, Exception) or "transport" in context:  # a peer's connection, which ends by that
            return
        self._fault = self._fault or f"{type(error).__name__}: {error}"
        if self.session is not None and self.session.link is not None:
            self.session.link.fail(ProtocolError(self._fault))

    # --- who comes and goes ---

    def _accept(self, sock: socket.socket) -> None:
        if len(self._connections) >= _MAX_CONNECTIONS:
            sock.close()
            return
        with contextlib.suppress(OSError):
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections.add(_Connection(self, sock))

    def greet(self, connection: _Connection, hello: Hello) -> None:
        """Answer a greeting; another session than ours is not served."""
        if self.session is not None and self.session.name != hello.session:
            raise ProtocolError("this agent serves another session")
        received = self.session.inbox.received if self.session is not None else 0
        connection.link.wire.welcome(received, self._facts())
        connection.link.wake()

    def adopt(self, connection: _Connection, hello: Hello) -> None:
        """A visitor is the owner: it takes the place of an earlier connection, which may be half dead."""
        if self.session is None:
            self.session = OwnerSession(hello.session)
        elif self.session.name != hello.session:
            raise ProtocolError("this agent serves another session")
        self._connections.discard(connection)
        self._fault = None  # it was in the Welcome
        if self.session.link is not None:
            self.session.link.close()
            self.session.link = None
        self.session.attach(connection.link, hello.received)
        if self.slots is not None:
            self.slots.acknowledged(hello.received)

    def join(self, connection: _Connection, hello: Hello) -> None:
        """A visitor is a stripe of the owner's connection: of this very one, not of an earlier or a later."""
        link = self.session.link if self.session is not None else None
        if link is None or link.wire.name != hello.link:
            raise ProtocolError("a stripe of another connection than the present one")
        self._connections.discard(connection)
        connection.link.send(Pong(0.0))
        connection.link.join(link)

    def left(self, connection: _Connection, reason: str) -> None:
        """A connection has ended."""
        self._connections.discard(connection)
        if self.session is not None and self.session.link is connection.link:
            self.session.link = None
            self._fault = self._fault or connection.link.fault
            log(f"the owner's connection has ended: {reason}")
            self._heard = self.loop.time()
            self._watch()

    def _watch(self) -> None:
        """End when the owner has been silent for too long: gone, or behind a line that only seems to be up."""
        linked = self.session is not None and self.session.link is not None
        patience = max(self._patience, _SILENCE) if linked else self._patience
        left = self._heard + patience - self.loop.time()
        if left <= 0:
            self.stop(f"no word of an owner for {patience:g} s")
        else:
            self._orphan.cancel()
            self._orphan = self.loop.call_later(left, self._watch)

    def _facts(self) -> dict[str, Any]:
        return {
            "cores": self.cores,
            "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "pid": os.getpid(),
            "hostname": socket.gethostname(),
            "python": ".".join(map(str, sys.version_info[:3])),
            "zstd": find_spec("zstandard") is not None,
            "session": self.session.name if self.session is not None else None,
            "fault": self._fault,
        }

    # --- the owner's words ---

    def hear(self, received: Received) -> None:
        """A message from the owner."""
        session, message = self.session, received.message
        self._heard = self.loop.time()
        if self._heard > self._touched + _TOUCH:
            self._touched = self._heard
            with contextlib.suppress(OSError):  # it is on rented machines only
                os.utime(HEARD_FILE)
        if session is None:
            raise ProtocolError(f"{type(message).__name__} before the greeting")
        if isinstance(message, Ping):
            session.answer(message)
        elif isinstance(message, Ack):
            session.outbox.acknowledge(message.received)
            if self.slots is not None:
                self.slots.acknowledged(message.received)
        elif isinstance(message, Bye):
            self.stop("the owner said goodbye")
        else:
            session.take(received, self._work)

    def _work(self, received: Received) -> None:
        message, buffers, session, slots = received.message, received.buffers, self.session, self.slots
        if session is not None and isinstance(message, Setup):
            self._set_up(session, message)
        elif session is None or slots is None:
            raise ProtocolError(f"{type(message).__name__} before Setup")
        elif isinstance(message, Run):
            slots.submit(message, buffers)
        elif isinstance(message, Cancel):
            slots.cancel(message)
        elif isinstance(message, Recall):
            slots.recall(message)
        elif isinstance(message, Inquire):
            slots.inquire(message.tasks)
        elif isinstance(message, (StreamData, StreamClose)):
            slots.stream(message, buffers[0] if buffers else None)
        elif isinstance(message, Blob):
            (data,) = buffers
            slots.keep(message, data, number=received.number)
            if isinstance(data, mmap) and session.link and not slots.store.holds(message.digest, message.offset):
                session.link.wire.buffer_pool.give(data)
        elif isinstance(message, Share):
            slots.adopt(message)
        elif isinstance(message, Forget):
            slots.forget(message.digests, received.number)
        elif isinstance(message, Fetch) and self.peers is not None:
            self.peers.fetch(message)
        elif isinstance(message, Peers) and self.peers is not None:
            self.peers.meet(message)

    def _set_up(self, session: OwnerSession, setup: Setup) -> None:
        if self.slots is not None:
            raise ProtocolError("a second Setup")
        self._patience = setup.orphan_timeout
        self._watch()
        try:
            if setup.concurrency < 1:
                raise ValueError(f"concurrency must be at least 1, not {setup.concurrency}")
            allow_files(setup.concurrency)
            if setup.env and self._server is not None:  # some variables count only when an interpreter starts
                self._server.kill()
                self._server = None
            self.slots = slots = SlotPool(
                self.loop,
                setup,
                self.cores,
                self._folder,
                session.post,
                self._server,
                {"scratch": list(self.start.scratch), "limits": list(self.start.limits)},
            )
            if setup.identity is not None:
                self.peers = PeerExchange(
                    self.loop, setup.identity, setup.node, self._folder, slots.store, slots.keep, session.post
                )
                slots.grew = self.peers.grew
        except (OSError, ValueError) as error:
            session.post(Ready(0, f"can't start slots: {error}"))


# --- the process ----------------------------------------------------------------------------------------------------


def log(text: str) -> None:
    """A line to standard error, which is the log file once the agent is on its own; that never grows without end."""
    with contextlib.suppress(OSError):
        status = os.fstat(2)
        if stat.S_ISREG(status.st_mode) and status.st_size > _LOG:
            os.ftruncate(2, 0)
        os.write(2, f"skyward agent {os.getpid()}: {text}\n".encode())


def read_start() -> Start:
    """The start map from standard input; not a byte more, the rest is the lifeline."""
    return Start(**msgpack.unpackb(read_frame(partial(os.read, 0), limit=1024 * 1024)))


def listen(where: str) -> tuple[socket.socket, str, str]:
    """Listen; returns the socket, its address for the owner, and our private folder."""
    if where == "tcp":
        listener = socket.create_server(("127.0.0.1", 0))
        return listener, f"127.0.0.1:{listener.getsockname()[1]}", scratch.make(tempfile.gettempdir(), "agent")[0]
    if where == "unix":
        where = f"unix:{scratch.make(tempfile.gettempdir(), 'agent')[0]}/agent.sock"
    path = where.removeprefix("unix:")
    folder = Path(path).parent
    if not where.startswith("unix:/"):
        raise ValueError(f"can't listen on {where!r}: neither tcp nor unix nor unix:/path")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{folder} is not a folder of ours")
    try:
        folder.chmod(0o700)
        return _bind(path), path, str(folder)
    except OSError as error:
        if error.errno not in _NO_SOCKETS:
            raise
        return _listen_elsewhere(error)


def _bind(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.suppress(OSError), socket_path(path) as name:
        listener.connect(name)
        raise SystemExit(f"skyward: another agent listens at {path}")
    listener.close()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.suppress(FileNotFoundError):
        Path(path).unlink()
    with socket_path(path) as name:
        listener.bind(name)
    listener.listen(16)
    return listener


def _listen_elsewhere(why: OSError) -> tuple[socket.socket, str, str]:
    """Listen in a new folder of our own, as the file system that was meant holds no sockets (vfat, some of FUSE)."""
    # The system's runtime folder may go with the login, while we outlive that: hence last.
    for place in (tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR"), f"/run/user/{os.getuid()}"):
        if place and Path(place).is_dir():
            with contextlib.suppress(OSError):
                folder = scratch.make(place, "agent")[0]
                path = f"{folder}/agent.sock"
                return _bind(path), path, folder
    raise why


def announce(address: str) -> None:
    """The one line on standard output."""
    os.write(1, (json.dumps({"listening": address, "pid": os.getpid()}) + "\n").encode())


def detach(folder: str) -> None:
    """Let go of everything of the session that started us."""
    null = os.open(os.devnull, os.O_RDWR)
    mode = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    file = os.open(f"{folder}/agent.log", mode, 0o600)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.dup2(file, 2)
    os.close(null)
    os.close(file)


def _watch_lifeline(agent: Agent) -> None:
    try:
        data = os.read(0, 4096)
    except BlockingIOError:
        return
    except OSError:
        data = b""
    if not data:
        agent.loop.remove_reader(0)
        agent.stop("the lifeline was cut")


def sweep() -> None:
    """Remove what agents of this user left here that were killed."""
    blob_store.sweep()
    scratch.sweep(tempfile.gettempdir(), "agent")


async def _live(
    start: Start, listener: socket.socket, folder: str, server: ForkServerProcess | None, others: list[int]
) -> None:
    loop = asyncio.get_running_loop()
    agent = Agent(loop, start, listener, folder, server)
    if others:
        loop.add_signal_handler(signal.SIGCHLD, reap, others)
    loop.add_signal_handler(signal.SIGTERM, agent.stop, "SIGTERM")
    if start.lifeline:
        loop.add_reader(0, _watch_lifeline, agent)
    reason = await agent.stopped
    if not start.lifeline:
        log(f"ends: {reason}")
    await agent.end()


def main() -> None:
    """Run the agent of a node until it is not needed any more."""
    ignore_interrupts()
    name_process("skyward-agent")
    try:
        others = multiply(sys.argv[1:]) if len(sys.argv) > 1 else []
        start = read_start()
        listener, address, folder = listen(start.listen)
        if str(Path(start.listen.removeprefix("unix:")).parent) != folder:  # one that we made
            start = replace(start, scratch=[*start.scratch, folder])
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise SystemExit(f"skyward: the agent can't start: {error}") from error
    if not start.lifeline:
        if os.fork():
            os._exit(0)  # whoever started us has its line from the child, and need not wait
        os.setsid()
    announce(address)
    if not start.lifeline:
        detach(folder)
    sweep()
    server = None
    with contextlib.suppress(OSError):  # if it can't be made now, it is tried again when there is an owner to tell
        server = forked()
    try:
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:  # whatever policy a module has set
            runner.run(_live(start, listener, folder, server, others))
    except BaseException:
        if not start.lifeline:  # the log says why; the next agent's start removes it
            start = replace(start, scratch=[])
        raise
    finally:
        with contextlib.suppress(OSError):
            Path(address).unlink()
        for each in start.scratch:
            shutil.rmtree(each, ignore_errors=True)
        reap(others, _OTHERS)


if __name__ == "__main__":
    main()
