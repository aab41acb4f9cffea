"""Joins a node's output into whole lines; long lines arrive in several messages."""

from __future__ import annotations

from skyward.core.events import Events, Printed
from skyward.core.protocol.messages import Output
from skyward.core.protocol.wire import Filled

__all__ = ["OutputLines"]

_MAX_LINE = 4 * 1024 * 1024  # bytes


class OutputLines:
    """The output of one node.

    Parameters
    ----------
    node
        Name of the node.
    events
        Where lines are reported.
    """

    def __init__(self, node: str, events: Events) -> None:
        self._node = node
        self._events = events
        self._begun: dict[int, bytearray] = {}  # by stream, the beginning of a line

    def __repr__(self) -> str:
        return f"<OutputLines of {self._node}>"

    def received(self, message: Output, buffers: list[Filled]) -> None:
        """Report whole lines, and keep the beginning of one that is to be continued."""
        text = self._begun.pop(message.stream, bytearray()) + buffers[0]
        if message.more and len(text) < _MAX_LINE:
            self._begun[message.stream] = text
        else:
            self._events.emit(Printed(self._node, message.stream, text.decode("utf-8", "backslashreplace")))
