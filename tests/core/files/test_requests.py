"""Every request has one reply, or fails with its node."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from skyward.core.errors import NodeLost, ProtocolError
from skyward.core.files.requests import RequestRefused, Requests
from skyward.core.protocol.messages import Find, Message, Reply
from tests.core.files.near_node import in_loop


class Near:
    """A session that only notes what it is given."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.sent: list[Message] = []

    def send(self, message: Message, buffers: Any) -> int:
        self.sent.append(message)
        return 1


def ask(requests: Requests, session: Any) -> tuple[int, asyncio.Future[Any]]:
    return requests.ask(session, lambda number: Find(number, b"*"))


@in_loop
async def test_replies_find_their_requests(tmp_path: Path) -> None:
    requests, near = Requests(), Near("n1")
    (first, one), (second, two) = ask(requests, near), ask(requests, near)
    assert near.sent == [Find(first, b"*"), Find(second, b"*")]
    requests.received(near, Reply(second, None), [bytearray(b"2")])  # type: ignore[arg-type]
    requests.received(near, Reply(first, "no"), [])  # type: ignore[arg-type]
    assert await two == b"2"
    with pytest.raises(RequestRefused, match="no"):
        await one


@in_loop
async def test_a_reply_to_nothing_breaks_the_protocol(tmp_path: Path) -> None:
    """Or of another node, or a second one."""
    requests, near = Requests(), Near("n1")
    number, reply = ask(requests, near)
    for session, answer in ((Near("n2"), number), (near, number + 1)):
        with pytest.raises(ProtocolError):
            requests.received(session, Reply(answer, None), [bytearray()])  # type: ignore[arg-type]
    requests.received(near, Reply(number, None), [bytearray()])  # type: ignore[arg-type]
    with pytest.raises(ProtocolError):
        requests.received(near, Reply(number, None), [bytearray()])  # type: ignore[arg-type]
    assert await reply == b""


@in_loop
async def test_what_a_lost_node_was_asked_fails(tmp_path: Path) -> None:
    requests, near, other = Requests(), Near("n1"), Near("n2")
    (_, lost), (number, open_) = ask(requests, near), ask(requests, other)
    requests.node_down("n1", "unplugged")
    with pytest.raises(NodeLost, match="n1 was lost: unplugged"):
        await lost
    requests.received(other, Reply(number, None), [bytearray(b"x")])  # type: ignore[arg-type]
    assert await open_ == b"x"


@in_loop
async def test_a_reply_that_nobody_waits_for_is_dropped(tmp_path: Path) -> None:
    requests, near = Requests(), Near("n1")
    number, reply = ask(requests, near)
    reply.cancel()
    requests.received(near, Reply(number, None), [bytearray()])  # type: ignore[arg-type]
