"""Plain TCP, or a Unix socket, to a listener on this machine.

The wire's greeting authenticates the other end, not this transport.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import ClassVar

from skyward.core.errors import ConfigError, LinkError
from skyward.core.interfaces import Channel
from skyward.core.spec import Endpoint
from skyward.core.system.socket_paths import socket_path
from skyward.transport.buffered_channel import ChannelLink
from skyward.transport.stream import StreamChannel

__all__ = ["TCPTransport"]

_CONNECT = 10.0  # seconds; on loopback, an answer comes at once or never


class TCPTransport:
    """Reaches agents of this machine, by Unix socket or loopback address; see `skyward.core.interfaces.Transport`."""

    name: ClassVar[str] = "tcp"
    striped: ClassVar[bool] = False

    async def connect(self, endpoint: Endpoint, timeout: float) -> TCPLink:
        """See `Transport.connect`. Connects nothing yet: each channel is a connection of its own."""
        if not endpoint.is_loopback:
            raise ConfigError(f"tcp to {endpoint.host} is not encrypted, so it is refused; use ssh")
        return TCPLink(min(timeout, _CONNECT))


class TCPLink(ChannelLink):
    """Makes connections to agents on this machine."""

    def __init__(self, timeout: float) -> None:
        super().__init__()
        self._timeout = timeout

    async def open_channel(self, address: str) -> Channel:
        """See `Link.open_channel`; the address is ``host:port``, or the path of a Unix socket."""
        host, _, port = address.rpartition(":")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout):
                if os.path.isabs(address):
                    with socket_path(address) as name:
                        _, channel = await loop.create_unix_connection(StreamChannel, name)
                else:
                    transport, channel = await loop.create_connection(StreamChannel, host, int(port))
                    transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:  # TimeoutError is one
            raise LinkError(f"nothing answers at {address}: {error!r}") from error
        self._channels.append(channel)
        return channel
