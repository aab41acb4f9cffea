"""A task that talks to a listener of the driver's process, through the agent's bridge, and the listener: an echo."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from skyward.core.protocol.framing import frame
from skyward.core.tasks.listening_sockets import Listeners
from tests.simulation.world import Process, World

__all__ = ["Talk", "listeners"]

_ADDRESS = "/echo"
_AHEAD = 64 * 1024  # bytes that the listener takes before it is congested
_OPEN = b"\x01"


class _Echo:
    """A channel to a listener that sends back what it gets; see `Channel`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._came: list[bytes] = []
        self._unsent = 0
        self._last = 0.0
        self._ended = False
        self._changed = asyncio.Event()

    async def read(self) -> bytes:
        while not self._came and not self._ended:
            self._changed.clear()
            await self._changed.wait()
        data = b"".join(self._came)
        self._came.clear()
        return data

    def write(self, buffers: Sequence[Any]) -> None:
        data = b"".join(bytes(memoryview(buffer)) for buffer in buffers)
        if self._ended or not data:
            return
        self._unsent += len(data)
        slowness = self._world.random.choice((0.0001, 0.0001, 0.01, 0.5))
        self._last = max(self._last, self._world.now + slowness * self._world.random.random())
        self._world.at(self._last, lambda: self._arrives(data))

    def _arrives(self, data: bytes) -> None:
        self._unsent -= len(data)
        self._came.append(data)
        self._changed.set()

    async def drain(self) -> None:
        while self.congested:
            self._changed.clear()
            await self._changed.wait()

    @property
    def congested(self) -> bool:
        return not self._ended and self._unsent > _AHEAD

    def close(self) -> None:
        self._ended = True
        self._changed.set()


def listeners(world: World) -> Listeners:
    """What a pool's tasks may connect to: the echo, as if a proxy of its Manager had been sent."""

    async def open_echo(_: str) -> Any:
        await asyncio.sleep(world.random.choice((0.0, 0.01, 7.0)))
        return _Echo(world)

    made = Listeners(open_echo)
    made.sent([SimpleNamespace(_token=SimpleNamespace(address=_ADDRESS))])
    return made


class Talk:
    """A task's end of a conversation: it sends some bytes, and must get the same ones back.

    Parameters
    ----------
    world, process
        Where it is.
    bridge
        Path of the agent's socket.
    data
        What to send.
    done
        Called once: with None, or with what went wrong.
    """

    def __init__(
        self, world: World, process: Process, bridge: str, data: bytes, done: Callable[[str | None], object]
    ) -> None:
        self._world = world
        self._process = process
        self._data = data
        self._done = done
        self._is_open = False
        self._got = bytearray()
        self._first = world.random.choice((1, 3, 100))  # bytes at a time of what it says first
        self._unsent = memoryview(frame(_ADDRESS.encode()))
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.setblocking(False)
        try:
            self._sock.connect(bridge)
        except OSError as error:
            self._end(f"the bridge can't be reached: {error}")
            return
        process.add_reader(self._sock, self._readable)
        process.add_writer(self._sock, self._writable)

    def _writable(self) -> None:
        piece = self._unsent if self._is_open else self._unsent[: self._first]
        try:
            self._unsent = self._unsent[self._sock.send(piece) :]
        except BlockingIOError:
            return
        except OSError as error:
            self._end(f"the stream broke: {error}")
            return
        if not self._unsent:
            self._process.remove_writer(self._sock)

    def _readable(self) -> None:
        try:
            data = self._sock.recv(self._world.random.choice((100, 4096, 64 * 1024)) if self._is_open else 1)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end(f"the stream ended after {len(self._got):,} of {len(self._data):,} bytes")
        elif self._is_open:
            self._got += data
            if len(self._got) >= len(self._data):
                self._end(None if self._got == self._data else "other bytes came back than were sent")
        elif data == _OPEN:
            self._is_open = True
            self._unsent = memoryview(self._data)
            self._process.add_writer(self._sock, self._writable)
        else:
            self._end("the stream was refused")

    def _end(self, error: str | None) -> None:
        self.close()
        self._done(error)

    def close(self) -> None:
        """Close the socket. May be repeated."""
        if self._sock.fileno() >= 0:
            self._process.remove_reader(self._sock)
            self._process.remove_writer(self._sock)
            self._sock.close()
