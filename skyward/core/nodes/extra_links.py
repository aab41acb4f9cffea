"""Further connections to a machine for large messages, so that no small message waits behind them.

Within one connection, large messages must be sent before anything queued later: megabytes sit in the kernel's buffer
and in the host's sshd, and a full buffer becomes writable again only once a third of it is free. At a round trip of 50
ms, that delayed a small task by some 30 ms, of which the line itself accounts for 8. Also, no connection carries more
than the kernels' buffers per round trip, usually 3 to 6 MB, whatever the line could take.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from itertools import cycle

from skyward.core.errors import LinkError, ProvisioningError
from skyward.core.interfaces import Channel, Link

__all__ = ["ExtraLinks"]

_log = logging.getLogger("skyward.extra_links")


class ExtraLinks:
    """The connections to a machine other than the first. Belongs to the event loop.

    Parameters
    ----------
    connect
        Makes one; called at most `count` times until `close`, since a host that has refused will refuse again.
    count
        Maximum number of connections; they are made as channels are opened, which use them in turn.
    """

    def __init__(self, connect: Callable[[], Awaitable[Link]], count: int = 2) -> None:
        self._connect = connect
        self._links: list[asyncio.Future[Link] | None] = [None] * count
        self._turns = cycle(range(count))

    def __repr__(self) -> str:
        asked = [link for link in self._links if link is not None]
        return (
            f"<ExtraLinks {len(asked)} of {len(self._links)} asked for, {sum(link.done() for link in asked)} answered>"
        )

    async def open_channel(self, first: Link, enter: Callable[[Link], Awaitable[Channel]]) -> Channel:
        """Open a channel on one of them, or on the first connection if no other can be made.

        Parameters
        ----------
        first
            The machine's first connection.
        enter
            Opens a channel to the agent on a connection.

        Raises
        ------
        LinkError
            No channel could be opened on the first connection either.
        """
        turn = next(self._turns)
        coming = self._links[turn]
        if coming is None:
            coming = self._links[turn] = asyncio.ensure_future(self._connect())
        try:
            link = await asyncio.shield(coming)  # others are waiting for it, too
            return await enter(link)
        except (ProvisioningError, LinkError) as error:
            _log.info("no further connection: %s", error)
        return await enter(first)

    async def close(self) -> None:
        """Close them. May be repeated; new ones may be opened afterwards."""
        asked = [link for link in self._links if link is not None]
        self._links = [None] * len(self._links)
        for coming in asked:
            coming.cancel()  # does nothing if it has been made
        if asked:
            await asyncio.wait(asked)
        made = [coming.result() for coming in asked if not coming.cancelled() and coming.exception() is None]
        await asyncio.gather(*(link.close() for link in made))
