"""A link gets stripes when they are worth it, and writes each message where it belongs; their loss loses no message."""

from __future__ import annotations

import pytest

from tests.core.nodes.agent_node import MEGABYTE, Node, blob, over


@pytest.mark.slow
@over()
async def test_much_to_send_goes_over_stripes_and_small_messages_do_not(it: Node) -> None:
    """The first channel carries no more of large messages once there are stripes."""
    blob(it, b"a", 64 * MEGABYTE)
    await it.sent()
    assert len(it.channels) == 3
    before = [channel.written for channel in it.channels]
    blob(it, b"b", 16 * MEGABYTE)
    await it.sent()
    first, *stripes = (channel.written - b for channel, b in zip(it.channels, before, strict=True))
    assert first < 10_000
    assert 16 * MEGABYTE < sum(stripes) < 16.1 * MEGABYTE
    assert all(channel.written > 10_000 for channel in it.channels)


@pytest.mark.slow
@over()
async def test_what_shrinks_is_packed_where_the_line_is_slow(it: Node) -> None:
    """Once the pace of the link is known; and the agent gets what was sent."""
    it.session._link.rate_meter.rate = 1e6  # once told, it changes by halves at most
    blob(it, b"a", 64 * MEGABYTE, shrinks=True)
    await it.sent()
    assert sum(channel.written for channel in it.channels) < 2 * MEGABYTE


@pytest.mark.slow
@over(distance=10.0)
async def test_nearby_there_are_no_stripes(it: Node) -> None:
    """They are opened only where the round trip is long enough for one channel to be slow."""
    blob(it, b"a", 32 * MEGABYTE)
    await it.sent()
    assert len(it.channels) == 1


@pytest.mark.slow
@over()
async def test_small_messages_pass_while_stripes_are_full(it: Node) -> None:
    """However long large messages wait, the first channel is free."""
    blob(it, b"a", 32 * MEGABYTE)
    await it.sent()
    for channel in it.channels:
        channel.shut = True  # the whole line is full
    blob(it, b"b", 32 * MEGABYTE)
    accepted = it.agent.session.inbox._early  # type: ignore[union-attr]
    blob(it, b"c", 10)
    await it.until(lambda: accepted)
    assert it.session._outbox.size == 32 * MEGABYTE + 10
    for channel in it.channels:
        channel.shut = False
        channel.opened.set()
    await it.sent()


@pytest.mark.slow
@over()
async def test_stripes_that_are_refused_leave_the_link_as_it_is(it: Node) -> None:
    """A machine that allows one channel serves as before."""
    it.refuse = True
    blob(it, b"a", 64 * MEGABYTE)
    await it.sent()
    assert len(it.channels) == 1


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_the_loss_of_any_channel_loses_no_message(victim: int) -> None:
    """The session makes another link, with stripes of its own, and sends again what was not acknowledged."""

    @over()
    async def test(it: Node) -> None:
        blob(it, b"a", 64 * MEGABYTE)
        await it.until(lambda: it.session._link is not None and it.session._link.stripes)
        it.channels[victim].close()
        blob(it, b"b", 64 * MEGABYTE)
        await it.sent()
        assert len(it.channels) == 6
        assert all(channel.channel._ended for channel in it.channels[:3])  # type: ignore[attr-defined]
        assert it.agent.session.inbox.received == 3  # type: ignore[union-attr]

    test()


@pytest.mark.slow
@over()
async def test_a_session_ends_with_its_stripes(it: Node) -> None:
    """Goodbye is said on the first channel; nothing stays open."""
    blob(it, b"a", 64 * MEGABYTE)
    await it.until(lambda: it.session._link is not None and it.session._link.stripes)
    await it.session.close()
    await it.until(lambda: all(channel.channel._ended for channel in it.channels))  # type: ignore[attr-defined]


@pytest.mark.slow
@over(distance=10.0)
async def test_a_goodbye_does_not_wait_for_room(it: Node) -> None:
    """The link is closed after a while, though its channel takes nothing more, and the agent has to know why."""
    it.channels[0].shut = True
    blob(it, b"a", MEGABYTE)
    await it.session.close()
    assert await it.agent.stopped == "the owner said goodbye"
