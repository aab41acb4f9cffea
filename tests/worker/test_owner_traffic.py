"""Output and streams on their way to the owner must not pile up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from skyward.core.protocol.messages import Message, Output, StreamData
from skyward.worker.owner_traffic import OwnerTraffic


class Line:
    """Numbers messages, as a session does."""

    def __init__(self) -> None:
        self.sent: list[tuple[Message, Any, bool]] = []
        self.throttled: list[tuple[bool, bool]] = []
        self.traffic = OwnerTraffic(self.send, self.throttle)

    def send(self, message: Message, buffers: Sequence[Any], lazy: bool) -> int:
        self.sent.append((message, buffers, lazy))
        return len(self.sent)

    def throttle(self) -> None:
        self.throttled.append((self.traffic.output_full, self.traffic.streams_full))


def test_output_throttles_until_it_is_acknowledged() -> None:
    line = Line()
    line.traffic.print(1, bytes(3 * 1024 * 1024))
    assert line.throttled == []
    line.traffic.print(2, bytes(2 * 1024 * 1024), True)
    assert line.sent[1][0] == Output(2, True)
    assert line.throttled == [(True, False)]
    line.traffic.acknowledged(1)
    assert line.throttled[1:] == [(False, False)]


def test_streams_throttle_by_themselves() -> None:
    line = Line()
    line.traffic.stream(StreamData(1), [bytes(5 * 1024 * 1024), bytes(4 * 1024 * 1024)])
    assert line.throttled == [(False, True)]
    line.traffic.acknowledged(1)
    assert line.throttled[1:] == [(False, False)]
