"""The line between the driver and its nodes: bytes that arrive late, in chunks of any size, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from skyward.core.errors import HostUnreachable, LinkError
from skyward.core.interfaces import Channel
from tests.simulation.world import Process, World

__all__ = ["SIZES", "Connection", "Line", "Route"]

_AHEAD = 256 * 1024  # bytes that a channel takes before it is congested
_CHUNK = 256 * 1024
SIZES = ((_CHUNK,), (_CHUNK,), (1, 64, 100, 4096, _CHUNK))
"""Most bytes that a reader takes at a time: some take what there is, and some draw it each time."""


class Route(NamedTuple):
    """What the way to a machine is like.

    Attributes
    ----------
    latency
        Seconds one way; each chunk takes up to twice as long.
    rate
        Bytes a second of each connection to the agent.
    striped
        Whether large messages go over further connections, as over SSH; only then are they compressed.
    links, channels
        How many connections the host allows, and channels on each.
    """

    latency: float
    rate: float
    striped: bool
    links: float
    channels: float


class Connection:
    """The driver's end of one connection to an agent, with what is on its way; see `Channel` for its public half."""

    def __init__(self, line: Line, sock: socket.socket) -> None:
        self.line = line
        self.sock = sock  # the agent has the other end
        self.cut = False
        self._sizes = line.world.random.choice(SIZES)
        self._came: list[bytes] = []
        self._ended = False
        self._changed = asyncio.Event()
        self._up: list[memoryview] = []  # arrived, and not yet taken by the agent's socket
        self._unsent = 0  # bytes between `write` and the agent's socket
        self._last_up = self._last_down = 0.0  # when the last byte so far is at the other end
        self._taken_up = self._taken_down = 0.0  # when the line has taken the last byte
        self._waits = False
        self._closing = False  # the driver has closed; what is in `_up` comes first
        sock.setblocking(False)
        line.network.add_reader(sock, self._from_agent)

    # --- the driver's half ---

    async def read(self) -> bytes:
        while not self._came and not self._ended:
            self._changed.clear()
            await self._changed.wait()
        data = b"".join(self._came)
        self._came.clear()
        return data

    def write(self, buffers: Sequence[Any]) -> None:
        if self._ended:
            return
        data = b"".join(bytes(memoryview(buffer)) for buffer in buffers)
        self._unsent += len(data)
        world = self.line.world
        for chunk in self.line.chunks(data):
            self._taken_up = max(self._taken_up, world.now) + len(chunk) / self.line.route.rate
            self._last_up = max(self._last_up, self._taken_up + self.line.delay())
            world.at(self._last_up, lambda chunk=chunk: self._arrives(chunk))

    async def drain(self) -> None:
        while self.congested:
            self._changed.clear()
            await self._changed.wait()

    @property
    def congested(self) -> bool:
        return not self._ended and self._unsent > _AHEAD

    def close(self) -> None:
        """The driver closes; the agent learns of it when all before it has arrived."""
        if not self._ended:
            self._end_here()
            world = self.line.world
            world.at(max(world.now, self._last_up) + self.line.delay(), self._end_there)

    # --- the world's half ---

    def _arrives(self, chunk: bytes) -> None:
        if self.cut:
            return
        self._up.append(memoryview(chunk))
        self._to_agent()

    def _to_agent(self) -> None:
        while self._up and not self.cut:
            try:
                sent = self.sock.send(self._up[0])
            except BlockingIOError:
                if not self._waits:
                    self._waits = True
                    self.line.network.add_writer(self.sock, self._to_agent)
                return
            except OSError:
                self._agent_gone()
                return
            self._unsent -= sent
            self._changed.set()
            self._up[0] = self._up[0][sent:]
            if not self._up[0]:
                del self._up[0]
        if self._waits:
            self._waits = False
            self.line.network.remove_writer(self.sock)
        if self._closing:
            self._close_socket()

    def _from_agent(self) -> None:
        try:
            data = self.sock.recv(self.line.world.random.choice(self._sizes))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._agent_gone()
            return
        world = self.line.world
        self._taken_down = max(self._taken_down, world.now) + len(data) / self.line.route.rate
        self._last_down = max(self._last_down, self._taken_down + self.line.delay())
        world.at(self._last_down, lambda: self._to_driver(data))

    def _to_driver(self, data: bytes) -> None:
        if not self.cut and not self._ended:
            self._came.append(data)
            self._changed.set()

    def _agent_gone(self) -> None:
        """The agent has closed; what it had sent before comes first."""
        self._close_socket()
        world = self.line.world
        world.at(max(world.now, self._last_down) + self.line.delay(), self._end_here)

    def _end_here(self) -> None:
        self._ended = True
        self._changed.set()
        self.line.connections.discard(self)

    def _end_there(self) -> None:
        self._closing = True
        self._to_agent()

    def _close_socket(self) -> None:
        if self.sock.fileno() >= 0:
            self.line.network.remove_reader(self.sock)
            self.line.network.remove_writer(self.sock)
            self.sock.close()

    def break_off(self, here: bool = True, there: bool = True) -> None:
        """A cut: what is on its way is lost, and each end may or may not notice."""
        self.cut = True
        if here:
            self._end_here()
        if there:
            self._close_socket()


class Line:
    """Between the driver and one machine.

    Parameters
    ----------
    world, network
        The network is a process of its own, which carries the bytes.
    listener
        Returns a new connection to the agent, or raises OSError if nobody listens.
    route
        What it is like.
    """

    def __init__(self, world: World, network: Process, listener: Callable[[], socket.socket], route: Route) -> None:
        self.world = world
        self.network = network
        self.route = route
        self.down_until = 0.0
        self.stalled_until = 0.0
        self.cuts = 0
        self.links = 0  # that are open
        self.flaps = 0  # how many more connections break soon after they are made
        self.gaps = 0  # how many more connections fail as none should
        # A dict, for its order is that in which they were made, and a set's is chance.
        self.connections: _Ordered = _Ordered()
        self._opened: list[Connection] = []  # all that there ever were
        self._listener = listener

    def delay(self) -> float:
        """Seconds until what the line has taken is at the other end."""
        stalled = max(0.0, self.stalled_until - self.world.now)
        return stalled + self.route.latency * (1.0 + self.world.random.random())

    def chunks(self, data: bytes) -> list[bytes]:
        """The pieces in which bytes travel."""
        random = self.world.random
        if len(data) < 2 or random.random() < 0.7:
            return [data] if data else []
        cuts = sorted(random.randrange(len(data) + 1) for _ in range(random.randrange(1, 4)))
        return [part for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True) if (part := data[start:end])]

    async def reach(self, timeout: float) -> None:
        """Make a connection to the host, which opens channels."""
        await asyncio.sleep(self.delay() * 2)
        if self.gaps > 0:
            self.gaps -= 1
            raise KeyError("simulated: what no transport should raise")
        if self.links >= self.route.links:
            raise HostUnreachable("too many connections")
        if self.world.now < self.down_until:
            await asyncio.sleep(min(timeout, self.down_until - self.world.now))
            if self.world.now < self.down_until:
                raise HostUnreachable("no route to host")

    async def open(self, cuts: int) -> Channel:
        """Open a channel to the agent, over a connection that was made after so many cuts."""
        await asyncio.sleep(self.delay() * 2)
        if self.cuts != cuts:
            raise LinkError("the connection is broken")
        try:
            sock = self._listener()
        except OSError as error:
            raise LinkError(f"the agent is gone: {error}") from error
        connection = Connection(self, sock)
        self.connections.add(connection)
        self._opened.append(connection)
        if self.flaps > 0:
            self.flaps -= 1
            soon = self.route.latency * self.world.random.uniform(4.0, 9.0) + 0.01
            self.world.after(soon, lambda: self.cut(0.0))
        return connection

    @property
    def behind(self) -> float:
        """Seconds until what the driver has sent by now has arrived."""
        return max(0.0, *(connection._last_up - self.world.now for connection in self.connections), 0.0)

    def cut(self, seconds: float) -> None:
        """Every connection breaks, and for a while none can be made; an end that is not told notices by silence."""
        random = self.world.random
        self.cuts += 1
        self.down_until = max(self.down_until, self.world.now + seconds)
        for connection in list(self.connections):
            here, there = random.choice(((True, True), (True, False), (False, True), (False, False)))
            connection.break_off(here, there)

    def stall(self, seconds: float) -> None:
        """Bytes that are sent from now on wait."""
        self.stalled_until = max(self.stalled_until, self.world.now + seconds)

    def close(self) -> None:
        """The machine is gone."""
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.break_off()
        for connection in self._opened:  # the driver may have closed it just now
            connection.break_off()


class _Ordered(dict[Connection, None]):
    """As much of a set as is needed, in order."""

    def add(self, connection: Connection) -> None:
        self[connection] = None

    def discard(self, connection: Connection) -> None:
        self.pop(connection, None)
