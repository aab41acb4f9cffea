"""What the slots send to the owner, and how much of it the owner has not acknowledged.

No socket is opened here: messages go to the owner's session, which numbers them and repeats them after a broken link.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from skyward.core.protocol.mailbox import Quota
from skyward.core.protocol.messages import Message, Output
from skyward.core.protocol.wire import Buffer

__all__ = ["OwnerTraffic"]

_OUTPUT_LIMIT = 4 * 1024 * 1024  # bytes of unacknowledged output
_STREAM_LIMIT = 8 * 1024 * 1024  # bytes of unacknowledged streams


class OwnerTraffic:
    """Posts messages to the owner, and applies back-pressure to output and streams.

    Parameters
    ----------
    send
        Sends a numbered message, perhaps a little later if the last argument is true, and returns its number.
    throttle
        Called when `output_full` or `streams_full` may have changed.
    """

    def __init__(self, send: Callable[[Message, Sequence[Buffer], bool], int], throttle: Callable[[], object]) -> None:
        self._send = send
        self._throttle = throttle
        self._output = Quota(_OUTPUT_LIMIT)
        self._streams = Quota(_STREAM_LIMIT)

    def __repr__(self) -> str:
        return f"<OwnerTraffic: output {self._output!r}, streams {self._streams!r}>"

    @property
    def output_full(self) -> bool:
        """Whether slots should stop printing for now."""
        return self._output.full

    @property
    def streams_full(self) -> bool:
        """Whether slots should stop writing to streams for now."""
        return self._streams.full

    def post(self, message: Message, buffers: Sequence[Buffer] = ()) -> int:
        """Send a message; returns its number."""
        return self._send(message, buffers, False)

    def print(self, stream: int, data: bytes, more: bool = False) -> None:
        """Send output of a slot.

        Parameters
        ----------
        stream
            1 for standard output, 2 for standard error.
        data
            Whole lines, or a part of one.
        more
            Whether more of the last line follows.
        """
        self._output.add(self.post(Output(stream, more), (data,)), len(data))
        if self._output.full:
            self._throttle()

    def warn(self, text: str) -> None:
        """Let the owner print a warning."""
        self.print(2, f"skyward: {text}\n".encode())

    def stream(self, message: Message, buffers: Sequence[Buffer]) -> None:
        """Send a part of a byte stream."""
        self._streams.add(self.post(message, buffers), sum(len(buffer) for buffer in buffers))
        if self._streams.full:
            self._throttle()

    def acknowledged(self, received: int) -> None:
        """The owner has every message up to this number."""
        self._output.acknowledge(received)
        self._streams.acknowledge(received)
        self._throttle()
