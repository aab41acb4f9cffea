"""The owner's end of byte streams between slots of a node and listening sockets of this process.

A Manager proxy or a callback of scikit-learn in a task asks for one; `worker/bridge.py` is the other end. All of it
happens in the I/O thread.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from skyward.core.errors import ProtocolError
from skyward.core.guard import watched
from skyward.core.interfaces import Channel
from skyward.core.nodes.session import Session
from skyward.core.protocol.mailbox import Quota
from skyward.core.protocol.messages import StreamClose, StreamData, StreamOpen
from skyward.core.protocol.wire import WHOLE, Filled
from skyward.core.tasks.listening_sockets import Listeners

__all__ = ["ABOUT_STREAMS", "Streams"]

ABOUT_STREAMS = (StreamOpen, StreamData, StreamClose)
"""What a node says that is for its `Streams`."""


_BEHIND = 64 << 20  # bytes of one stream for a listener that does not read them
_AHEAD = 8 << 20  # bytes of one stream that a node has not acknowledged


@dataclass(slots=True, eq=False)
class _Stream:
    task: asyncio.Task[None] | None = None
    channel: Channel | None = None
    early: list[Filled] = field(default_factory=list)  # what came before the channel was open
    behind: int = 0  # bytes that came while the listener took no more


class Streams:
    """Those of one node.

    Parameters
    ----------
    session
        The conversation with the node.
    listeners
        What a stream may lead to.
    """

    def __init__(self, session: Session, listeners: Listeners) -> None:
        self._session = session
        self._listeners = listeners
        self._streams: dict[int, _Stream] = {}

    def __repr__(self) -> str:
        return f"<Streams of {self._session.node}: {len(self._streams)}>"

    def received(self, message: StreamOpen | StreamData | StreamClose, buffers: list[Filled]) -> None:
        """A node's word about one of them."""
        if isinstance(message, StreamOpen):
            if message.stream in self._streams:
                raise ProtocolError(f"stream {message.stream} is opened twice")
            stream = self._streams[message.stream] = _Stream()
            stream.task = asyncio.create_task(self._carry(message, stream))
            watched(stream.task, self._session.failed)
        elif isinstance(message, StreamData):
            self._feed(message.stream, buffers)
        else:
            closing = self._streams.pop(message.stream, None)
            if closing is not None and closing.task is not None:
                closing.task.cancel()

    def close(self) -> None:
        """End all; the node is gone."""
        for stream in self._streams.values():
            if stream.task is not None:
                stream.task.cancel()

    def _feed(self, number: int, buffers: list[Filled]) -> None:
        stream = self._streams.get(number)
        if stream is None:
            return
        waits = stream.channel is None or stream.channel.congested
        stream.behind = stream.behind + sum(map(len, buffers)) if waits else 0
        if stream.behind > _BEHIND:
            self._end(number, f"the listener has not taken {stream.behind:,} bytes that tasks sent it")
        elif stream.channel is None:
            stream.early += buffers
        else:
            stream.channel.write(buffers)

    def _end(self, number: int, error: str) -> None:
        stream = self._streams.pop(number)
        if stream.task is not None:
            stream.task.cancel()
        self._session.send(StreamClose(number, error))

    async def _carry(self, message: StreamOpen, stream: _Stream) -> None:
        session, number, error = self._session, message.stream, None
        try:
            stream.channel = await self._listeners.open(message.address)
            session.send(StreamData(number), [b""])  # so the slot knows that it is connected
            stream.channel.write(stream.early)
            ahead = Quota(_AHEAD)
            while data := await stream.channel.read():
                for start in range(0, len(data), WHOLE):  # in pieces that keep their order
                    piece = data[start : start + WHOLE]
                    ahead.add(session.send(StreamData(number), [piece]), len(piece))
                ahead.acknowledge(session.acknowledged)
                while ahead.full:
                    await session.taken(session.acknowledged + 1)
                    ahead.acknowledge(session.acknowledged)
        except (OSError, ValueError) as problem:  # the second of an address that is none
            error = f"{problem}"
        finally:
            if stream.channel is not None:
                stream.channel.close()
            if self._streams.pop(number, None) is not None:
                session.send(StreamClose(number, error))
