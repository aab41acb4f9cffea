"""A channel over a socket is congested while the other end does not read."""

from __future__ import annotations

import asyncio
import socket

from skyward.transport.stream import StreamChannel


def test_a_writer_waits_while_the_other_end_does_not_read() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        ends = []
        for end in socket.socketpair():
            _, channel = await loop.create_unix_connection(StreamChannel, sock=end)
            ends.append(channel)
        near, far = ends
        data = bytes(range(256)) * (64 << 10)
        near.write([data])
        await asyncio.sleep(0)
        assert near.congested
        draining = asyncio.ensure_future(near.drain())
        got = b""
        async with asyncio.timeout(30):
            while len(got) < len(data):
                got += await far.read()
            await draining
        assert got == data
        assert not near.congested
        near.close()
        async with asyncio.timeout(30):
            assert await far.read() == b""
        near.write([b"nothing happens"])
        far.close()

    asyncio.run(main())
