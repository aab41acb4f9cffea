"""What is large has connections of its own where the machine allows them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from skyward.core.errors import HostUnreachable, LinkError
from skyward.core.interfaces import Channel, Link
from skyward.core.nodes.extra_links import ExtraLinks
from skyward.core.spec import Endpoint
from skyward.transport.memory import MemoryLink, MemoryTransport, listen

ADDRESS = "agent"


async def enter(link: Link) -> Channel:
    return await link.open_channel(ADDRESS)


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """Hosts to which channels have been opened."""
    hosts: list[str] = []
    ends = [listen(host, ADDRESS, lambda _, host=host: hosts.append(host)) for host in ("first", "second")]
    yield hosts
    for end in ends:
        end()


def run(work: Callable[[MemoryLink], Coroutine[Any, Any, None]]) -> None:
    async def live() -> None:
        first = await MemoryTransport().connect(Endpoint("memory", "first"), 1)
        try:
            await work(first)
        finally:
            await first.close()

    asyncio.run(live())


def test_channels_take_turns_at_the_connections_beside_the_first(opened: list[str]) -> None:
    """Each is made when its turn comes for the first time, and again only after the end."""
    made: list[MemoryLink] = []

    async def connect() -> MemoryLink:
        made.append(await MemoryTransport().connect(Endpoint("memory", "second"), 1))
        return made[-1]

    async def work(first: MemoryLink) -> None:
        beside = ExtraLinks(connect, 2)
        await beside.close()
        channels = [await beside.open_channel(first, enter)]
        assert len(made) == 1
        channels += await asyncio.gather(*(beside.open_channel(first, enter) for _ in range(3)))
        assert opened == ["second"] * 4
        assert len(made) == 2
        await beside.close()
        assert [await channel.read() for channel in channels] == [b""] * 4
        await beside.open_channel(first, enter)
        assert len(made) == 3
        await beside.close()

    run(work)


@pytest.mark.parametrize("error", [HostUnreachable("no"), LinkError("no")], ids=["no connection", "no channel"])
def test_where_there_can_be_no_further_connection_the_first_does(opened: list[str], error: Exception) -> None:
    """A host may refuse it, or the address may be that of several hosts; each is tried once."""
    tried = 0

    async def connect() -> MemoryLink:
        nonlocal tried
        tried += 1
        if isinstance(error, LinkError):
            return MemoryLink("another")
        raise error

    async def work(first: MemoryLink) -> None:
        beside = ExtraLinks(connect, 2)
        for _ in range(4):
            await beside.open_channel(first, enter)
        assert opened == ["first"] * 4
        assert tried == 2
        await beside.close()

    run(work)


def test_its_end_does_not_wait_for_a_host_that_does_not_answer(opened: list[str]) -> None:
    """Nor is one who waits for a channel left waiting."""

    async def connect() -> MemoryLink:
        await asyncio.Event().wait()
        raise AssertionError

    async def work(first: MemoryLink) -> None:
        beside = ExtraLinks(connect)
        opening = asyncio.ensure_future(beside.open_channel(first, enter))
        await asyncio.sleep(0)
        await beside.close()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert opened == []

    run(work)
