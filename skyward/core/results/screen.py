"""Passes only data from untrusted nodes to multiprocessing listeners in this process, which unpickle all they receive.

The protocol is that of ``multiprocessing.connection``: length-prefixed messages. If the listener has a key, each end
first proves that it knows it; then pickles follow. Only complete messages that are data pass.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator, Sequence

from skyward.core.interfaces import Channel
from skyward.core.results import stdlib
from skyward.core.results.names import library
from skyward.core.results.rules import RefusedPickle, Rule
from skyward.core.results.unpickler import loads

__all__ = ["Screen", "Screened"]

_CHALLENGE, _WELCOME = b"#CHALLENGE#", b"#WELCOME#"
_PROOF = 256  # maximum bytes of an authentication message, as in multiprocessing
_MAX_MESSAGE = 64 * 1024 * 1024  # bytes


def _names(module: str, name: str) -> Rule:
    """Rules for names that plain pickle treats alike, since the listener is not a reader of ours."""
    rule = stdlib.rule(module, name)
    if rule is None and module.partition(".")[0] == "numpy":
        rule = library("numpy").rule(module, name)
    if rule is None:
        raise RefusedPickle(f"refers to {module}.{name}")
    return rule


class _Messages:
    """Splits a stream into messages."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes | bytearray | memoryview | mmap.mmap) -> list[tuple[bytes, bytes]]:
        """Add bytes; return the messages they complete, each with its length prefix."""
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
        if not 0 <= size <= _MAX_MESSAGE:
            raise RefusedPickle(f"sends a message of {size:,} bytes")
        return start, size


class Screen:
    """The state of one connection; pure."""

    def __init__(self) -> None:
        self._ours, self._theirs = _Messages(), _Messages()
        self._started = False
        self._proofs: list[bytes] = []  # how the node's next authentication messages must start

    def from_listener(self, data: bytes) -> None:
        """Take what the listener sends; its first message shows whether it requires authentication."""
        if self._started:
            return
        for _, message in self._ours.feed(data)[:1]:
            self._started = True
            if message.startswith(_CHALLENGE):
                self._proofs = [b"", _CHALLENGE, _WELCOME]

    def from_node(self, data: bytes | bytearray | memoryview | mmap.mmap) -> Iterator[bytes]:
        """Take what a node sends; yield what to pass on to the listener.

        Raises
        ------
        RefusedPickle
            The next message is not data; nothing more may be passed on.
        """
        for length, message in self._theirs.feed(data):
            if self._proofs:
                if not message.startswith(self._proofs.pop(0)) or len(message) > _PROOF:
                    raise RefusedPickle("fails to authenticate")
            else:
                loads(message, (), _names)
            yield length
            yield message


class Screened:
    """A channel to a listener; see `Channel`. What a node writes has to pass a `Screen`.

    Parameters
    ----------
    channel
        The channel itself.
    report
        Called once, with what was refused.
    """

    def __init__(self, channel: Channel, report: Callable[[str], object]) -> None:
        self._channel = channel
        self._report = report
        self._screen: Screen | None = Screen()

    async def read(self) -> bytes:
        """See `Channel.read`."""
        data = await self._channel.read()
        if self._screen is not None:
            try:
                self._screen.from_listener(data)
            except RefusedPickle:  # by our own listener: its message is larger than any of multiprocessing
                self.close()
        return data

    def write(self, buffers: Sequence[bytes | bytearray | memoryview | mmap.mmap]) -> None:
        """See `Channel.write`."""
        if self._screen is None:
            return
        try:
            for buffer in buffers:
                for part in self._screen.from_node(buffer):  # what precedes a refusal is passed on
                    self._channel.write([part])
        except Exception as error:  # an invalid pickle may raise anything
            self._screen = None
            self._channel.close()
            self._report(
                str(error) if isinstance(error, RefusedPickle) else f"sends something that is not data ({error!r})"
            )

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
