"""A suite that every transport must pass. Derive a test class from it::

    from skyward.testing.transport import TransportConformance, Place

    class TestMyTransport(TransportConformance):
        def transport(self):
            return MyTransport()

        @contextlib.asynccontextmanager
        async def place(self):
            yield Place(Endpoint("mine", "host"), address="/where/the/service/listens", nobody="/nowhere")

`skyward.testing.service` must listen at the address: in this process, or on another machine, to which that single file
can be copied. Each test is a plain function with its own event loop, so no pytest plugin is needed.
"""

# ruff: noqa: D102 - a test's name says what holds

from __future__ import annotations

import asyncio
import hashlib
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import pytest

from skyward.core.errors import HostUnreachable, LinkError
from skyward.core.interfaces import Channel, CommandOutput, Link, Shell, Transport
from skyward.core.spec import Endpoint
from skyward.testing.service import pattern

__all__ = ["Place", "TransportConformance"]

_MEGABYTE = 2**20


@dataclass(frozen=True)
class Place:
    """Where a transport finds the service.

    Attributes
    ----------
    endpoint
        For `Transport.connect`.
    address
        For `Link.open_channel`.
    nobody
        An address for `Link.open_channel` where nobody listens.
    silent
        An endpoint that never answers, if there can be one.
    closed
        An endpoint that refuses connections at once, if there can be one.
    """

    endpoint: Endpoint
    address: str
    nobody: str
    silent: Endpoint | None = None
    closed: Endpoint | None = None


def _over_a_link(test: Callable[[Any, Link, Place], Awaitable[None]]) -> Callable[[Any], None]:
    """Turn a coroutine function into a test: with its own event loop, a link, and the time limit."""

    async def main(suite: TransportConformance) -> None:
        async with asyncio.timeout(suite.time_limit), suite.place() as place:
            link = await suite.transport().connect(place.endpoint, suite.time_limit)
            try:
                await test(suite, link, place)
            finally:
                await link.close()

    def run(self: TransportConformance) -> None:
        asyncio.run(main(self))

    run.__name__ = test.__name__  # not functools.wraps: pytest would take link and place for fixtures
    run.__doc__ = test.__doc__
    return run


async def _say(link: Link, place: Place, line: str) -> Channel:
    channel = await link.open_channel(place.address)
    channel.write([line.encode(), b"\n"])
    return channel


async def _all(channel: Channel) -> bytes:
    data = bytearray()
    while more := await channel.read():
        data += more
    return bytes(data)


async def _exactly(channel: Channel, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        more = await channel.read()
        assert more, f"the stream ended after {len(data)} of {count} bytes"
        data += more
    assert len(data) == count
    return bytes(data)


async def _total(link: Link, place: Place, name: str) -> str:
    """What a sink received in total, once its stream has ended."""
    channel = await _say(link, place, f"total {name}")
    return (await _all(channel)).decode().strip()


async def _wake(link: Link, place: Place, name: str) -> None:
    channel = await _say(link, place, f"wake {name}")
    assert await channel.read() == b""


async def _send(channel: Channel, pieces: Sequence[bytes]) -> None:
    for piece in pieces:
        channel.write([piece])
        if channel.congested:
            await channel.drain()


def _sum(data: bytes | bytearray) -> str:
    return f"{len(data)} {hashlib.sha256(data).hexdigest()}"


class TransportConformance:
    """What every transport must do. Subclasses define `transport` and `place`."""

    time_limit = 60.0
    """Time limit of one test, in seconds."""

    def transport(self) -> Transport:
        """The transport to test."""
        raise NotImplementedError

    def place(self) -> AbstractAsyncContextManager[Place]:
        """Start the service and return where it listens; entered in the event loop of each test."""
        raise NotImplementedError

    # --- bytes ---

    def test_it_declares_its_name_and_whether_it_is_striped(self) -> None:
        transport = self.transport()
        assert transport.name
        assert transport.name.isidentifier()
        assert isinstance(transport.striped, bool)

    @_over_a_link
    async def test_bytes_arrive_complete_and_in_order_however_they_are_split(self, link: Link, place: Place) -> None:
        dice = random.Random(7)  # noqa: S311 - sizes, no secrets
        data = b"".join(pattern(3 * _MEGABYTE))
        channel = await _say(link, place, "echo")
        reader = asyncio.create_task(_exactly(channel, len(data)))
        at = 0
        while at < len(data):
            buffers: list[bytes | bytearray | memoryview] = []
            for _ in range(dice.choice((1, 1, 2, 5))):
                size = dice.choice((0, 1, 2, 100, 4095, 4096, 65537, 300_000))
                kind = dice.choice((bytes, bytearray, memoryview))
                buffers.append(kind(data[at : at + size]))
                at += size
            channel.write(buffers)
            await channel.drain()
        assert await reader == data

    @_over_a_link
    async def test_fifty_megabytes_go_both_ways_at_once(self, link: Link, place: Place) -> None:
        data = b"".join(pattern(50 * _MEGABYTE))
        view = memoryview(data)
        channel = await _say(link, place, "echo")
        reader = asyncio.create_task(_exactly(channel, len(data)))
        await _send(channel, [bytes(view[at : at + 256 * 1024]) for at in range(0, len(data), 256 * 1024)])
        assert await reader == data

    @_over_a_link
    async def test_concurrent_channels_do_not_mix(self, link: Link, place: Place) -> None:
        async def converse(number: int) -> None:
            channel = await _say(link, place, "echo")
            for turn in range(50):
                message = f"{number}/{turn} ".encode() * (turn * number + 1)
                channel.write([message])
                assert await _exactly(channel, len(message)) == message
            channel.close()

        await asyncio.gather(*(converse(number) for number in range(8)))

    @_over_a_link
    async def test_a_channel_that_is_not_read_does_not_hold_up_another(self, link: Link, place: Place) -> None:
        full = await _say(link, place, f"source {64 * _MEGABYTE}")
        other = await _say(link, place, "echo")
        for _ in range(20):
            other.write([b"still there?"])
            assert await _exactly(other, 12) == b"still there?"
        assert _sum(await _all(full)) == _sum(b"".join(pattern(64 * _MEGABYTE)))

    @_over_a_link
    async def test_a_cancelled_read_loses_nothing(self, link: Link, place: Place) -> None:
        channel = await _say(link, place, "echo")
        for _ in range(3):
            reader = asyncio.create_task(channel.read())
            await asyncio.sleep(0)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
        channel.write([b"abc"])
        assert await _exactly(channel, 3) == b"abc"

    # --- back-pressure ---

    @_over_a_link
    async def test_a_peer_that_does_not_read_congests_until_it_does(self, link: Link, place: Place) -> None:
        name = uuid.uuid4().hex
        channel = await _say(link, place, f"mute {name}")
        await asyncio.wait_for(channel.drain(), 1)
        sent = bytearray()
        drained = asyncio.create_task(channel.drain())
        for piece in pattern(256 * _MEGABYTE):
            if channel.congested:  # by the peer, or for a moment by the line on the way to it
                drained = asyncio.create_task(channel.drain())
                if not (await asyncio.wait([drained], timeout=0.2))[0]:
                    break
            channel.write([piece])
            sent += piece
            await asyncio.sleep(0)
        assert channel.congested, "256 MB were queued for a peer that reads nothing"
        assert not drained.done(), "drain returned though nobody read"
        await _wake(link, place, name)
        await drained
        channel.close()
        assert await _total(link, place, name) == _sum(sent)

    @_over_a_link
    async def test_drain_returns_when_the_stream_ends(self, link: Link, place: Place) -> None:
        name = uuid.uuid4().hex
        channel = await _say(link, place, f"deaf {name}")
        block = bytes(_MEGABYTE)
        while not channel.congested:
            channel.write([block])
            await asyncio.sleep(0)
        drained = [asyncio.create_task(channel.drain()) for _ in range(2)]
        await _wake(link, place, name)
        await asyncio.gather(*drained)
        assert await channel.read() == b""

    @_over_a_link
    async def test_closing_a_channel_wakes_its_readers_and_writers(self, link: Link, place: Place) -> None:
        channel = await _say(link, place, f"deaf {uuid.uuid4().hex}")
        block = bytes(_MEGABYTE)
        while not channel.congested:
            channel.write([block])
            await asyncio.sleep(0)
        waiting = [asyncio.create_task(channel.drain()), asyncio.create_task(channel.read())]
        await asyncio.sleep(0)
        channel.close()
        assert (await asyncio.gather(*waiting))[1] == b""

    # --- ends ---

    @_over_a_link
    async def test_the_end_of_a_stream_can_be_read_repeatedly(self, link: Link, place: Place) -> None:
        channel = await _say(link, place, "source 100000")
        assert await _all(channel) == b"".join(pattern(100_000))
        assert [await channel.read() for _ in range(3)] == [b"", b"", b""]
        assert not channel.congested
        channel.write([b"nobody hears this"])
        await channel.drain()

    @_over_a_link
    async def test_what_was_queued_before_close_is_sent(self, link: Link, place: Place) -> None:
        name = uuid.uuid4().hex
        data = b"".join(pattern(8 * _MEGABYTE))
        channel = await _say(link, place, f"sink {name}")
        channel.write([data])
        channel.close()
        assert await _total(link, place, name) == _sum(data)

    @_over_a_link
    async def test_a_closed_channel_accepts_no_bytes_and_may_be_closed_again(self, link: Link, place: Place) -> None:
        name = uuid.uuid4().hex
        channel = await _say(link, place, f"sink {name}")
        channel.write([b"heard"])
        channel.close()
        channel.write([b"not heard"])
        channel.close()
        assert not channel.congested
        assert await channel.read() == b""
        assert await _total(link, place, name) == _sum(b"heard")

    @_over_a_link
    async def test_closing_the_link_ends_its_channels(self, link: Link, place: Place) -> None:
        channels = [await _say(link, place, "echo") for _ in range(3)]
        readers = [asyncio.create_task(channel.read()) for channel in channels]
        await asyncio.sleep(0)
        await link.close()
        assert await asyncio.gather(*readers) == [b"", b"", b""]
        for channel in channels:
            channel.write([b"nobody hears this"])
            channel.close()
        await link.close()

    @_over_a_link
    async def test_two_links_are_independent(self, link: Link, place: Place) -> None:
        second = await self.transport().connect(place.endpoint, self.time_limit)
        channel = await _say(second, place, "echo")
        await link.close()
        channel.write([b"unhurt"])
        assert await _exactly(channel, 6) == b"unhurt"
        await second.close()

    # --- failures ---

    @_over_a_link
    async def test_an_address_where_nobody_listens_is_a_link_error(self, link: Link, place: Place) -> None:
        with pytest.raises(LinkError) as caught:
            await link.open_channel(place.nobody)
        assert place.nobody in str(caught.value)
        channel = await _say(link, place, "echo")  # the link itself still works
        channel.write([b"x"])
        assert await channel.read() == b"x"

    @_over_a_link
    async def test_an_endpoint_that_never_answers_is_unreachable_in_time(self, link: Link, place: Place) -> None:
        if place.silent is None:
            pytest.skip("this transport has no endpoint that never answers")
        begin = time.monotonic()
        with pytest.raises(HostUnreachable) as caught:
            await self.transport().connect(place.silent, 0.7)
        assert 0.5 < time.monotonic() - begin < 3
        assert place.silent.host in str(caught.value)

    @_over_a_link
    async def test_an_endpoint_that_refuses_is_unreachable_at_once(self, link: Link, place: Place) -> None:
        if place.closed is None:
            pytest.skip("this transport has no endpoint that refuses")
        begin = time.monotonic()
        with pytest.raises(HostUnreachable) as caught:
            await self.transport().connect(place.closed, self.time_limit)
        assert time.monotonic() - begin < 5
        assert place.closed.host in str(caught.value)

    # --- shell ---

    @_over_a_link
    async def test_commands_return_status_stdout_and_stderr(self, link: Link, place: Place) -> None:
        shell = _shell(link)
        assert await shell.run("echo out; echo err >&2; exit 3") == CommandOutput(3, "out\n", "err\n")
        assert await shell.run("printf '%s|' \"it's\" '$HOME' 'a\\b' 'ü'") == CommandOutput(0, "it's|$HOME|a\\b|ü|", "")
        assert await shell.run("cat <<'E'\n$one\ntwo!\nE") == CommandOutput(0, "$one\ntwo!\n", "")
        assert (await shell.run("if then")).status != 0
        assert (await shell.run("kill -9 $$")).status == 137
        assert (await shell.run("no-such-program-here")).status == 127

    @_over_a_link
    async def test_commands_get_exactly_their_input(self, link: Link, place: Place) -> None:
        shell = _shell(link)
        data = b"".join(pattern(_MEGABYTE))
        assert (await shell.run("cat >/dev/null; wc -c", input=data)).stdout.split() == ["0"]
        done = await shell.run("head -c 10 >/dev/null; wc -c", input=b"x" * 100)
        assert done.status == 0
        assert (await shell.run("sha256sum", input=data)).stdout.split()[0] == hashlib.sha256(data).hexdigest()
        assert await shell.run("cat") == CommandOutput(0, "", "")
        assert await shell.run("true", input=data) == CommandOutput(0, "", "")  # input that nobody reads

    @_over_a_link
    async def test_commands_may_overlap_and_print_a_lot(self, link: Link, place: Place) -> None:
        shell = _shell(link)
        command = "i=0; while [ $i -lt 20000 ]; do echo {0} $i; i=$((i+1)); done"
        results = await asyncio.gather(*(shell.run(command.replace("{0}", str(n))) for n in range(4)))
        assert [done.stdout for done in results] == [
            "".join(f"{n} {i}\n" for i in range(20000)) for n in range(4)
        ]  # fmt: skip

    @_over_a_link
    async def test_background_processes_of_a_command_are_not_waited_for(self, link: Link, place: Place) -> None:
        begin = time.monotonic()
        done = await _shell(link).run("sleep 77 & echo $!")
        assert time.monotonic() - begin < 5
        assert (await _shell(link).run(f"kill {done.stdout}")).status == 0

    @_over_a_link
    async def test_a_command_that_takes_too_long_is_killed(self, link: Link, place: Place) -> None:
        shell = _shell(link)
        with pytest.raises(TimeoutError):
            await shell.run("echo $$ >/tmp/skyward-slow; sleep 78; true", timeout=0.5)
        waiting = "while kill -0 $(cat /tmp/skyward-slow) 2>/dev/null; do sleep 0.05; done"
        assert (await shell.run(waiting, timeout=10)).status == 0

    @_over_a_link
    async def test_files_are_written_atomically(self, link: Link, place: Place) -> None:
        shell = _shell(link)
        data = b"".join(pattern(_MEGABYTE)) + b"\0\xff"
        name = f"it's a $file {uuid.uuid4().hex}"
        for content in (data, b"", b"second"):
            await shell.put(content, f"~/{name}")
            done = await shell.run(f'cd && sha256sum "it\'s a \\$file {name[-32:]}"')
            assert done.stdout.split()[0].lstrip("\\") == hashlib.sha256(content).hexdigest()
        assert (await shell.run(f"cd && ls | grep -c {name[-32:]}; rm -f *{name[-32:]}")).stdout == "1\n"
        with pytest.raises(OSError, match="/no/such/folder"):
            await shell.put(data, "/no/such/folder/file")

    @_over_a_link
    async def test_using_a_shell_after_its_link_has_closed_is_a_link_error(self, link: Link, place: Place) -> None:
        shell = _shell(link)
        # It ends with the server's end of the link, so that nothing is left for the next test.
        running = asyncio.create_task(shell.run("while kill -0 $PPID 2>/dev/null; do sleep 0.1; done"))
        await shell.run("true")
        await link.close()
        with pytest.raises(LinkError):
            await running
        with pytest.raises(LinkError):
            await shell.run("true")


def _shell(link: Link) -> Shell:
    if link.shell is None:
        pytest.skip("this transport has no shell")
    return link.shell
