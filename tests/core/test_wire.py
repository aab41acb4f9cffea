"""The wire carries every message however it is cut, and meets garbage with its own error and bounded memory only."""

from __future__ import annotations

import contextlib
import mmap
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyward.core.errors import ProtocolError
from skyward.core.mailbox import Inbox, Outbox
from skyward.core.messages import (
    MESSAGES,
    Ack,
    Bye,
    Cancel,
    Done,
    Failed,
    Hello,
    Output,
    Ping,
    Pong,
    Ready,
    Run,
    StreamOpen,
)
from skyward.core.wire import TRANSITIONS, Limits, Received, Role, State, Wire

OWNER_MESSAGES = st.one_of(
    st.builds(Ping, st.floats(allow_nan=False)),
    st.builds(Cancel, st.integers(0, 2**40)),
    st.builds(
        Run,
        st.integers(0, 2**40),
        st.booleans(),
        st.none() | st.floats(0, 1e9),
        st.none() | st.integers(1, 64),
        st.dictionaries(st.integers(0, 5), st.binary(max_size=24), max_size=3),
    ),
)
BUFFERS = st.lists(st.binary(max_size=300) | st.integers(32_000, 90_000).map(bytes), max_size=4)


def opened(limits: Limits | None = None) -> tuple[Wire, Wire]:
    """An owner and a worker that have greeted each other."""
    owner = Wire(Role.OWNER, secret=b"s", nonce=b"owner", limits=limits)
    worker = Wire(Role.WORKER, secret=b"s", nonce=b"worker", limits=limits)
    owner.hello("session", 0)
    carry(owner, worker)
    worker.welcome(0, {"cores": 2})
    carry(worker, owner)
    owner.prove()
    carry(owner, worker)
    assert owner.is_open
    assert worker.is_open
    return owner, worker


def carry(source: Wire, target: Wire) -> list[Received]:
    """Move everything from one end to the other."""
    got = []
    while source.has_data:
        for chunk in source.data_to_send():
            got += target.receive_data(chunk)
    return got


@given(messages=st.lists(st.tuples(OWNER_MESSAGES, BUFFERS), max_size=8), data=st.data())
@settings(deadline=None)
def test_any_chunking_gives_every_message_once_and_whole(messages: Any, data: st.DataObject) -> None:
    """Wherever the stream is cut, all messages arrive once with their buffers; small ones in their order."""
    owner, worker = opened(Limits(piece=20_000))
    for number, (message, buffers) in enumerate(messages, 1):
        owner.send(message, buffers, number)
    stream = b"".join(bytes(chunk) for _ in range(100) for chunk in owner.data_to_send(30_000))
    assert not owner.has_data
    got: list[Received] = []
    while stream:
        cut = data.draw(st.integers(1, min(len(stream), 70_000)))
        got += worker.receive_data(stream[:cut])
        stream = stream[cut:]
    assert sorted(received.number for received in got) == list(range(1, len(messages) + 1))
    for received in got:
        message, buffers = messages[received.number - 1]
        assert received.message == message
        assert [bytes(memoryview(buffer)) for buffer in received.buffers] == buffers
        assert all(isinstance(buffer, (bytearray, mmap.mmap)) for buffer in received.buffers)
    small = [r.number for r in got if sum(map(len, r.buffers)) <= 32 * 1024]
    assert small == sorted(small)


@given(garbage=st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=20), greeted=st.booleans())
@settings(max_examples=300, deadline=None)
def test_garbage_raises_only_a_protocol_error(garbage: list[bytes], greeted: bool) -> None:
    """Whatever bytes come, nothing but ProtocolError comes out, and after it the wire takes nothing more."""
    worker = opened()[1] if greeted else Wire(Role.WORKER, secret=b"s", nonce=b"w")
    try:
        for chunk in garbage:
            worker.receive_data(chunk)
    except ProtocolError:
        with pytest.raises(ProtocolError):
            worker.receive_data(b"x")


@given(
    messages=st.lists(st.tuples(OWNER_MESSAGES, BUFFERS), min_size=1, max_size=5),
    where=st.integers(0, 10**6),
    change=st.integers(1, 255),
)
@settings(max_examples=300, deadline=None)
def test_one_wrong_byte_raises_only_a_protocol_error(messages: Any, where: int, change: int) -> None:
    """A flipped byte in a good stream is a ProtocolError, or passes as another message or content; never a crash."""
    owner, worker = opened()
    for number, (message, buffers) in enumerate(messages, 1):
        owner.send(message, buffers, number)
    stream = bytearray().join(bytes(chunk) for _ in range(20) for chunk in owner.data_to_send())
    stream[where % len(stream)] ^= change
    with contextlib.suppress(ProtocolError):
        worker.receive_data(stream)


def _piece(kind: int, number: int, body: bytes, length: int | None = None) -> bytes:
    return struct.pack("!BII", kind, number, len(body) if length is None else length) + body


def _prelude(envelope: bytes, *sizes: int) -> bytes:
    return struct.pack("!IH", len(envelope), len(sizes)) + struct.pack(f"!{len(sizes)}Q", *sizes) + envelope


def _envelope(message: Any) -> bytes:
    import msgpack

    return bytes(msgpack.packb((MESSAGES.index(type(message)), 0, *message)))


def test_sizes_are_refused_before_memory_is_taken() -> None:
    """A promise of more than the limits is refused, one by one and summed up."""
    limits = Limits(message=1000, open=1500)
    run = _envelope(Run(1, True, None, None, {}))
    with pytest.raises(ProtocolError, match="over the limit"):
        opened(limits)[1].receive_data(_piece(1, 1, _prelude(run, 1001)))
    worker = opened(limits)[1]
    worker.receive_data(_piece(1, 1, _prelude(run, 1000)))
    with pytest.raises(ProtocolError, match="over the limit"):
        worker.receive_data(_piece(1, 2, _prelude(run, 600)))
    worker = opened(Limits(message=10**6, open=10**9))[1]
    with pytest.raises(ProtocolError, match="at a time"):
        for number in range(100):
            worker.receive_data(_piece(1, number, _prelude(run, 1)))
    with pytest.raises(ProtocolError):
        opened()[1].receive_data(_piece(0, 0, b"", length=2**31))


@pytest.mark.parametrize(
    "stream",
    [
        _piece(2, 7, b"data for nobody"),
        _piece(9, 0, b"no such kind"),
        _piece(0, 0, b"\x00"),
        _piece(0, 0, _prelude(b"\xc1")),
        _piece(0, 0, _prelude(_envelope(Ping(1.0)), 5)),
        _piece(0, 0, _prelude(b"\x93\xcd\xff\xff\x00\x01")),
        _piece(0, 0, _prelude(_envelope(Done(1, 1.0)))),
        _piece(1, 1, _prelude(_envelope(Ping(1.0)))),
    ],
)
def test_forbidden_pieces_are_protocol_errors(stream: bytes) -> None:
    """Data without an opening, unknown kinds, cut envelopes, wrong sizes, messages the peer may not send."""
    with pytest.raises(ProtocolError):
        opened()[1].receive_data(stream)


@given(
    fields=st.lists(
        st.none() | st.integers() | st.text(max_size=5) | st.binary(max_size=5) | st.booleans(), max_size=6
    ),
    code=st.integers(-2, 40),
)
def test_envelopes_of_wrong_fields_are_protocol_errors(fields: list[Any], code: int) -> None:
    """An envelope is a message of the table with fields of the declared types, or an error."""
    import msgpack

    try:
        envelope = msgpack.packb([code, 0, *fields])
    except OverflowError:
        return
    try:
        (received,) = opened()[1].receive_data(_piece(0, 0, _prelude(envelope)))
    except ProtocolError:
        return
    assert type(received.message) in TRANSITIONS[Role.OWNER][State.OPEN]


def test_no_word_before_the_proof() -> None:
    """Before both ends have proved the secret, nothing but the greeting may be said or heard."""
    owner = Wire(Role.OWNER, secret=b"s", nonce=b"o")
    worker = Wire(Role.WORKER, secret=b"s", nonce=b"w")
    with pytest.raises(ProtocolError, match="can't send Ping"):
        owner.send(Ping(1.0))
    with pytest.raises(ProtocolError):
        worker.welcome(0, {})
    owner.hello("x", 0)
    carry(owner, worker)
    worker.welcome(0, {})
    with pytest.raises(ProtocolError):
        worker.send(Pong(1.0))
    with pytest.raises(ProtocolError):
        owner.send(Ping(1.0))


@pytest.mark.parametrize("wrong", ["owner", "worker"])
def test_a_wrong_secret_is_refused_by_the_other_end(wrong: str) -> None:
    """Neither end accepts one that does not know the secret."""
    owner = Wire(Role.OWNER, secret=b"wrong" if wrong == "owner" else b"s", nonce=b"o")
    worker = Wire(Role.WORKER, secret=b"wrong" if wrong == "worker" else b"s", nonce=b"w")
    owner.hello("x", 0)
    carry(owner, worker)
    worker.welcome(0, {})
    with pytest.raises(ProtocolError, match="secret"):
        carry(worker, owner)


def test_a_proof_can_not_be_reflected_or_replayed() -> None:
    """The worker's own proof, or one for another nonce, does not serve as the owner's."""
    worker = Wire(Role.WORKER, secret=b"s", nonce=b"w")
    worker.receive_data(_piece(0, 0, _prelude(_envelope(Hello(1, "x", b"w", 0)))))
    worker.welcome(0, {})
    (piece,) = worker.data_to_send()
    import msgpack

    proof = msgpack.unpackb(bytes(piece)[9 + 6 :])[4]
    from skyward.core.messages import Proof

    with pytest.raises(ProtocolError, match="secret"):
        worker.receive_data(_piece(0, 0, _prelude(_envelope(Proof(proof)))))


def test_a_small_message_overtakes_a_large_one() -> None:
    """A heartbeat goes out between two pieces of a gigabyte."""
    owner, worker = opened()
    owner.send(Run(1, True, None, None, {}), [bytes(10_000_000)], 1)
    for chunk in owner.data_to_send(500_000):
        assert worker.receive_data(chunk) == []
    owner.send(Ping(3.0))
    first = carry(owner, worker)
    assert [type(received.message) for received in first] == [Ping, Run]


def test_nothing_after_goodbye() -> None:
    """Whoever has said goodbye says nothing more; the other end may still finish."""
    owner, worker = opened()
    owner.send(Bye())
    with pytest.raises(ProtocolError):
        owner.send(Ping(1.0))
    carry(owner, worker)
    worker.send(Output(1), [b"last words\n"])
    assert [type(received.message) for received in carry(worker, owner)] == [Output]


@given(role=st.sampled_from(Role), data=st.data())
def test_what_the_table_forbids_is_refused_on_both_ends(role: Role, data: st.DataObject) -> None:
    """In OPEN, each end may send exactly what the table says."""
    kind = data.draw(st.sampled_from(MESSAGES))
    samples: dict[Any, Any] = {
        Ready: Ready(1, None),
        Failed: Failed(1, 0.0, "raised", ""),
        StreamOpen: StreamOpen(1, "/x"),
        Ack: Ack(0),
    }
    if kind not in samples:
        return
    owner, worker = opened()
    wire = owner if role is Role.OWNER else worker
    if kind in TRANSITIONS[role][State.OPEN]:
        wire.send(samples[kind])
    else:
        with pytest.raises(ProtocolError):
            wire.send(samples[kind])


@given(
    plan=st.lists(st.sampled_from(["post", "break", "carry"]), max_size=60),
    data=st.data(),
)
def test_messages_survive_broken_links_once_each(plan: list[str], data: st.DataObject) -> None:
    """With an outbox and an inbox, every message is accepted exactly once, whatever the links lose."""
    outbox, inbox = Outbox(), Inbox()
    line: list[int] = []
    accepted: list[int] = []
    posted = 0
    for step in [*plan, "break", "carry"]:
        if step == "post":
            posted += 1
            line.append(outbox.post(Ping(float(posted)), [b"x"]).number)
        elif step == "break":  # everything on the line is lost; the peer says what it has
            outbox.acknowledge(inbox.received)
            line = [kept.number for kept in outbox.kept()]
        else:
            some = line if step == "carry" else []
            data.draw(st.randoms()).shuffle(some)  # large messages are overtaken
            accepted += [number for number in some if inbox.accept(number)]
            line = []
    assert sorted(accepted) == list(range(1, posted + 1))
    outbox.acknowledge(inbox.received)
    assert outbox.kept() == []
    assert outbox.size == 0


def test_an_acknowledgement_of_the_unsent_is_a_protocol_error() -> None:
    """A peer that claims more than it was sent is broken."""
    with pytest.raises(ProtocolError):
        Outbox().acknowledge(1)
