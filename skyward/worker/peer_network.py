"""How the nodes of a pool connect to each other: TLS, in which both ends present certificates of the pool's authority.

The client checks the name of the node, so an address that belongs to somebody else is harmless.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import ipaddress
import os
import socket
import ssl
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from skyward.worker.listening_socket import ListeningSocket

__all__ = ["PeerNetwork", "Streams", "TLSNetwork"]

Streams: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_HANDSHAKE = 5.0  # seconds
_AHEAD = 256 * 1024  # bytes that a client reads ahead
_SIOCGIFADDR = 0x8915  # Linux; no other system's nodes are rented


class PeerNetwork(Protocol):
    """How a node reaches its peers, and is reached by them. Called from the agent's loop."""

    def listen(self, accept: Callable[[Any], None]) -> tuple[int, list[str]] | None:
        """Accept connections.

        Parameters
        ----------
        accept
            Called with each caller, whose `streams` may be asked for; it closes a caller that is not wanted.

        Returns
        -------
        tuple or None
            The port, and this node's addresses, best first; None if nobody can connect.
        """

    async def streams(self, caller: Any) -> Streams:
        """Return the streams to a caller, once it has proved to belong to the pool; OSError if it can't."""

    async def connect(self, name: str, place: tuple[str, int]) -> Streams:
        """Connect to the node with this name at this address and port; OSError if it is not there."""

    def close(self) -> None:
        """Stop listening. May be repeated."""


class TLSNetwork:
    """The pool's nodes over TCP and TLS.

    Parameters
    ----------
    loop
        The agent's loop.
    identity
        As in `Setup`.
    folder
        A folder that only this user can enter.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, identity: dict[str, str], folder: str) -> None:
        self._loop = loop
        self._host = identity["host"]
        self._server_side, self._client_side = _contexts(identity, folder)
        self._listener: ListeningSocket | None = None

    def __repr__(self) -> str:
        return f"<TLSNetwork {self._listener}>"

    def listen(self, accept: Callable[[socket.socket], None]) -> tuple[int, list[str]] | None:
        """See `PeerNetwork.listen`."""
        both = socket.has_dualstack_ipv6()
        try:
            listener = socket.create_server(
                ("", 0), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both
            )
        except OSError:
            return None
        self._listener = ListeningSocket(self._loop, listener, accept)
        return listener.getsockname()[1], [self._host, *own_addresses()]

    async def streams(self, caller: socket.socket) -> Streams:
        """See `PeerNetwork.streams`."""
        reader = asyncio.StreamReader(loop=self._loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=self._loop)
        transport, _ = await self._loop.connect_accepted_socket(
            lambda: protocol, caller, ssl=self._server_side, ssl_handshake_timeout=_HANDSHAKE
        )
        return reader, asyncio.StreamWriter(transport, protocol, reader, self._loop)

    async def connect(self, name: str, place: tuple[str, int]) -> Streams:
        """See `PeerNetwork.connect`."""
        return await asyncio.open_connection(*place, ssl=self._client_side, server_hostname=name, limit=_AHEAD)

    def close(self) -> None:
        """See `PeerNetwork.close`."""
        if self._listener is not None:
            self._listener.close()


def own_addresses() -> list[str]:
    """Return the addresses of this machine's interfaces that others may be able to reach."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # an interface without an address
                answer = fcntl.ioctl(sock.fileno(), _SIOCGIFADDR, struct.pack("256s", os.fsencode(name)[:15]))
                found.append(socket.inet_ntoa(answer[20:24]))
    with contextlib.suppress(OSError), Path("/proc/net/if_inet6").open(encoding="ascii") as lines:
        found += [str(ipaddress.IPv6Address(bytes.fromhex(line.split()[0]))) for line in lines]
    addresses = map(ipaddress.ip_address, found)
    return [str(address) for address in addresses if not address.is_loopback and not address.is_link_local]


def _contexts(identity: dict[str, str], folder: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Make TLS contexts for server and client, which trust only the pool's authority."""
    file = f"{folder}/identity.pem"
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w") as out:
            out.write(identity["certificate"])
        contexts = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        for context in contexts:
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(cadata=identity["authority"])
            context.load_cert_chain(file)  # ssl reads keys from files only
    finally:
        Path(file).unlink()
    contexts[0].num_tickets = 0
    return contexts
