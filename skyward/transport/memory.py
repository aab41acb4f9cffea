"""Channels within one event loop, for tests: no socket and no process."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from typing import ClassVar

from skyward.core.errors import HostUnreachable, LinkError
from skyward.core.interfaces import Channel
from skyward.core.spec import Endpoint
from skyward.transport.buffered_channel import BufferedChannel, ChannelLink

__all__ = ["MemoryChannel", "MemoryTransport", "listen", "pair"]

_listeners: dict[tuple[str, str], Callable[[MemoryChannel], None]] = {}


def listen(host: str, address: str, accept: Callable[[MemoryChannel], None]) -> Callable[[], None]:
    """Listen at an address. Returns a function that ends this.

    Parameters
    ----------
    host, address
        Where: any strings.
    accept
        Called with the far end of each channel that is opened there.
    """
    _listeners[host, address] = accept
    return lambda: _listeners.pop((host, address), None) and None


def pair() -> tuple[MemoryChannel, MemoryChannel]:
    """Make the two ends of one stream."""
    left, right = MemoryChannel(), MemoryChannel()
    left.peer, right.peer = right, left
    return left, right


class MemoryChannel(BufferedChannel):
    """One end of a stream; see `skyward.core.interfaces.Channel`."""

    READ_AHEAD: ClassVar[int] = 1 << 20

    def __init__(self) -> None:
        super().__init__()
        self.peer: MemoryChannel | None = None

    def write(self, buffers: Sequence[bytes | bytearray | memoryview | mmap.mmap]) -> None:
        """See `Channel.write`."""
        peer = self.peer
        if self._ended or peer is None or peer._ended:
            return
        for buffer in buffers:
            peer.feed_data(bytes(memoryview(buffer)))

    @property
    def congested(self) -> bool:
        """See `Channel.congested`."""
        return self.peer is not None and not self._ended and not self.peer._ended and self.peer._paused

    def close(self) -> None:
        """See `Channel.close`."""
        for end in (self, self.peer):
            if end is not None:
                end.feed_eof()

    def _pause_reading(self) -> None:
        pass  # the peer sees it in `congested`

    def _resume_reading(self) -> None:
        if self.peer is not None:
            self.peer.relieved()


class MemoryLink(ChannelLink):
    """Opens channels to listeners of this process."""

    def __init__(self, host: str) -> None:
        super().__init__()
        self._host = host

    async def open_channel(self, address: str) -> Channel:
        """See `Link.open_channel`."""
        accept = _listeners.get((self._host, address))
        if accept is None:
            raise LinkError(f"nothing listens at {address} on {self._host}")
        near, far = pair()
        accept(far)
        self._channels.append(near)
        return near


class MemoryTransport:
    """Reaches listeners of this process; see `skyward.core.interfaces.Transport`."""

    name: ClassVar[str] = "memory"
    striped: ClassVar[bool] = False

    async def connect(self, endpoint: Endpoint, timeout: float) -> MemoryLink:
        """See `Transport.connect`."""
        if not any(host == endpoint.host for host, _ in _listeners):
            raise HostUnreachable(f"no listener on memory host {endpoint.host!r}")
        return MemoryLink(endpoint.host)
