"""The owner's end of byte streams between slots of a node and listening sockets of this process.

A task with a Manager's proxy or a callback of scikit-learn opens one; `worker/bridge.py` is the other end. Everything
happens in the I/O thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

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
"""The messages of a node that its `Streams` handles."""


_BEHIND = 64 << 20  # maximum bytes of one stream that its listener has not read
_AHEAD = 8 << 20  # maximum bytes of one stream that a node has not acknowledged


@dataclass(slots=True, eq=False)
class _OpenStream:
    task: asyncio.Task[None] | None = None
    channel: Channel | None = None
    early: list[Filled] = field(default_factory=list)  # bytes that arrived before the channel was open
    behind: int = 0  # bytes that arrived while the listener took no more


class Streams:
    """The streams of one node.

    Parameters
    ----------
    session
        The session of the node.
    listeners
        Where a stream may lead.
    """

    def __init__(self, session: Session, listeners: Listeners) -> None:
        self._session = session
        self._listeners = listeners
        self._streams: dict[int, _OpenStream] = {}

    def __repr__(self) -> str:
        return f"<Streams of {self._session.node}: {len(self._streams)}>"

    def received(self, message: StreamOpen | StreamData | StreamClose, buffers: list[Filled]) -> None:
        """Handle one of `ABOUT_STREAMS`."""
        self._MESSAGES[type(message)](self, message, buffers)

    def close(self) -> None:
        """End all streams, since the node is gone."""
        for stream in self._streams.values():
            if stream.task is not None:
                stream.task.cancel()

    def _opened(self, message: StreamOpen, _: list[Filled]) -> None:
        if message.stream in self._streams:
            raise ProtocolError(f"stream {message.stream} is opened twice")
        stream = self._streams[message.stream] = _OpenStream()
        stream.task = asyncio.create_task(self._carry(message, stream))
        watched(stream.task, self._session.failed)

    def _closed(self, message: StreamClose, _: list[Filled]) -> None:
        stream = self._streams.pop(message.stream, None)
        if stream is not None and stream.task is not None:
            stream.task.cancel()

    def _fed(self, message: StreamData, buffers: list[Filled]) -> None:
        number = message.stream
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

    _MESSAGES: ClassVar[dict[type[Any], Callable[[Streams, Any, list[Filled]], None]]] = {
        StreamOpen: _opened,
        StreamData: _fed,
        StreamClose: _closed,
    }

    def _end(self, number: int, error: str) -> None:
        stream = self._streams.pop(number)
        if stream.task is not None:
            stream.task.cancel()
        self._session.send(StreamClose(number, error))

    async def _carry(self, message: StreamOpen, stream: _OpenStream) -> None:
        session, number, error = self._session, message.stream, None
        try:
            stream.channel = await self._listeners.open(message.address)
            session.send(StreamData(number), [b""])  # tells the slot that it is connected
            stream.channel.write(stream.early)
            ahead = Quota(_AHEAD)
            while data := await stream.channel.read():
                for start in range(0, len(data), WHOLE):  # in pieces small enough to keep their order
                    piece = data[start : start + WHOLE]
                    ahead.add(session.send(StreamData(number), [piece]), len(piece))
                ahead.acknowledge(session.acknowledged)
                while ahead.full:
                    await session.taken(session.acknowledged + 1)
                    ahead.acknowledge(session.acknowledged)
        except (OSError, ValueError) as problem:  # ValueError from an invalid address
            error = f"{problem}"
        finally:
            if stream.channel is not None:
                stream.channel.close()
            if self._streams.pop(number, None) is not None:
                session.send(StreamClose(number, error))
