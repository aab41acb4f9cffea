"""What the other end sent before it closed is received, whatever this end was doing at that moment."""

from __future__ import annotations

import asyncio
import socket

from skyward.core.protocol.messages import Done, Message, Run
from skyward.core.protocol.wire import Received, Role, Wire
from skyward.worker.wire_socket import WireSocket


def test_what_was_sent_before_the_end_counts_even_if_writing_fails_first() -> None:
    """A slot that answers and dies must not lose its answer because a task was on its way to it."""
    heard: list[Message] = []
    ends: list[str] = []

    def hear(received: Received) -> None:
        assert not ends
        heard.append(received.message)

    async def talk() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        ended = asyncio.Event()

        def end(reason: str) -> None:
            ends.append(reason)
            ended.set()

        link = WireSocket(loop, ours, Wire.opened(Role.OWNER), hear, end, eager=True)
        slot = Wire.opened(Role.AGENT)
        slot.send(Done(1, 0.5), [b"one"])
        slot.send(Done(2, 0.5), [bytes(300_000)])
        theirs.setblocking(False)
        stream = b"".join(slot.data_to_send())
        while stream:
            try:
                stream = stream[theirs.send(stream) :]
            except BlockingIOError:
                link.drain()
        theirs.close()
        link.send(Run(3, True, None, None, {}), [b"a task for one that is gone"])
        await asyncio.wait_for(ended.wait(), 20)

    asyncio.run(talk())
    assert [message.task for message in heard if isinstance(message, Done)] == [1, 2]
    assert len(ends) == 1
