"""What is sent and not acknowledged; `Outbox` and `Inbox` are driven in test_wire.py, with the wire."""

from __future__ import annotations

from skyward.core.protocol.mailbox import Quota


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
