"""The agent: the one process of a node that its owner talks to. It never unpickles user data or runs user code.

It is started as `core.system.launch` describes, with a start map on standard input (for several agents on one machine,
see `process.multiply`). It listens on a Unix socket in a folder of its own or on the loopback address, and prints one
line of JSON with the address. It outlives its owner's connection: results are kept until they are acknowledged, and the
same session may reconnect. It ends, with all slots and files, when the owner sends Bye, when no owner has been heard
for a while, on SIGTERM, or when its lifeline is cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from mmap import mmap
from pathlib import Path
from typing import Any, ClassVar, get_args

import msgpack

from skyward.core.errors import ProtocolError
from skyward.core.protocol.framing import read_frame
from skyward.core.protocol.messages import (
    HEARD_FILE,
    Ack,
    Blob,
    Bye,
    Cancel,
    Code,
    Fetch,
    Forget,
    Gpus,
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
from skyward.core.system import machine
from skyward.worker import blob_store, scratch
from skyward.worker.agent_socket import listen
from skyward.worker.agent_system import AgentSystem
from skyward.worker.file_service import FileRequest, FileService
from skyward.worker.forkserver.launch import ForkServerProcess, forked
from skyward.worker.forkserver.liveness import LIMITS
from skyward.worker.listening_socket import ListeningSocket
from skyward.worker.load_reports import LoadReports
from skyward.worker.node_gpus import NodeGpus
from skyward.worker.own_folders import OwnFolders, own_folders
from skyward.worker.owner_session import OwnerSession
from skyward.worker.peers import PeerExchange
from skyward.worker.process import ignore_interrupts, multiply, name_process, reap
from skyward.worker.slot_pool import SlotPool, allow_files
from skyward.worker.wire_socket import WireSocket

__all__ = ["Agent", "Start", "main"]

_SILENCE = 20.0  # seconds; a connected owner sends a heartbeat every two
_TOUCH = 1.0  # seconds between two updates of the file that records when the owner was last heard
_FIRST_GREETING = 60.0  # seconds: whoever has it started greets it at once, or has ended meanwhile
_GREETING = 10.0  # seconds in which a connection must authenticate
_MAX_CONNECTIONS = 32  # that have not authenticated
_OTHERS = 0.5  # seconds for forked agents to end along with this one: in a container nobody else may reap them


@dataclass(frozen=True)
class Start:
    """The start map.

    Attributes
    ----------
    listen
        ``unix:/path/agent.sock``; ``unix`` for a socket in a new folder of the agent's own; ``tcp``; or ``given``, if
        the script that starts the agent has chosen its folders.
    secret
        Shared with the owner, which proves that it knows it.
    lifeline
        Whether to end when standard input ends; if not, the agent leaves the session that started it.
    orphan_timeout
        Seconds to wait for an owner.
    scratch
        Folders to remove at the end, in addition to one that the agent makes itself.
    limits
        When a fork server counts as hung: see `liveness.Limits`.
    run, cache
        See `own_folders`.
    """

    listen: str
    secret: bytes
    lifeline: bool
    orphan_timeout: float
    scratch: Sequence[str] = ()
    limits: Sequence[float] = LIMITS
    run: str = ""
    cache: str = ""


class _Connection:
    """A connection, which is the owner's once the other end has authenticated."""

    def __init__(self, agent: Agent, sock: socket.socket) -> None:
        self.agent = agent
        self.hello: Hello | None = None
        wire = Wire(Role.AGENT, secret=agent.start.secret, nonce=agent.system.random_bytes(16))
        self.link = WireSocket(agent.loop, sock, wire, self.hear, self.gone)
        self.timer = agent.loop.call_later(_GREETING, self.gone, "no greeting")

    def hear(self, received: Received) -> None:
        """Handle a message; after the handshake all of them are the agent's."""
        handler = self._HANDSHAKE.get(type(received.message))
        if handler is None:
            self.agent.hear(received)
        else:
            handler(self, received.message)

    def _greeted(self, hello: Hello) -> None:
        self.hello = hello
        self.agent.greet(self, hello)

    def _proved(self, _: Proof) -> None:
        self.timer.cancel()
        assert self.hello is not None  # the wire refuses a Proof before a Hello
        if self.hello.link:
            self.agent.join(self, self.hello)
        else:
            self.agent.adopt(self, self.hello)

    _HANDSHAKE: ClassVar[dict[type[Any], Callable[[_Connection, Any], None]]] = {Hello: _greeted, Proof: _proved}

    def gone(self, reason: str) -> None:
        """Close the connection: it has ended, or has not authenticated."""
        self.timer.cancel()
        self.link.close()
        self.agent.left(self, reason)


def _about_files(agent: Agent, _: SlotPool, message: FileRequest, received: Received) -> None:
    assert agent.files is not None  # it is made with the slots
    agent.files.hear(message, received.buffers)


class Agent:
    """Connects the owner with the slots and the blobs of its node.

    Parameters
    ----------
    loop
        Everything happens on it.
    start
        The start map.
    listener
        The listening socket.
    folder
        A folder that only this user can enter.
    server
        A fork server that waits for its configuration; None to start one when it is needed.
    system
        What is used of the machine in addition to the loop.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        start: Start,
        listener: socket.socket,
        folder: str,
        server: ForkServerProcess | None = None,
        system: AgentSystem | None = None,
    ) -> None:
        self.loop = loop
        self.start = start
        self.system = system or AgentSystem()
        self.session: OwnerSession | None = None
        self.slots: SlotPool | None = None
        self.peers: PeerExchange | None = None
        self.gpus: NodeGpus | None = None
        self.files: FileService | None = None
        self.loads: LoadReports | None = None
        self.stopped: asyncio.Future[str] = loop.create_future()
        self.cores = machine.core_count()
        self._fault: str | None = None  # the error that ended the owner's last connection, if any
        self._early: list[Received] | None = None  # messages that arrived while the GPUs were being looked for
        self._folder = folder
        self._server = server
        self._folders: OwnFolders | None = None
        self._connections: set[_Connection] = set()
        self._patience = min(start.orphan_timeout, _FIRST_GREETING)
        self._heard = loop.time()  # when the owner was last heard
        self._touched = -math.inf
        self._orphan = loop.call_later(self._patience, self._watch)
        self._listener = ListeningSocket(loop, listener, self._accept)
        loop.set_exception_handler(self._unexpected)

    def __repr__(self) -> str:
        return f"<Agent {self._listener!r}, {self.session!r}, {self.slots!r}>"

    def stop(self, reason: str) -> None:
        """Begin to end; only the first call's reason counts."""
        if not self.stopped.done():
            self.stopped.set_result(reason)

    async def end(self) -> None:
        """End all slots and remove all files."""
        self._listener.close()
        self._orphan.cancel()
        for connection in list(self._connections):
            connection.gone("the agent ends")
        if self.session is not None:
            self.session.part()
        if self.loads is not None:
            self.loads.close()
        if self.peers is not None:
            self.peers.close()
        if self.slots is not None:
            await self.slots.end()
        elif self._server is not None:
            self._server.kill()
        if self.files is not None:
            self.files.close()
        if self._folders is not None:
            self._folders.close()

    def _unexpected(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Report an error of a callback or a task to the owner: what it waits for may have been lost."""
        error = context.get("exception")
        self.system.log("".join(traceback.format_exception(error)) if error else context["message"])
        if not isinstance(error, Exception) or "transport" in context:  # of a peer's connection, which is closed
            return
        self._fault = self._fault or f"{type(error).__name__}: {error}"
        if self.session is not None and self.session.link is not None:
            self.session.link.fail(ProtocolError(self._fault))

    # --- connections ---

    def _accept(self, sock: socket.socket) -> None:
        if len(self._connections) >= _MAX_CONNECTIONS:
            sock.close()
            return
        with contextlib.suppress(OSError):
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections.add(_Connection(self, sock))

    def greet(self, connection: _Connection, hello: Hello) -> None:
        """Answer a Hello; an agent serves only one session."""
        if self.session is not None and self.session.name != hello.session:
            raise ProtocolError("this agent serves another session")
        received = self.session.inbox.received if self.session is not None else 0
        connection.link.wire.welcome(received, self._facts())
        connection.link.wake()

    def adopt(self, connection: _Connection, hello: Hello) -> None:
        """Make an authenticated connection the owner's, instead of an earlier one, which may be half dead."""
        if self.session is None:
            self.session = OwnerSession(hello.session)
            self._patience = self.start.orphan_timeout
        elif self.session.name != hello.session:
            raise ProtocolError("this agent serves another session")
        self._connections.discard(connection)
        self._fault = None  # the Welcome contained it
        if self.session.link is not None:
            self.session.link.close()
            self.session.link = None
        self.session.attach(connection.link, hello.received)
        if self.slots is not None:
            self.slots.acknowledged(hello.received)

    def join(self, connection: _Connection, hello: Hello) -> None:
        """Make an authenticated connection a stripe of the owner's current one."""
        link = self.session.link if self.session is not None else None
        if link is None or link.wire.name != hello.link:
            raise ProtocolError("a stripe of a connection that is not the current one")
        self._connections.discard(connection)
        connection.link.send(Pong(0.0))
        connection.link.join(link)

    def left(self, connection: _Connection, reason: str) -> None:
        """Forget a connection that has ended."""
        self._connections.discard(connection)
        if self.session is not None and self.session.link is connection.link:
            self.session.link = None
            self._fault = self._fault or connection.link.fault
            self.system.log(f"the owner's connection has ended: {reason}")
            self._heard = self.loop.time()
            self._watch()

    def _watch(self) -> None:
        """End if the owner has been silent for too long: it is gone, or its connection only seems to be up."""
        linked = self.session is not None and self.session.link is not None
        patience = max(self._patience, _SILENCE) if linked else self._patience
        left = self._heard + patience - self.loop.time()
        if left <= 0:
            self.stop(f"no owner was heard for {patience:g} s")
        else:
            self._orphan.cancel()
            self._orphan = self.loop.call_later(left, self._watch)

    def _facts(self) -> dict[str, Any]:
        return {
            "cores": self.cores,
            "memory": self.system.memory(),
            "pid": os.getpid(),
            "hostname": socket.gethostname(),
            "python": ".".join(map(str, sys.version_info[:3])),
            "zstd": find_spec("zstandard") is not None,
            "session": self.session.name if self.session is not None else None,
            "fault": self._fault,
        }

    # --- messages of the owner ---

    def hear(self, received: Received) -> None:
        """Handle a message of the owner."""
        session, message = self.session, received.message
        self._heard = self.loop.time()
        if self._heard > self._touched + _TOUCH:
            self._touched = self._heard
            with contextlib.suppress(OSError):  # only rented machines have the file
                os.utime(HEARD_FILE)
        if session is None:
            raise ProtocolError(f"{type(message).__name__} before the greeting")
        handler = self._UNNUMBERED.get(type(message))
        if handler is None:
            session.take(received, self._work)
        else:
            handler(self, session, message)

    def _ping(self, session: OwnerSession, message: Ping) -> None:
        session.answer(message)

    def _acknowledged(self, session: OwnerSession, message: Ack) -> None:
        session.outbox.acknowledge(message.received)
        if self.slots is not None:
            self.slots.acknowledged(message.received)

    def _bye(self, _: OwnerSession, __: Bye) -> None:
        self.stop("the owner said goodbye")

    _UNNUMBERED: ClassVar[dict[type[Any], Callable[[Agent, OwnerSession, Any], None]]] = {
        Ping: _ping,
        Ack: _acknowledged,
        Bye: _bye,
    }

    def _work(self, received: Received) -> None:
        """Handle a numbered message."""
        message, slots = received.message, self.slots
        if slots is None:
            if self._early is not None:
                self._early.append(received)
                return
            if not isinstance(message, Setup):
                raise ProtocolError(f"{type(message).__name__} before Setup")
            self._set_up(message)
            return
        handler = self._NUMBERED.get(type(message))
        if handler is None:
            raise ProtocolError(f"{type(message).__name__} is not expected after Setup")
        handler(self, slots, message, received)

    def _blob(self, slots: SlotPool, message: Blob, received: Received) -> None:
        (data,) = received.buffers
        slots.needs.blobs.keep(message, data, number=received.number)
        link = self.session.link if self.session is not None else None
        if isinstance(data, mmap) and link and not slots.needs.blobs.store.holds(message.digest, message.offset):
            link.wire.buffer_pool.give(data)

    def _stream(self, slots: SlotPool, message: StreamData | StreamClose, received: Received) -> None:
        slots.bridge.receive(message, received.buffers[0] if received.buffers else None)

    def _fetch(self, _: SlotPool, message: Fetch, __: Received) -> None:
        if self.peers is not None:
            self.peers.fetch(message)

    def _meet(self, _: SlotPool, message: Peers, __: Received) -> None:
        if self.peers is not None:
            self.peers.meet(message)

    _NUMBERED: ClassVar[dict[type[Any], Callable[[Agent, SlotPool, Any, Received], None]]] = {
        Run: lambda _, slots, message, received: slots.submit(message, received.buffers),
        Code: lambda _, slots, message, received: slots.needs.announce(message, received.buffers[0]),
        Cancel: lambda _, slots, message, __: slots.cancel(message),
        Recall: lambda _, slots, message, __: slots.recall(message),
        Inquire: lambda _, slots, message, __: slots.inquire(message.tasks),
        Share: lambda _, slots, message, __: slots.needs.blobs.adopt(message),
        Forget: lambda _, slots, message, received: slots.needs.blobs.store.forget(message.digests, received.number),
        Blob: _blob,
        StreamData: _stream,
        StreamClose: _stream,
        Fetch: _fetch,
        Peers: _meet,
        **dict.fromkeys(get_args(FileRequest), _about_files),
    }

    def _set_up(self, setup: Setup) -> None:
        self._patience = setup.orphan_timeout
        self._watch()
        if not setup.gpus:
            self._start_slots(setup, [])
            return
        self._early = []
        self.gpus = NodeGpus(self.loop, setup, self.system.find_gpus, self.system.start_thread)
        self.gpus.share_out(lambda shares, message: self._found_gpus(setup, shares, message))

    def _found_gpus(self, setup: Setup, shares: Sequence[Mapping[str, str | None]], message: Gpus) -> None:
        session, early = self.session, self._early
        assert session is not None
        assert early is not None
        self._early = None
        if self.stopped.done():  # nobody would end the slots
            return
        session.post(message)
        if message.error is not None:
            session.post(Ready(0, f"can't start slots: {message.error}"))
            return
        self._start_slots(setup._replace(concurrency=len(shares)), shares)
        for received in early:
            self._work(received)

    def _start_slots(self, setup: Setup, shares: Sequence[Mapping[str, str | None]]) -> None:
        session = self.session
        assert session is not None
        try:
            if setup.concurrency < 1:
                raise ValueError(f"concurrency must be at least 1, not {setup.concurrency}")
            allow_files(setup.concurrency)
            if setup.env and self._server is not None:  # some variables count only when an interpreter starts
                self._server.kill()
                self._server = None
            self._folders = folders = own_folders(self.start.run, self.start.cache, self._folder)
            if setup.cwd is None:
                setup = setup._replace(cwd=folders.work)
            own = {"scratch": [*self.start.scratch, folders.base], "limits": list(self.start.limits), "gpus": shares}
            own["kept"] = folders.kept
            self.slots = slots = SlotPool(
                self.loop, setup, self.cores, self._folder, session.post, self._server, own, self.system
            )
            if setup.identity is not None:
                blobs = slots.needs.blobs
                network = self.system.peer_network(self.loop, setup.identity, self._folder)
                self.peers = PeerExchange(self.loop, network, setup.node, blobs.store, blobs.keep, session.post)
                blobs.grew = self.peers.grew
            work = setup.cwd or folders.work
            self.files = FileService(self.loop, slots.needs.blobs, folders, work, session.post)
            self.files.on_writable = slots.answers.hold
            if setup.load:
                measure = self.system.make_meter(work)
                self.loads = LoadReports(
                    self.loop, session.post, lambda: session.link is not None, measure, self.gpus, setup.load
                )
        except (OSError, ValueError) as error:
            session.post(Ready(0, f"can't start slots: {error}"))


# --- the process ----------------------------------------------------------------------------------------------------


def read_start() -> Start:
    """Read the start map from standard input, and not a byte more: what follows is the lifeline."""
    start = Start(**msgpack.unpackb(read_frame(partial(os.read, 0), limit=1024 * 1024)))
    if start.listen != "given":
        return start
    # The variables are the agent's alone.
    run, sockets, cache = (os.environ.pop(f"SKYWARD_{name}") for name in ("RUN", "SOCKETS", "CACHE"))
    return replace(start, listen=f"unix:{sockets}/agent.sock", scratch=sorted({run, sockets}), run=run, cache=cache)


def announce(address: str) -> None:
    """Print the one line on standard output."""
    os.write(1, (json.dumps({"listening": address, "pid": os.getpid()}) + "\n").encode())


def detach(folder: str) -> None:
    """Leave the terminal and files of the session that started the agent; write a log file from now on."""
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
    """Remove what this user's killed agents left on this machine."""
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
        agent.system.log(f"ends: {reason}")
    await agent.end()


def _fork_agents(pipes: list[str]) -> list[int]:
    """Fork further agents: see `multiply`."""
    # All of them need it, and share what is imported before they are forked.
    from skyward.worker.forkserver import server  # noqa: F401, PLC0415 - a single agent forks its server without it

    return multiply(pipes)


def main() -> None:
    """Run the agent of a node until it is no longer needed."""
    ignore_interrupts()
    name_process("skyward-agent")
    try:
        others = _fork_agents(sys.argv[1:]) if len(sys.argv) > 1 else []
        start = read_start()
        listener, address, folder = listen(start.listen)
        if str(Path(start.listen.removeprefix("unix:")).parent) != folder:  # one that `listen` made
            start = replace(start, scratch=[*start.scratch, folder])
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise SystemExit(f"skyward: the agent can't start: {error}") from error
    if not start.lifeline:
        if os.fork():
            os._exit(0)  # the child prints the line, so whoever started the agent need not wait
        os.setsid()
    announce(address)
    if not start.lifeline:
        detach(folder)
    sweep()
    server = None
    with contextlib.suppress(OSError):  # it is tried again when there is an owner to report an error to
        server = forked()
    try:
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:  # whatever policy a module has set
            runner.run(_live(start, listener, folder, server, others))
    except BaseException:
        if not start.lifeline:  # the log contains the error; the next agent that starts removes it
            start = replace(start, scratch=[])
        raise
    finally:
        with contextlib.suppress(OSError):
            Path(address).unlink()
        for each in start.scratch:
            scratch.remove(each)
        reap(others, _OTHERS)


if __name__ == "__main__":
    main()
