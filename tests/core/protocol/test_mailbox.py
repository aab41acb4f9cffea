"""What is sent and not acknowledged; `Outbox` and `Inbox` are driven in test_wire.py, with the wire."""

from __future__ import annotations

from skyward.core.protocol.mailbox import Inbox, Quota
from skyward.core.protocol.messages import Ack, Cancel
from skyward.core.protocol.wire import Received


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


def test_an_acknowledgement_is_due_after_many_messages_or_bytes() -> None:
    inbox, handled = Inbox(), []

    def deliver(number: int, size: int = 0) -> None:
        inbox.deliver(Received(number, Cancel(number), [bytearray(size)]), lambda it: handled.append(it.number))

    assert inbox.acknowledgement() is None
    for number in range(1, 32):
        deliver(number)
    assert not inbox.should_acknowledge
    deliver(31)  # a repeated one shows that the peer does not know
    assert inbox.should_acknowledge
    assert inbox.acknowledgement() == Ack(31)
    assert inbox.acknowledgement() is None
    deliver(33, 1 << 20)
    assert inbox.should_acknowledge
    assert inbox.acknowledgement() == Ack(31)  # 32 is still missing
    assert handled == [*range(1, 32), 33]
