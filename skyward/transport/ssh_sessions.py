"""Sessions on a host: each command needs one, and its sshd says how many a connection may have (MaxSessions)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import asyncssh

from skyward.core.errors import HostKeyError, HostUnreachable, LinkError, LoginRefused
from skyward.transport.ssh_stream import PACKET, WINDOW
from skyward.transport.ssh_ways import Way

__all__ = ["Sessions"]

_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # seconds: a host needs a moment until it has let go of one that ended
_MOST = 4  # connections; whoever needs more waits for an end


class _Door:
    """One connection, and what is known of it."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self.open: set[asyncssh.SSHClientChannel[bytes]] = set()
        self.ending: set[asyncssh.SSHClientChannel[bytes]] = set()  # those of them that we have closed
        self.most: int | None = None  # sessions that it may have, once it has refused one


class Sessions:
    """Opens sessions, over as many connections as the host makes necessary: as a rule the one that there is.

    Parameters
    ----------
    where
        For messages.
    first
        The connection that there is; not ended here.
    another
        Makes one more.
    """

    def __init__(self, where: str, first: Way, another: Callable[[], Awaitable[Way]]) -> None:
        self._where = where
        self._doors = [_Door(first)]
        self._another = another
        self._freed = asyncio.Event()
        self._growing = asyncio.Lock()  # those who need one more connection wait for the same one

    def __repr__(self) -> str:
        return f"<Sessions {self._where}: {[len(door.open) for door in self._doors]}>"

    async def open(self, session: asyncssh.SSHClientSession[bytes], command: str) -> asyncssh.SSHClientChannel[bytes]:
        """A session that runs a command.

        Raises
        ------
        LinkError
            The connection broke, or the host opens none.
        """
        pauses = iter(_PAUSES)
        while True:
            refusal = None
            for door in list(self._doors):
                if door.most is not None and len(door.open) >= door.most:
                    continue
                try:
                    return await self._open(door, session, command)
                except asyncssh.ChannelOpenError as error:
                    refusal = error
                    door.most = len(door.open) or None  # where none of ours is open, one that ended may still count
                except (asyncssh.Error, OSError) as error:
                    if door is self._doors[0]:
                        raise LinkError(f"{self._where}: can't run a command: {error!s}") from error
                    self._doors.remove(door)
            if refusal is None or all(door.open for door in self._doors):
                await self._grow()
                continue
            pause = next(pauses, None)
            if pause is None:
                raise LinkError(
                    f"{self._where}: can't run a command: {refusal.reason}. Does MaxSessions in its sshd_config allow "
                    "any, and has the host room for one more process?"
                ) from refusal
            await asyncio.sleep(pause)

    def end(self, channel: asyncssh.SSHClientChannel[bytes]) -> None:
        """Close a session; the host has to answer until it counts no more."""
        channel.close()
        for door in self._doors:
            if channel in door.open:
                door.ending.add(channel)
                self._freed.set()  # who waits looks again at what is ending

    async def _open(
        self, door: _Door, session: asyncssh.SSHClientSession[bytes], command: str
    ) -> asyncssh.SSHClientChannel[bytes]:
        channel: asyncssh.SSHClientChannel[bytes]
        channel, _ = await door.way.connection.create_session(
            lambda: session, command, encoding=None, request_pty=False, window=WINDOW, max_pktsize=PACKET
        )
        door.open.add(channel)
        asyncio.ensure_future(channel.wait_closed()).add_done_callback(lambda _: self._end(door, channel))
        return channel

    def _end(self, door: _Door, channel: asyncssh.SSHClientChannel[bytes]) -> None:
        door.open.discard(channel)
        door.ending.discard(channel)
        self._freed.set()

    async def _grow(self) -> None:
        """Wait until a session ends that is about to, or make one more connection."""
        count = len(self._doors)
        ending = any(door.ending for door in self._doors)
        if ending or count >= _MOST:
            self._freed.clear()
            await self._freed.wait()
            return
        async with self._growing:
            if len(self._doors) > count:
                return
            try:
                self._doors.append(_Door(await self._another()))
            except (HostUnreachable, HostKeyError, LoginRefused) as error:
                raise LinkError(
                    f"{self._where}: a connection there may have {len(self._doors[0].open)} session(s) at a time "
                    f"(MaxSessions in its sshd_config), and one more connection can't be had: {error}"
                ) from error

    async def close(self) -> None:
        """End the connections that were made here."""
        doors, self._doors[1:] = self._doors[1:], []
        await asyncio.gather(*(door.way.close() for door in doors))
