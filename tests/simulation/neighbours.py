"""What nodes send each other: lines between them that are slow, break, stall, lie, or lead nowhere."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from skyward.worker.peer_network import Streams
from tests.simulation.world import Process, World

__all__ = ["Neighbourhood", "SimulatedAuthority"]

_AHEAD = 64 * 1024  # bytes that a line takes before its writer has to wait
_LATENCY = 0.0005  # seconds
_RATE = 5e7  # bytes a second
_SILENT = 0.3  # of those who can't be reached, how many do not even refuse


class SimulatedAuthority:
    """What `Authority` is to a pool: a certificate is a name, and those who are asked for theirs do not lie."""

    certificate = ""

    def __init__(self, _: str) -> None:
        pass

    def issue(self, node: str) -> str:
        """Issue a certificate for a node."""
        return node


class Neighbourhood:
    """The nodes of one world, as they know each other.

    Parameters
    ----------
    world
        Where it is.
    reach
        Share of the pairs of which the first reaches the second.
    """

    def __init__(self, world: World, reach: float) -> None:
        self.world = world
        self.lies: dict[str, int] = {}  # machine -> how many more pieces that it sends will be wrong
        self.cut_until: dict[str, float] = {}
        self.stalled_until: dict[str, float] = {}
        self.ends: dict[_End, None] = {}
        self.listening: dict[tuple[str, int], _Network] = {}
        self._reach = reach
        self._reaches: dict[tuple[str, str], bool] = {}
        self._ports = itertools.count(40_000)

    def __repr__(self) -> str:
        return f"<Neighbourhood of {len(self.listening)} nodes, {len(self.ends) // 2} connections>"

    def network(self, machine: str, process: Process, identity: dict[str, str]) -> _Network:
        """The way from a machine to others."""
        return _Network(self, machine, process, identity)

    def port(self) -> int:
        """A port that nobody has."""
        return next(self._ports)

    def reaches(self, one: str, other: str) -> bool:
        """Whether a machine can connect to another one at this moment."""
        world = self.world
        if (one, other) not in self._reaches:
            self._reaches[one, other] = world.random.random() < self._reach
        is_cut = any(self.cut_until.get(machine, 0.0) > world.now for machine in (one, other))
        return self._reaches[one, other] and not is_cut

    def delay(self, one: str, other: str) -> float:
        """Seconds until what a line has taken arrives."""
        stalled = max(self.stalled_until.get(machine, 0.0) for machine in (one, other))
        return max(0.0, stalled - self.world.now) + _LATENCY * (1.0 + self.world.random.random())

    def cut(self, machine: str, seconds: float) -> None:
        """Break all that leads there, for a while; an end that is not told notices by silence."""
        self.cut_until[machine] = max(self.cut_until.get(machine, 0.0), self.world.now + seconds)
        for end in list(self.ends):
            if machine in (end.machine, end.other.machine):
                end.lose(told=self.world.random.random() < 0.5)

    def gone(self, machine: str) -> None:
        """The machine has ended; whoever is connected to it mostly hears of that."""
        self.listening = {place: each for place, each in self.listening.items() if each.machine != machine}
        for end in list(self.ends):
            if machine == end.machine:
                end.lose(told=False)
                self.world.after(self.delay(machine, end.other.machine), end.other.hang_up)


class _Network:
    """Implements `PeerNetwork` for one machine."""

    def __init__(self, around: Neighbourhood, machine: str, process: Process, identity: dict[str, str]) -> None:
        self.around = around
        self.machine = machine
        self.process = process
        self.name = identity["certificate"]
        self._place = identity["host"], around.port()
        self.accept: Callable[[Any], None]

    def listen(self, accept: Callable[[Any], None]) -> tuple[int, list[str]] | None:
        self.accept = accept
        self.around.listening[self._place] = self
        address, port = self._place
        return port, [address, "192.0.2.1"]  # the second is of no use to anybody

    async def streams(self, caller: _End) -> Streams:
        await asyncio.sleep(self.around.delay(self.machine, caller.other.machine))  # they greet each other
        return caller.open()

    async def connect(self, name: str, place: tuple[str, int]) -> Streams:
        around, there = self.around, self.around.listening.get(place)
        if there is None or not around.reaches(self.machine, there.machine):
            if around.world.random.random() < _SILENT:
                await asyncio.sleep(1e6)
            await asyncio.sleep(_LATENCY)
            raise ConnectionRefusedError("nobody there")
        await asyncio.sleep(around.delay(self.machine, there.machine) * 3)
        if around.listening.get(place) is not there or there.name != name:
            raise ConnectionResetError(f"{there.name} it is not, or not any more")
        mine = _End(around, self.machine, self.process)
        mine.other = theirs = _End(around, there.machine, there.process)
        theirs.other = mine
        around.ends.update(dict.fromkeys((mine, theirs)))
        there.process.call_soon(there.accept, theirs)
        return mine.open()

    def close(self) -> None:
        self.around.listening.pop(self._place, None)


class _End(asyncio.Transport):
    """One end of a connection between two nodes."""

    other: _End

    def __init__(self, around: Neighbourhood, machine: str, process: Process) -> None:
        super().__init__()
        self.around = around
        self.machine = machine
        self.process = process
        self._protocol: asyncio.StreamReaderProtocol | None = None
        self._unread: list[bytes] = []  # arrived, and not yet asked for
        self._unsent = 0
        self._taken = self._last = 0.0
        self._reading = False
        self._full = self._closed = self._ended = self._lost = False

    def __repr__(self) -> str:
        return f"<_End at {self.machine}>"

    def open(self) -> Streams:
        """Its streams."""
        reader = asyncio.StreamReader(limit=256 * 1024, loop=self.process)
        self._protocol = protocol = asyncio.StreamReaderProtocol(reader, loop=self.process)
        protocol.connection_made(self)
        self._reading = True
        self._hand_over()
        return reader, asyncio.StreamWriter(self, protocol, reader, self.process)

    # --- what asyncio asks of a transport ---

    def write(self, data: Any) -> None:
        if self._closed or not data:
            return
        around, world, piece = self.around, self.around.world, bytes(data)
        if around.lies.get(self.machine, 0) > 0 and len(piece) > 1:
            around.lies[self.machine] -= 1
            at = world.random.randrange(len(piece))
            piece = piece[:at] + bytes([piece[at] ^ (1 << world.random.randrange(8))]) + piece[at + 1 :]
        self._unsent += len(piece)
        self._taken = max(self._taken, world.now) + len(piece) / _RATE
        self._last = max(self._last, self._taken + around.delay(self.machine, self.other.machine))
        world.at(self._last, lambda: self._arrives(piece))
        if self._unsent > _AHEAD and not self._full and self._protocol is not None:
            self._full = True
            self._protocol.pause_writing()

    def _arrives(self, piece: bytes) -> None:
        if self._lost:
            return  # the kernel keeps it, and sends it again and again
        self._unsent -= len(piece)
        if self._full and self._unsent <= _AHEAD and self._protocol is not None and self.process.alive:
            self._full = False
            self._protocol.resume_writing()
        if not self.other._closed:
            self.other._unread.append(piece)
            self.other._hand_over()

    def _hand_over(self) -> None:
        if self._closed or not self._reading or self._protocol is None or not self.process.alive:
            return
        for piece in self._unread:
            self.process.call_soon(self._protocol.data_received, piece)
        self._unread.clear()
        if self._ended:
            self.process.call_soon(self._protocol.eof_received)
            self._end(None)  # as TLS has it

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self._hand_over()

    def is_reading(self) -> bool:
        return self._reading

    def is_closing(self) -> bool:
        return self._closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def close(self) -> None:
        """Close it; the other end learns of that when all before has arrived."""
        world = self.around.world
        if not self._closed:
            self._end(None)
            if not self._lost:
                world.at(max(world.now, self._last) + self.around.delay(self.machine, self.other.machine), self._bye)

    def abort(self) -> None:
        self.close()

    def _bye(self) -> None:
        if not self._lost:
            self.other.hang_up()

    # --- what happens to it ---

    def hang_up(self) -> None:
        """Take note that the other end is gone."""
        if not self._closed and not self._ended:
            self._ended = True
            self._hand_over()

    def lose(self, *, told: bool) -> None:
        """Break: what is on its way is lost."""
        self._lost = True
        if told and not self._closed:
            self._end(ConnectionResetError("the line broke"))

    def _end(self, error: Exception | None) -> None:
        self._closed = True
        self.around.ends.pop(self, None)
        if self._protocol is not None and self.process.alive:
            self.process.call_soon(self._protocol.connection_lost, error)
