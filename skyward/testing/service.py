"""The remote end for tests of transports: runs the command in the first line of each channel.

It imports only the standard library, so that it can be copied to any machine and run there::

    python service.py /path/of/a/socket

Commands, each ended by a line feed; `name` connects channels:

===================  ==============================================================================================
``echo``             sends everything that follows back
``sink name``        reads everything that follows, and keeps its size and digest
``mute name``        the same, but reads nothing until ``wake name``
``deaf name``        reads nothing, and hangs up after ``wake name``
``wake name``        see above
``total name``       once that sink or mute has ended: answers with a line, size and SHA-256 of what it read
``source count``     sends that many bytes (see `pattern`), then hangs up
===================  ==============================================================================================
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Protocol

__all__ = ["End", "Service", "pattern"]

_PIECE = 65536


class End(Protocol):
    """One end of a stream: what the service needs of a `skyward.core.interfaces.Channel`."""

    async def read(self) -> bytes:
        """Return the next bytes; ``b""`` at the end."""
        ...

    def write(self, buffers: Sequence[bytes]) -> None:
        """Queue bytes."""
        ...

    async def drain(self) -> None:
        """Wait until more can be queued."""
        ...

    def close(self) -> None:
        """Hang up."""
        ...


def pattern(count: int) -> Iterator[bytes]:
    """Generate `count` bytes without short repetitions, in pieces."""
    counter = 0
    while count > 0:
        yield hashlib.shake_128(b"%d" % counter).digest(min(_PIECE, count))
        counter += 1
        count -= _PIECE


class Service:
    """Serves any number of channels in one event loop."""

    def __init__(self) -> None:
        self._woken: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._totals: defaultdict[str, asyncio.Future[str]] = defaultdict(asyncio.get_running_loop().create_future)

    async def serve(self, channel: End) -> None:
        """Serve one channel until its end."""
        data = b""
        while b"\n" not in data:
            more = await channel.read()
            if not more:
                return channel.close()
            data += more
        line, _, rest = data.partition(b"\n")
        verb, _, word = line.decode().partition(" ")
        try:
            if verb == "echo":
                await self._echo(channel, rest)
            elif verb == "source":
                await self._source(channel, int(word))
            elif verb in ("sink", "mute", "deaf"):
                await self._listen(channel, verb, word, rest)
            elif verb == "wake":
                self._woken[word].set()
            elif verb == "total":
                channel.write([(await self._totals[word]).encode() + b"\n"])
        finally:
            channel.close()

    async def _echo(self, channel: End, data: bytes) -> None:
        while True:
            if data:
                channel.write([data])
                await channel.drain()
            data = await channel.read()
            if not data:
                return

    async def _source(self, channel: End, count: int) -> None:
        for piece in pattern(count):
            channel.write([piece])
            await channel.drain()

    async def _listen(self, channel: End, verb: str, name: str, data: bytes) -> None:
        if verb != "sink":
            await self._woken[name].wait()
        if verb == "deaf":
            return
        count, digest = 0, hashlib.sha256()
        while True:
            count += len(data)
            digest.update(data)
            data = await channel.read()
            if not data:
                break
        self._totals[name].set_result(f"{count} {digest.hexdigest()}")


class _Socket:
    """An `End` over asyncio's streams."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self) -> bytes:
        try:
            return await self._reader.read(_PIECE)
        except OSError:
            return b""

    def write(self, buffers: Sequence[bytes]) -> None:
        self._writer.writelines(buffers)

    async def drain(self) -> None:
        await self._writer.drain()

    def close(self) -> None:
        self._writer.close()


async def main(path: str) -> None:
    """Serve a Unix socket until killed."""
    service = Service()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):  # the other side hung up first
            await service.serve(_Socket(reader, writer))

    async with await asyncio.start_unix_server(accept, path) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
