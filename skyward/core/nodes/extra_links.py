"""Further connections to a machine, for what is large, so that nothing small waits behind it.

Within one connection the large has to be sent before whatever comes later: megabytes lie in the kernel's buffer and in
the host's sshd, and a full buffer is offered to its writer only when a third of it has gone. At a round trip of 50 ms
that made a small task wait some 30 ms longer, of which the line itself is to blame for 8. And no connection carries
more than the kernels' buffers in a round trip, as a rule 3 to 6 MB, whatever the line could take.
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
    """The connections beside another one. Belongs to the event loop.

    Parameters
    ----------
    connect
        Makes one; called at most `count` times until `close`, since a host that has refused will do so again.
    count
        How many there are, once so many channels have been asked for; the channels take them in turn.
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
        """A channel on one of them, by `enter`; on the first connection where there can't be another.

        Raises
        ------
        LinkError
            Not there either.
        """
        turn = next(self._turns)
        coming = self._links[turn]
        if coming is None:
            coming = self._links[turn] = asyncio.ensure_future(self._connect())
        try:
            link = await asyncio.shield(coming)  # others wait for it too
            return await enter(link)
        except (ProvisioningError, LinkError) as error:
            _log.info("no further connection: %s", error)
        return await enter(first)

    async def close(self) -> None:
        """End them. May be repeated; afterwards there may be others."""
        asked = [link for link in self._links if link is not None]
        self._links = [None] * len(self._links)
        for coming in asked:
            coming.cancel()  # nothing, if it is there
        if asked:
            await asyncio.wait(asked)
        made = [coming.result() for coming in asked if not coming.cancelled() and coming.exception() is None]
        await asyncio.gather(*(link.close() for link in made))
