"""The way to one machine: which link a channel is on, and that none is left when it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from skyward.core.errors import LinkError, ProvisioningError
from skyward.core.image import Image
from skyward.core.interfaces import Channel, CommandOutput, Shell
from skyward.core.nodes.connector import Connector
from skyward.core.spec import Endpoint, Machine
from skyward.transport.memory import MemoryChannel, MemoryLink, MemoryTransport, listen


class SlowLink(MemoryLink):
    """One whose end takes as long as it is told, as that of a line to a host that does not answer."""

    def __init__(self, host: str) -> None:
        super().__init__(host)
        self.may_end, self.ended = asyncio.Event(), asyncio.Event()
        self.may_end.set()

    async def close(self) -> None:
        await self.may_end.wait()
        await super().close()
        self.ended.set()


class SlowTransport(MemoryTransport):
    """Makes them, and knows them all."""

    striped = True
    links: list[SlowLink]

    async def connect(self, endpoint: Endpoint, timeout: float) -> SlowLink:
        self.links.append(SlowLink(endpoint.host))
        return self.links[-1]


@pytest.fixture
def links(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[SlowLink]]:
    """The links that were made."""
    monkeypatch.setattr(SlowTransport, "links", [], raising=False)
    monkeypatch.setattr("skyward.core.registry.load", lambda *_: SlowTransport)
    end = listen("host", "agent", lambda _: None)
    yield SlowTransport.links
    end()


def connector(**changes: Any) -> Connector:
    machine = replace(Machine("id", Endpoint("memory", "host"), "tag", "agent", b"s"), **changes)
    return Connector(
        machine,
        Image(),
        orphan_timeout=60.0,
        patience=0.0,
        on_step=lambda _: None,
        on_warning=lambda _: None,
        on_doubt=lambda: None,
    )


def test_each_channel_after_the_first_has_a_new_link(links: list[SlowLink]) -> None:
    async def live() -> None:
        way = connector()
        assert await way.prepare() == b"s"
        await way.open()
        assert len(links) == 1
        await way.open()
        assert [link.ended.is_set() for link in links] == [True, False]
        await way.close()

    asyncio.run(live())


def test_no_link_is_left_though_closing_is_cancelled(links: list[SlowLink]) -> None:
    """As it is when the pool ends: the stripes' links and the first end at the same time, whoever waits for that."""

    async def live() -> None:
        way = connector()
        await way.prepare()
        await way.open()
        assert way.stripes is not None
        await asyncio.gather(*(way.stripes.open() for _ in range(4)))
        assert len(links) == 3
        for link in links:
            link.may_end.clear()
        closing = asyncio.create_task(way.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        async with asyncio.timeout(5):
            for link in links:
                link.may_end.set()
                await link.ended.wait()

    asyncio.run(live())


def test_there_is_no_stripe_without_a_link(links: list[SlowLink]) -> None:
    async def live() -> None:
        way = connector()
        assert way.stripes is not None
        with pytest.raises(LinkError, match="not connected"):
            await way.stripes.open()

    asyncio.run(live())
    assert links == []


def test_a_machine_needs_an_agent_or_a_shell(links: list[SlowLink]) -> None:
    with pytest.raises(ProvisioningError, match="neither an agent nor a shell"):
        asyncio.run(connector(agent=None).prepare())


def test_a_machine_needs_an_address() -> None:
    with pytest.raises(ProvisioningError, match="has no address"):
        connector(endpoint=None)


# --- machines that let nobody open a channel ---


class RelayLink(SlowLink):
    """One whose shell has commands that lead to the agent of their name."""

    def __init__(self) -> None:
        super().__init__("host")
        self.asked: list[str] = []
        self.commands: list[str] = []

    @property
    def shell(self) -> Shell:
        return self

    async def open_channel(self, address: str) -> MemoryChannel:
        self.asked.append(address)
        return await super().open_channel(address)

    async def run(self, command: str, *, input: bytes | None = None, timeout: float | None = None) -> CommandOutput:
        raise LinkError("no command")

    async def put(self, data: bytes, path: str) -> None:
        raise LinkError("no file")

    async def stream(self, command: str) -> Channel:
        self.commands.append(command)
        return await super().open_channel(command)


def relayed(link: RelayLink, relay: str) -> Connector:
    way = connector(agent="forbidden")
    way._relay, way._link = relay, link
    return way


def test_where_no_channel_may_be_opened_a_command_leads_to_the_agent(links: list[SlowLink]) -> None:
    async def live() -> None:
        link = RelayLink()
        way = relayed(link, "agent")
        await way.open()
        await way._enter(link)
        assert link.commands == ["agent"] * 2
        assert link.asked == ["forbidden"], "what was refused once is not asked for again"
        await way.close()

    asyncio.run(live())


def test_an_error_tells_why_neither_way_led_there(links: list[SlowLink]) -> None:
    async def live() -> None:
        link = RelayLink()
        with pytest.raises(LinkError, match=r"forbidden.*a command there could not reach it either: .*nobody"):
            await relayed(link, "nobody").open()
        assert link.commands == ["nobody"]
        with pytest.raises(LinkError, match="forbidden"):
            await relayed(link, "").open()
        assert link.commands == ["nobody"], "there was no command to try"

    asyncio.run(live())


def test_a_transport_that_does_not_say_whether_it_is_striped_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    class Older:
        name = "older"

    monkeypatch.setattr("skyward.core.registry.load", lambda *_: Older)
    assert connector().stripes is None
