"""What channels of all transports share: bytes wait for a reader, who slows the other end down; writers for room."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from skyward.transport.buffered_channel import BufferedChannel


class Recorded(BufferedChannel):
    """Notes what is asked of its transport."""

    READ_AHEAD: ClassVar[int] = 10

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.full = False

    @property
    def congested(self) -> bool:
        return self.full and not self._ended

    def _pause_reading(self) -> None:
        self.asked.append("pause")

    def _resume_reading(self) -> None:
        self.asked.append("resume")


def test_a_reader_gets_all_that_is_there_and_then_the_end() -> None:
    async def main() -> None:
        channel = Recorded()
        reading = asyncio.ensure_future(channel.read())
        await asyncio.sleep(0)
        channel.feed_data(b"one")
        channel.feed_data(b" two")
        assert await reading == b"one two"
        channel.feed_data(b"")  # which must not look like the end
        channel.feed_data(b"three")
        channel.feed_eof()
        channel.feed_data(b"too late")
        assert await channel.read() == b"three"
        assert await channel.read() == b""
        assert await channel.read() == b""

    asyncio.run(main())


def test_the_end_wakes_a_reader() -> None:
    async def main() -> None:
        channel = Recorded()
        reading = asyncio.ensure_future(channel.read())
        await asyncio.sleep(0)
        channel.feed_eof()
        assert await reading == b""

    asyncio.run(main())


def test_a_reader_that_was_cancelled_loses_nothing() -> None:
    async def main() -> None:
        channel = Recorded()
        reading = asyncio.ensure_future(channel.read())
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
        channel.feed_data(b"x")
        assert await channel.read() == b"x"

    asyncio.run(main())


def test_the_other_end_is_paused_once_until_all_is_read() -> None:
    async def main() -> None:
        channel = Recorded()
        channel.feed_data(b"x" * 10)
        assert channel.asked == []
        channel.feed_data(b"y")
        channel.feed_data(b"z" * 20)
        assert channel.asked == ["pause"]
        await channel.read()
        assert channel.asked == ["pause", "resume"]
        channel.feed_data(b"z" * 11)
        assert channel.asked == ["pause", "resume", "pause"]

    asyncio.run(main())


def test_writers_wait_while_it_is_congested() -> None:
    async def main() -> None:
        channel = Recorded()
        await channel.drain()
        channel.full = True
        writers = [asyncio.ensure_future(channel.drain()) for _ in range(2)]
        await asyncio.sleep(0)
        channel.relieved()  # it may have become congested again
        await asyncio.sleep(0)
        assert not any(writer.done() for writer in writers)
        channel.full = False
        channel.relieved()
        await asyncio.gather(*writers)
        channel.full = True
        writer = asyncio.ensure_future(channel.drain())
        await asyncio.sleep(0)
        channel.feed_eof()
        await writer

    asyncio.run(main())
