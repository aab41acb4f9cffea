"""The session with an owner, and back-pressure, without a socket."""

from __future__ import annotations

import pytest

from skyward.core.errors import ProtocolError
from skyward.core.messages import Ack, Cancel, Done, Message, Ping, Pong
from skyward.core.wire import Received
from skyward.worker.owner import Quota, Session


class Link:
    """Keeps what is sent; it is its own wire."""

    def __init__(self) -> None:
        self.lag = 0.0
        self.sent: list[tuple[Message, int]] = []
        self.wire = self
        self.closed = False

    def wake(self) -> None:
        pass

    def send(self, message: Message, buffers: object = (), number: int = 0) -> None:
        self.sent.append((message, number))


def test_what_was_not_acknowledged_is_sent_again() -> None:
    session = Session("s")
    assert [session.post(Done(task, 0.0), [b"r"]) for task in (1, 2, 3)] == [1, 2, 3]
    link = Link()
    session.attach(link, 1)  # type: ignore[arg-type]
    assert link.sent == [(Done(2, 0.0), 2), (Done(3, 0.0), 3)]
    with pytest.raises(ProtocolError):
        session.attach(link, 4)  # type: ignore[arg-type]


def test_messages_count_once_and_are_acknowledged() -> None:
    session = Session("s")
    session.link = link = Link()  # type: ignore[assignment]
    for number in range(1, 32):
        assert session.accept(Received(number, Cancel(number), []))
    assert link.sent == []
    assert not session.accept(Received(31, Cancel(31), []))
    assert link.sent == [(Ack(31), 0)]
    session.accept(Received(32, Cancel(32), []))
    session.answer(Ping(1.0))
    assert link.sent[1:] == [(Pong(1.0), 0), (Ack(32), 0)]
    session.answer(Ping(2.0))
    assert link.sent[3:] == [(Pong(2.0), 0)]
    session.accept(Received(33, Cancel(33), [bytearray(2 * 1024 * 1024)]))
    assert link.sent[-1] == (Ack(33), 0)


def test_a_quota_is_full_until_enough_is_acknowledged() -> None:
    quota = Quota(10)
    quota.add(3, 8)
    assert not quota.full
    quota.add(5, 8)
    assert quota.full
    quota.acknowledge(2)
    assert quota.full
    quota.acknowledge(4)
    assert not quota.full
    quota.acknowledge(9)
    assert quota.size == 0
