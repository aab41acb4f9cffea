"""Stripes of a connection, at a real agent: who may open them, and that none is read far ahead of another."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skyward.core.payload import pickling
from skyward.core.protocol.messages import Pong, Run, Welcome
from skyward.core.protocol.wire import Role, Wire
from tests.worker.helpers import SECRET, Owner, wait_for

KEPT: list[socket.socket] = []


@pytest.fixture(autouse=True)
def _kept() -> Iterator[None]:
    """Stripes stay open until the node, which is set up later, has ended: otherwise its connection would be lost."""
    yield
    while KEPT:
        KEPT.pop().close()


def answer(sock: socket.socket, wire: Wire) -> object:
    """Send what is queued, and read a message; None at the end of the stream."""
    for part in wire.data_to_send():
        sock.sendall(part)
    while data := sock.recv(4096):
        for received in wire.receive_data(data):
            return received.message
    return None


def stripe(node: Owner, link: bytes) -> tuple[socket.socket, object]:
    """Open another stream for a connection; returns it and the agent's answer to the proof."""
    sock = node.open()
    sock.settimeout(20)
    KEPT.append(sock)
    wire = Wire(Role.OWNER, secret=SECRET, nonce=os.urandom(16))
    wire.hello(node.session, 0, link)
    assert isinstance(answer(sock, wire), Welcome)
    wire.prove()
    return sock, answer(sock, wire)


def striped(node: Owner, count: int = 2) -> list[socket.socket]:
    """Stripes that the agent has accepted."""
    stripes = []
    for _ in range(count):
        sock, answer = stripe(node, node.wire.name)
        assert isinstance(answer, Pong)
        stripes.append(sock)
    return stripes


def queue(node: Owner, function: Any, *args: Any) -> int:
    """Queue a task in the wire, without sending any of it."""
    task, call = 10**6, pickling.dumps((function, args, {}), "call", large=None)
    node.outbox.post(Run(task, True, None, None, {}), [call.head, *call.buffers], node.wire)
    return task


def test_a_large_message_comes_over_stripes(node: Owner) -> None:
    stripes = striped(node, 3)
    task = queue(node, bytes.count, content := os.urandom(5_000_000), b"x")
    turn = 0
    while node.wire.has_large:
        for part in node.wire.large_to_send(300_000):
            stripes[turn % 3].sendall(part)
        turn += 1
    assert node.result(task) == content.count(b"x")
    assert node.call(pow, 2, 5) == 32


@pytest.mark.slow
def test_a_stripe_that_must_wait_is_not_read_and_continues_later(node: Owner) -> None:
    ahead, behind = striped(node)
    task = queue(node, len, bytes(20_000_000))
    begin = node.wire.large_to_send(1)
    ahead.setblocking(False)
    sent = 0
    rest = memoryview(b"".join(node.wire.large_to_send(30_000_000)))
    # Half a second without room: the agent reads no more of it than what its kernel and one feed hold.
    while select.select([], [ahead], [], 0.5)[1]:
        sent += ahead.send(rest[sent : sent + 65536])
    assert sent < len(rest)
    assert node.call(pow, 2, 5) == 32
    for part in begin:
        behind.sendall(part)
    ahead.setblocking(True)
    ahead.sendall(rest[sent:])
    assert node.result(task) == 20_000_000


@pytest.mark.slow
@pytest.mark.parametrize("whose", ["nobody's", "an earlier connection's"])
def test_a_stripe_of_another_link_is_refused(node: Owner, whose: str) -> None:
    link = b"nobody" if whose == "nobody's" else node.wire.name
    if whose != "nobody's":
        node.cut()
        node.connect()
        assert node.call(pow, 2, 5) == 32
    assert stripe(node, link)[1] is None
    assert node.call(pow, 2, 5) == 32


def test_more_stripes_than_allowed_are_refused(node: Owner) -> None:
    striped(node, 8)
    assert stripe(node, node.wire.name)[1] is None
    assert node.call(pow, 2, 5) == 32


@pytest.mark.parametrize("how", ["end", "garbage"])
def test_the_loss_of_a_stripe_is_the_loss_of_the_link(node: Owner, how: str) -> None:
    first, second = striped(node)
    if how == "end":
        first.close()
    else:
        first.sendall(b"garbage and more of it")
    assert second.recv(1) == b""
    with pytest.raises(ConnectionError):
        node.until(lambda: False, "the end")
    node.connect()
    assert node.call(pow, 2, 5) == 32


@pytest.mark.slow
def test_a_new_connection_ends_the_stripes_of_the_old(node: Owner) -> None:
    (old,) = striped(node, 1)
    node.connect()
    assert old.recv(1) == b""
    (new,) = striped(node, 1)
    assert node.call(pow, 2, 5) == 32
    new.setblocking(False)
    with pytest.raises(BlockingIOError):
        new.recv(1)


def test_descriptors_are_closed(node: Owner) -> None:
    def descriptors() -> int:
        return len(list(Path(f"/proc/{node.pid}/fd").iterdir()))

    before = descriptors()
    for _ in range(5):
        striped(node, 4)
        node.cut()
        node.connect()
    wait_for(lambda: descriptors() == before, "the end of what belonged to old connections")
