"""All that we change in asyncssh beyond its documented interface: methods of one connection, replaced on the instance.

pyproject.toml bounds asyncssh to the versions for which these were tried, and tests/transport/test_asyncssh_hooks.py
checks that each still has its effect on the one that is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import asyncssh

__all__ = ["spare_work", "watch_refusals", "watch_writing"]

_IGNORE = 2  # SSH_MSG_IGNORE (RFC 4250)
_USERAUTH_FAILURE = 51  # SSH_MSG_USERAUTH_FAILURE (RFC 4252)
_FED = 64 * 2**10  # bytes given to asyncssh in one call: two of sshd's packets


def spare_work(connection: asyncssh.SSHClientConnection) -> None:
    """Keep asyncssh from needless work on each packet of a large transfer."""
    send, receive = connection.send_packet, connection.data_received

    def send_packet(kind: int, *parts: bytes, handler: Any = None) -> None:
        # An empty message before each packet is for ciphers with predictable blocks (CBC, RFC 4251 9.3.1).
        if kind != _IGNORE:
            send(kind, *parts, handler=handler)

    def data_received(data: bytes, datatype: Any = None) -> None:
        # With each packet that it takes out, asyncssh copies everything behind it twice.
        for start in range(0, len(data), _FED):
            receive(data[start : start + _FED], datatype)

    if "gcm" in str(connection.get_extra_info("send_cipher")):
        connection.send_packet = send_packet  # type: ignore[assignment]
    connection.data_received = data_received  # type: ignore[method-assign]


def watch_writing(
    connection: asyncssh.SSHClientConnection, pause: Callable[[], None], resume: Callable[[], None]
) -> None:
    """Observe whether a connection's socket takes more.

    asyncio's transport calls two methods of its protocol for this, and asyncssh does nothing in them.

    Parameters
    ----------
    connection
        The connection.
    pause, resume
        Called when the socket accepts no more data, and when it does again.
    """
    connection.pause_writing = pause  # type: ignore[method-assign]
    connection.resume_writing = resume  # type: ignore[method-assign]


def watch_refusals(connection: asyncssh.SSHClientConnection, refused: Callable[[bytes], None]) -> None:
    """Call `refused` with the payload of each SSH_MSG_USERAUTH_FAILURE, which says what else the host asks for.

    asyncssh passes on neither that nor whether a key was accepted; it only logs the packet.
    """
    log = connection.log_received_packet

    def log_received_packet(
        kind: int, number: int | None, packet: bytes | asyncssh.packet.SSHPacket, note: str = ""
    ) -> None:
        if kind == _USERAUTH_FAILURE and not isinstance(packet, bytes):
            refused(packet.get_full_payload())
        log(kind, number, packet, note)

    connection.log_received_packet = log_received_packet  # type: ignore[method-assign,assignment]
