"""The session with an owner, and back-pressure, without a socket."""

from __future__ import annotations

import pytest

from skyward.core.errors import ProtocolError
from skyward.core.protocol.messages import Ack, Cancel, Done, Message, Ping, Pong
from skyward.core.protocol.wire import Received
from skyward.worker.owner_session import OwnerSession


class WireSocket:
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
    session = OwnerSession("s")
    assert [session.post(Done(task, 0.0), [b"r"]) for task in (1, 2, 3)] == [1, 2, 3]
    link = WireSocket()
    session.attach(link, 1)  # type: ignore[arg-type]
    assert link.sent == [(Done(2, 0.0), 2), (Done(3, 0.0), 3)]
    with pytest.raises(ProtocolError):
        session.attach(link, 4)  # type: ignore[arg-type]


def test_messages_count_once_and_are_acknowledged() -> None:
    session = OwnerSession("s")
    session.link = link = WireSocket()  # type: ignore[assignment]
    handled: list[int] = []

    def take(number: int, *buffers: bytearray) -> None:
        session.take(Received(number, Cancel(number), [*buffers]), lambda received: handled.append(received.number))

    for number in range(1, 32):
        take(number)
    assert link.sent == []
    take(31)
    assert handled == [*range(1, 32)]
    assert link.sent == [(Ack(31), 0)]
    take(32)
    session.answer(Ping(1.0))
    assert link.sent[1:] == [(Pong(1.0), 0), (Ack(32), 0)]
    session.answer(Ping(2.0))
    assert link.sent[3:] == [(Pong(2.0), 0)]
    take(33, bytearray(2 * 1024 * 1024))
    assert link.sent[-1] == (Ack(33), 0)


def test_what_could_not_be_handled_is_not_acknowledged_and_is_repeated() -> None:
    """Even if later ones have arrived before it."""
    session = OwnerSession("s")
    session.link = link = WireSocket()  # type: ignore[assignment]
    broken = [True]

    def handle(received: Received) -> None:
        if broken[0] and received.number == 2:
            raise KeyError("unexpected")

    for number in (1, 3):
        session.take(Received(number, Cancel(number), []), handle)
    with pytest.raises(KeyError):
        session.take(Received(2, Cancel(2), [bytearray(2 * 1024 * 1024)]), handle)
    assert session.inbox.received == 1
    session.answer(Ping(1.0))
    assert link.sent[1:] == [(Ack(1), 0)]
    broken[0] = False
    session.take(Received(3, Cancel(3), []), handle)
    session.take(Received(2, Cancel(2), [bytearray(2 * 1024 * 1024)]), handle)
    assert link.sent[2:] == [(Ack(3), 0)]
