"""A second connection to a machine, for what is large, so that nothing small waits behind it.

Within one connection the large has to be sent before whatever comes later: megabytes lie in the kernel's buffer and in
the host's sshd, and a full buffer is offered to its writer only when a third of it has gone. At a round trip of 50 ms
that made a small task wait some 30 ms longer, of which the line itself is to blame for 8.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from skyward.core.errors import LinkError, ProvisioningError
from skyward.core.interfaces import Channel, Link

__all__ = ["Beside"]

_log = logging.getLogger("skyward.beside")


class Beside:
    """The connection beside another one. Belongs to the event loop.

    Parameters
    ----------
    connect
        Makes it; called at most once until `close`, since a host that has refused a second login will do so again.
    """

    def __init__(self, connect: Callable[[], Awaitable[Link]]) -> None:
        self._connect = connect
        self._link: asyncio.Future[Link] | None = None

    def __repr__(self) -> str:
        state = "not asked for" if self._link is None else "being made" if not self._link.done() else "made or refused"
        return f"<Beside {state}>"

    async def open_channel(self, first: Link, address: str) -> Channel:
        """A channel on it; on the first connection where there can't be a second.

        Raises
        ------
        LinkError
            Not there either.
        """
        if self._link is None:
            self._link = asyncio.ensure_future(self._connect())
        try:
            link = await asyncio.shield(self._link)  # others wait for it too
            return await link.open_channel(address)
        except (ProvisioningError, LinkError) as error:
            _log.info("no second connection: %s", error)
        return await first.open_channel(address)

    async def close(self) -> None:
        """End it. May be repeated; afterwards there may be another."""
        coming, self._link = self._link, None
        if coming is None:
            return
        coming.cancel()  # nothing, if it is there
        await asyncio.wait([coming])
        if not coming.cancelled() and coming.exception() is None:
            await coming.result().close()
