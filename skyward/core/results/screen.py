"""What nodes of strangers say to listeners of multiprocessing in this process, which unpickle all they hear: data only.

The conversation is that of ``multiprocessing.connection``: messages with their length before them; where the listener
has a key, first a proof of each end that it knows it, and then pickles. Only whole messages that are data pass.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator, Sequence

from skyward.core.interfaces import Channel
from skyward.core.results import stdlib
from skyward.core.results.names import library
from skyward.core.results.rules import Refused, Rule
from skyward.core.results.unpickler import loads

__all__ = ["Screen", "Screened"]

_CHALLENGE, _WELCOME = b"#CHALLENGE#", b"#WELCOME#"
_PROOF = 256  # bytes of a message of the proof, as multiprocessing has it
_LARGEST = 64 * 1024 * 1024


def _names(module: str, name: str) -> Rule:
    """Names whose objects are the same to pickle: the listener is no reader of ours."""
    rule = stdlib.rule(module, name)
    if rule is None and module.partition(".")[0] == "numpy":
        rule = library("numpy").rule(module, name)
    if rule is None:
        raise Refused(f"names {module}.{name}")
    return rule


class _Messages:
    """Cuts a stream into messages."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes | bytearray | memoryview | mmap.mmap) -> list[tuple[bytes, bytes]]:
        """Whole messages, each with its length as it was written."""
        self._data += data
        found = []
        while (header := self._header()) is not None:
            start, size = header
            if len(self._data) < start + size:
                break
            found.append((bytes(self._data[:start]), bytes(self._data[start : start + size])))
            del self._data[: start + size]
        return found

    def _header(self) -> tuple[int, int] | None:
        if len(self._data) < 4:
            return None
        (size,) = struct.unpack_from("!i", self._data)
        start = 4
        if size == -1:
            if len(self._data) < 12:
                return None
            (size,) = struct.unpack_from("!Q", self._data, 4)
            start = 12
        if not 0 <= size <= _LARGEST:
            raise Refused(f"sends a message of {size:,} bytes")
        return start, size


class Screen:
    """One conversation; pure."""

    def __init__(self) -> None:
        self._ours, self._theirs = _Messages(), _Messages()
        self._heard = False
        self._proofs: list[bytes] = []  # how the node's next messages of the proof begin

    def heard(self, data: bytes) -> None:
        """The listener says something. Its first word tells whether it asks for a proof."""
        if self._heard:
            return
        for _, message in self._ours.feed(data)[:1]:
            self._heard = True
            if message.startswith(_CHALLENGE):
                self._proofs = [b"", _CHALLENGE, _WELCOME]

    def said(self, data: bytes | bytearray | memoryview | mmap.mmap) -> Iterator[bytes]:
        """What of a node's words the listener shall hear.

        Raises
        ------
        Refused
            The next of them are not data; nothing more shall be passed on.
        """
        for length, message in self._theirs.feed(data):
            if self._proofs:
                if not message.startswith(self._proofs.pop(0)) or len(message) > _PROOF:
                    raise Refused("proves nothing")
            else:
                loads(message, (), _names)
            yield length
            yield message


class Screened:
    """A channel to a listener; see `Channel`. What a node writes passes a `Screen`.

    Parameters
    ----------
    channel
        The channel itself.
    tell
        Told once of what was refused.
    """

    def __init__(self, channel: Channel, tell: Callable[[str], object]) -> None:
        self._channel = channel
        self._tell = tell
        self._screen: Screen | None = Screen()

    async def read(self) -> bytes:
        """See `Channel.read`."""
        data = await self._channel.read()
        if self._screen is not None:
            try:
                self._screen.heard(data)
            except Refused:  # of our own listener: it says more than any of multiprocessing
                self.close()
        return data

    def write(self, buffers: Sequence[bytes | bytearray | memoryview | mmap.mmap]) -> None:
        """See `Channel.write`."""
        if self._screen is None:
            return
        try:
            for buffer in buffers:
                for part in self._screen.said(buffer):  # what comes before a refusal is heard
                    self._channel.write([part])
        except Exception as error:  # what is no pickle at all raises anything
            self._screen = None
            self._channel.close()
            self._tell(str(error) if isinstance(error, Refused) else f"sends what is no data ({error!r})")

    async def drain(self) -> None:
        """See `Channel.drain`."""
        await self._channel.drain()

    @property
    def congested(self) -> bool:
        """See `Channel.congested`."""
        return self._channel.congested

    def close(self) -> None:
        """See `Channel.close`."""
        self._screen = None
        self._channel.close()
