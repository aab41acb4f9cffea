"""Sessions on a host: each command needs one, and sshd limits their number per connection (MaxSessions)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import asyncssh

from skyward.core.errors import HostKeyError, HostUnreachable, LinkError, LoginRefused
from skyward.transport.ssh_routes import Route
from skyward.transport.ssh_stream import PACKET, WINDOW

__all__ = ["Sessions"]

_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # seconds; a host needs a moment to free one that has ended
_MAX_CONNECTIONS = 4  # commands beyond these wait until another one ends


class _SessionConnection:
    """One connection, with its sessions."""

    def __init__(self, route: Route) -> None:
        self.route = route
        self.open: set[asyncssh.SSHClientChannel[bytes]] = set()
        self.ending: set[asyncssh.SSHClientChannel[bytes]] = set()  # those that we have closed
        self.max: int | None = None  # number of sessions that it allows, once it has refused one


class Sessions:
    """Opens sessions, over as many connections as the host makes necessary: usually just the first.

    Parameters
    ----------
    where
        The host's name, for messages.
    first
        The existing connection; not closed here.
    another
        Makes one more connection.
    """

    def __init__(self, where: str, first: Route, another: Callable[[], Awaitable[Route]]) -> None:
        self._where = where
        self._connections = [_SessionConnection(first)]
        self._another = another
        self._freed = asyncio.Event()
        self._growing = asyncio.Lock()  # held while another connection is made: all who need one wait for the same

    def __repr__(self) -> str:
        return f"<Sessions {self._where}: {[len(connection.open) for connection in self._connections]}>"

    async def open(self, session: asyncssh.SSHClientSession[bytes], command: str) -> asyncssh.SSHClientChannel[bytes]:
        """Open a session that runs a command.

        Raises
        ------
        LinkError
            The connection broke, or the host refuses sessions.
        """
        pauses = iter(_PAUSES)
        while True:
            refusal = None
            for connection in list(self._connections):
                if connection.max is not None and len(connection.open) >= connection.max:
                    continue
                try:
                    return await self._open(connection, session, command)
                except asyncssh.ChannelOpenError as error:
                    refusal = error
                    connection.max = len(connection.open) or None  # with none open, one that ended may still count
                except (asyncssh.Error, OSError) as error:
                    if connection is self._connections[0]:
                        raise LinkError(f"{self._where}: can't run a command: {error!s}") from error
                    self._connections.remove(connection)
            if refusal is None or all(connection.open for connection in self._connections):
                await self._grow()
                continue
            pause = next(pauses, None)
            if pause is None:
                raise LinkError(
                    f"{self._where}: can't run a command: {refusal.reason}. Does MaxSessions in its sshd_config "
                    "allow any, and can the host run one more process?"
                ) from refusal
            await asyncio.sleep(pause)

    def end(self, channel: asyncssh.SSHClientChannel[bytes]) -> None:
        """Close a session; it counts until the host has confirmed that."""
        channel.close()
        for connection in self._connections:
            if channel in connection.open:
                connection.ending.add(channel)
                self._freed.set()  # those who wait check again what is ending

    async def _open(
        self, connection: _SessionConnection, session: asyncssh.SSHClientSession[bytes], command: str
    ) -> asyncssh.SSHClientChannel[bytes]:
        channel: asyncssh.SSHClientChannel[bytes]
        channel, _ = await connection.route.connection.create_session(
            lambda: session, command, encoding=None, request_pty=False, window=WINDOW, max_pktsize=PACKET
        )
        connection.open.add(channel)
        asyncio.ensure_future(channel.wait_closed()).add_done_callback(lambda _: self._end(connection, channel))
        return channel

    def _end(self, connection: _SessionConnection, channel: asyncssh.SSHClientChannel[bytes]) -> None:
        connection.open.discard(channel)
        connection.ending.discard(channel)
        self._freed.set()

    async def _grow(self) -> None:
        """Wait for a session that is about to end, or make one more connection."""
        count = len(self._connections)
        ending = any(connection.ending for connection in self._connections)
        if ending or count >= _MAX_CONNECTIONS:
            self._freed.clear()
            await self._freed.wait()
            return
        async with self._growing:
            if len(self._connections) > count:
                return
            try:
                self._connections.append(_SessionConnection(await self._another()))
            except (HostUnreachable, HostKeyError, LoginRefused) as error:
                raise LinkError(
                    f"{self._where} allows {len(self._connections[0].open)} session(s) per connection "
                    f"(MaxSessions in its sshd_config), and another connection can't be made: {error}"
                ) from error

    async def close(self) -> None:
        """Close the connections that were made here."""
        connections, self._connections[1:] = self._connections[1:], []
        await asyncio.gather(*(connection.route.close() for connection in connections))
