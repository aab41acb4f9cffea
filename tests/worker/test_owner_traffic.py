"""What is on its way to the owner: answers that are not acknowledged, output and streams that must not pile up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from skyward.core.protocol.messages import Failed, Message, Output, Returned, StreamData
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


def test_answers_are_known_until_they_are_acknowledged() -> None:
    line = Line()
    traffic = line.traffic
    assert traffic.answer([1, 2], Returned([1, 2])) == 1
    assert traffic.answer([3], Failed(3, 0.0, "crashed", ""), (), True) == 2
    assert line.sent[1][2], "it may wait for others"
    assert traffic.answer([1], Failed(1, 0.0, "crashed", "")) == 3, "it came back and was answered again"
    traffic.acknowledged(2)
    assert [traffic.is_answered(task) for task in (1, 2, 3)] == [True, False, False]
    traffic.acknowledged(3)
    assert not traffic.is_answered(1)


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
