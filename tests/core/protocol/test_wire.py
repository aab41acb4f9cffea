"""The wire carries every message however it is cut, and meets garbage with its own error and bounded memory only."""

from __future__ import annotations

import contextlib
import gc
import mmap
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from skyward.core.errors import ProtocolError
from skyward.core.protocol.compression import Packer, RateMeter, Sample
from skyward.core.protocol.mailbox import Inbox, Outbox
from skyward.core.protocol.messages import (
    MESSAGES,
    ORDERED,
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
    Setup,
    StreamOpen,
)
from skyward.core.protocol.states import TRANSITIONS
from skyward.core.protocol.transfers import Outgoing
from skyward.core.protocol.wire import VERSION, WHOLE, Lane, Received, Role, SizeLimits, State, Wire
from tests.examples import examples

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
        code=st.integers(0, 2**40),
        since=st.integers(0, 2**40),
    ),
)
BUFFERS = st.lists(st.binary(max_size=300) | st.integers(32_000, 90_000).map(bytes), max_size=4)


def opened(limits: SizeLimits | None = None) -> tuple[Wire, Wire]:
    """An owner and an agent that have greeted each other."""
    owner = Wire(Role.OWNER, secret=b"s", nonce=b"owner", limits=limits)
    agent = Wire(Role.AGENT, secret=b"s", nonce=b"agent", limits=limits)
    owner.hello("session", 0)
    carry(owner, agent)
    agent.welcome(0, {"cores": 2})
    carry(agent, owner)
    owner.prove()
    carry(owner, agent)
    assert owner.is_open
    assert agent.is_open
    return owner, agent


def carry(source: Wire, target: Wire) -> list[Received]:
    """Move everything from one end to the other."""
    got = []
    while source.has_data:
        for chunk in source.data_to_send():
            got += target.receive_data(chunk)
    return got


@given(messages=st.lists(st.tuples(OWNER_MESSAGES, BUFFERS), max_size=8), data=st.data())
def test_any_chunking_gives_every_message_once_and_whole(messages: Any, data: st.DataObject) -> None:
    """Wherever the stream is cut, all messages arrive once with their buffers; small ones in their order."""
    owner, agent = opened(SizeLimits(piece=20_000))
    for number, (message, buffers) in enumerate(messages, 1):
        owner.send(message, buffers, number)
    stream = b"".join(bytes(chunk) for _ in range(100) for chunk in owner.data_to_send(30_000))
    assert not owner.has_data
    got: list[Received] = []
    while stream:
        cut = data.draw(st.integers(1, min(len(stream), 70_000)))
        got += agent.receive_data(stream[:cut])
        stream = stream[cut:]
    assert sorted(received.number for received in got) == list(range(1, len(messages) + 1))
    for received in got:
        message, buffers = messages[received.number - 1]
        assert received.message == message
        assert [bytes(memoryview(buffer)) for buffer in received.buffers] == buffers
        assert all(isinstance(buffer, (bytearray, mmap.mmap)) for buffer in received.buffers)
    small = [r.number for r in got if sum(map(len, r.buffers)) <= 32 * 1024]
    assert small == sorted(small)


@given(name=st.text(st.characters(codec=None)), large=st.booleans())
@example(name="caf\udce9", large=True)
def test_names_that_are_not_utf8_travel_as_they_are(name: str, large: bool) -> None:
    owner, agent = opened()
    message = Setup(name, 1, True, None, {name: name}, [name, "x" * 3000 * large], None, [], [], 60.0)
    owner.send(message, (), 1)
    assert [received.message for received in carry(owner, agent)] == [message]


@given(garbage=st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=20), greeted=st.booleans())
@examples(300)
def test_garbage_raises_only_a_protocol_error(garbage: list[bytes], greeted: bool) -> None:
    """Whatever bytes come, nothing but ProtocolError comes out, and after it the wire takes nothing more."""
    agent = opened()[1] if greeted else Wire(Role.AGENT, secret=b"s", nonce=b"w")
    try:
        for chunk in garbage:
            agent.receive_data(chunk)
    except ProtocolError:
        with pytest.raises(ProtocolError):
            agent.receive_data(b"x")


@given(
    messages=st.lists(st.tuples(OWNER_MESSAGES, BUFFERS), min_size=1, max_size=5),
    where=st.integers(0, 10**6),
    change=st.integers(1, 255),
)
@examples(300)
def test_one_wrong_byte_raises_only_a_protocol_error(messages: Any, where: int, change: int) -> None:
    """A flipped byte in a good stream is a ProtocolError, or passes as another message or content; never a crash."""
    owner, agent = opened()
    for number, (message, buffers) in enumerate(messages, 1):
        owner.send(message, buffers, number)
    stream = bytearray().join(bytes(chunk) for _ in range(20) for chunk in owner.data_to_send())
    stream[where % len(stream)] ^= change
    with contextlib.suppress(ProtocolError):
        agent.receive_data(stream)


def _piece(kind: int, number: int, body: bytes, length: int | None = None) -> bytes:
    return struct.pack("!BII", kind, number, len(body) if length is None else length) + body


def _prelude(envelope: bytes, *sizes: int) -> bytes:
    return struct.pack("!IH", len(envelope), len(sizes)) + struct.pack(f"!{len(sizes)}Q", *sizes) + envelope


def _envelope(message: Any) -> bytes:
    import msgpack

    return bytes(msgpack.packb((MESSAGES.index(type(message)), 0, *message)))


def test_sizes_are_refused_before_memory_is_taken() -> None:
    """A promise of more than the limits is refused, one by one and summed up."""
    limits = SizeLimits(message=1000, open=1500)
    run = _envelope(Run(1, True, None, None, {}))
    with pytest.raises(ProtocolError, match="over the limit"):
        opened(limits)[1].receive_data(_piece(1, 1, _prelude(run, 1001)))
    agent = opened(limits)[1]
    agent.receive_data(_piece(1, 1, _prelude(run, 1000)))
    with pytest.raises(ProtocolError, match="over the limit"):
        agent.receive_data(_piece(1, 2, _prelude(run, 600)))
    agent = opened(SizeLimits(message=10**6, open=10**9))[1]
    with pytest.raises(ProtocolError, match="at once"):
        for number in range(1000):
            agent.receive_data(_piece(1, number, _prelude(run, 1)))
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


# --- stripes ---------------------------------------------------------------------------------------------------------


class AlwaysPacks(Packer):
    """Compresses whatever gets smaller."""

    def __init__(self) -> None:
        rate_meter = RateMeter()
        rate_meter.rate = 1.0
        super().__init__(rate_meter, lambda: 0.0)

    def pack(self, message: Outgoing, body: memoryview) -> bytes | None:
        """As if it paid."""
        message.sample = Sample(2.0, 1e9)
        return super().pack(message, body)


class FailsAt(AlwaysPacks):
    """Compresses some pieces; then it has no memory."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def pack(self, message: Outgoing, body: memoryview) -> bytes | None:
        """One more piece, perhaps."""
        self.left -= 1
        if self.left < 0:
            raise MemoryError("no more")
        return super().pack(message, body)


@pytest.mark.parametrize("left", [0, 1, 4])
def test_where_packing_fails_the_message_goes_as_it_is(left: int) -> None:
    """Not a piece is lost, and it is said once."""
    owner, agent = opened(SizeLimits(piece=20_000))
    failures: list[Exception] = []
    owner.packer, owner.packing_failed = FailsAt(left), failures.append
    owner.send(Cancel(1), [bytes(range(250)) * 400, b"ab" * 30_000], 1)
    (received,) = carry(owner, agent)
    assert received == Received(1, Cancel(1), [bytearray(range(250)) * 400, bytearray(b"ab" * 30_000)])
    assert [str(failure) for failure in failures] == ["no more"]
    assert not owner.large


@given(messages=st.lists(st.tuples(OWNER_MESSAGES, BUFFERS), max_size=8), packed=st.booleans(), data=st.data())
def test_any_interleaving_of_stripes_gives_every_message_once_and_whole(
    messages: Any, packed: bool, data: st.DataObject
) -> None:
    """Whichever stripe takes a piece, whichever is read, wherever it is cut; and never do all streams wait."""
    owner, agent = opened(SizeLimits(piece=20_000))
    if packed:
        owner.packer = AlwaysPacks()
    lanes: list[Lane | None] = [None, *(agent.stripe() for _ in range(3))]
    streams = [bytearray() for _ in lanes]
    got: list[Received] = []
    unsent = list(enumerate(messages, 1))
    while unsent or owner.has_data or any(streams):
        steps = ["send"] * bool(unsent) + ["write"] * owner.has_data + ["read"] * any(streams)
        step = data.draw(st.sampled_from(steps))
        if step == "send":
            number, (message, buffers) = unsent.pop(0)
            owner.send(message, buffers, number)
        elif step == "write":
            streams[0] += b"".join(owner.small_to_send())
            to = data.draw(st.integers(1, 3))
            streams[to] += b"".join(bytes(part) for part in owner.large_to_send(30_000))
        else:
            ready = [i for i, lane in enumerate(lanes) if streams[i] and not (lane and lane.waits)]
            assert ready, "all streams wait for each other"
            at = data.draw(st.sampled_from(ready))
            cut = data.draw(st.integers(1, min(len(streams[at]), 70_000)))
            got += agent.receive_data(streams[at][:cut], lanes[at])
            del streams[at][:cut]
    assert sorted(received.number for received in got) == list(range(1, len(messages) + 1))
    for received in got:
        message, buffers = messages[received.number - 1]
        assert received.message == message
        assert [bytes(memoryview(buffer)) for buffer in received.buffers] == buffers


def test_a_message_that_began_on_the_first_stream_may_end_on_a_stripe() -> None:
    """Stripes are opened while a large message is under way."""
    owner, agent = opened()
    content = bytes(range(256)) * 4000
    owner.send(Run(1, True, None, None, {}), [b"", content[:300_000], b"", content[300_000:], b""], 1)
    first = [bytes(part) for part in owner.data_to_send(300_000)]
    lane = agent.stripe()
    assert agent.receive_data(b"".join(bytes(part) for part in owner.large_to_send()), lane) == []
    assert lane.waits
    (received,) = agent.receive_data(b"".join(first))
    assert not lane.waits
    assert [len(buffer) for buffer in received.buffers] == [0, 300_000, 0, 724_000, 0]
    assert b"".join(bytes(memoryview(buffer)) for buffer in received.buffers) == content


@given(
    garbage=st.lists(
        st.tuples(
            st.integers(0, 2),
            st.binary(min_size=1, max_size=60)
            | st.builds(
                lambda kind, number, length, at, body: struct.pack("!BIIQ", kind, number, length, at) + body,
                st.integers(0, 4),
                st.integers(0, 2),
                st.integers(0, 3000),
                st.integers(0, 3000) | st.integers(0, 2**64 - 1),
                st.binary(max_size=60),
            ),
        ),
        max_size=20,
    )
)
@examples(300)
def test_garbage_on_stripes_raises_only_a_protocol_error(garbage: list[tuple[int, bytes]]) -> None:
    """Also while a large message is arriving, whose pieces the garbage may hit."""
    agent = opened()[1]
    agent.receive_data(_piece(1, 1, _prelude(_envelope(Run(1, True, None, None, {})), 1000, 2000)))
    lanes = [None, agent.stripe(), agent.stripe()]
    with contextlib.suppress(ProtocolError):
        for at, chunk in garbage:
            lane = lanes[at]
            if lane is None or not lane.waits:
                agent.receive_data(chunk, lane)


def _packed(number: int, at: int, body: bytes) -> bytes:
    body = zstandard.ZstdCompressor().compress(body)
    return struct.pack("!BIIQ", 3, number, len(body), at) + body


def _data(number: int, at: int, body: bytes) -> bytes:
    return struct.pack("!BIIQ", 2, number, len(body), at) + body


@pytest.mark.parametrize(
    "pieces",
    [
        [_data(1, 0, bytes(600)), _data(1, 599, bytes(2))],
        [_data(1, 600, bytes(400)), _data(1, 0, bytes(601))],
        [_data(1, 999, bytes(2))],
        [_data(1, 2**64 - 1, bytes(2))],
        [_data(1, 5, b"")],
        [_piece(0, 0, _prelude(_envelope(Ping(1.0))))],
        [_data(7, 0, b"x"), b"more"],
        [_packed(1, 0, bytes(1001))],
        [_packed(1, 400, bytes(601))],
        [_packed(1, 0, bytes(600)), _packed(1, 599, bytes(2))],
        [_packed(1, 0, bytes(600))[:-1] + b"?"],
        [_packed(1, 0, bytes(600)) + b"x", bytes(60)],
        [struct.pack("!BIIQ", 3, 1, 2**20, 0)],
    ],
    ids=[
        "twice",
        "overlapping",
        "too long",
        "too far",
        "empty",
        "a small message",
        "while it waits",
        "packed: too much",
        "packed: too long",
        "packed: overlapping",
        "packed: spoilt",
        "packed: then garbage",
        "packed: too large",
    ],
)
def test_forbidden_pieces_on_stripes_are_protocol_errors(pieces: list[bytes]) -> None:
    """No byte of a message may come twice, and a stripe that waits holds no more than one feed."""
    agent = opened()[1]
    lane = agent.stripe()
    agent.receive_data(_piece(1, 1, _prelude(_envelope(Run(1, True, None, None, {})), 1000)))
    with pytest.raises(ProtocolError):
        for piece in pieces:
            agent.receive_data(piece, lane)


def test_memory_for_stripes_is_bounded() -> None:
    """Few stripes, few gaps in a message, and no large message with preludes without end."""
    agent = opened()[1]
    for _ in range(8):
        lane = agent.stripe()
    with pytest.raises(ProtocolError, match="stripes"):
        agent.stripe()
    with pytest.raises(ProtocolError, match="stripes"):
        Wire(Role.AGENT).stripe()
    agent.receive_data(_piece(1, 1, _prelude(_envelope(Run(1, True, None, None, {})), 10**6)))
    with pytest.raises(ProtocolError, match="has no gap"):
        for at in range(0, 10**6, 2):
            agent.receive_data(_data(1, at, b"x"), lane)
    agent = opened(SizeLimits(prelude=20_000))[1]
    with pytest.raises(ProtocolError, match="preludes that are too large"):
        for number in range(20):
            agent.receive_data(_piece(1, number, _prelude(_envelope(Run(1, True, None, None, {0: bytes(19_000)})), 1)))


def test_with_stripes_the_first_stream_has_small_messages_only() -> None:
    """So that none of them waits for more than what was queued before there were stripes."""
    owner, agent = opened()
    owner.send(Run(1, True, None, None, {}), [bytes(10_000_000)], 1)
    owner.send(Ping(3.0))
    small = owner.small_to_send()
    assert [type(r.message) for part in small for r in agent.receive_data(part)] == [Ping]
    assert not owner.has_small
    assert owner.large == 10_000_000
    parts = owner.large_to_send(1_000_000)
    assert 1_000_000 <= sum(map(len, parts)) < 1_300_000
    assert owner.large == 10_000_000 - sum(len(part) for part in parts[2::2])


def test_no_word_before_the_proof() -> None:
    """Before both ends have proved the secret, nothing but the greeting may be said or heard."""
    owner = Wire(Role.OWNER, secret=b"s", nonce=b"o")
    agent = Wire(Role.AGENT, secret=b"s", nonce=b"w")
    with pytest.raises(ProtocolError, match="can't send Ping"):
        owner.send(Ping(1.0))
    with pytest.raises(ProtocolError):
        agent.welcome(0, {})
    owner.hello("x", 0)
    carry(owner, agent)
    agent.welcome(0, {})
    with pytest.raises(ProtocolError):
        agent.send(Pong(1.0))
    with pytest.raises(ProtocolError):
        owner.send(Ping(1.0))


@pytest.mark.parametrize("wrong", ["owner", "agent"])
def test_a_wrong_secret_is_refused_by_the_other_end(wrong: str) -> None:
    """Neither end accepts one that does not know the secret."""
    owner = Wire(Role.OWNER, secret=b"wrong" if wrong == "owner" else b"s", nonce=b"o")
    agent = Wire(Role.AGENT, secret=b"wrong" if wrong == "agent" else b"s", nonce=b"w")
    owner.hello("x", 0)
    carry(owner, agent)
    agent.welcome(0, {})
    with pytest.raises(ProtocolError, match="secret"):
        carry(agent, owner)


def test_a_proof_can_not_be_reflected_or_replayed() -> None:
    """The agent's own proof, or one for another nonce, does not serve as the owner's."""
    agent = Wire(Role.AGENT, secret=b"s", nonce=b"w")
    agent.receive_data(_piece(0, 0, _prelude(_envelope(Hello(VERSION, "x", b"w", 0)))))
    agent.welcome(0, {})
    (piece,) = agent.data_to_send()
    import msgpack

    proof = msgpack.unpackb(bytes(piece)[9 + 6 :])[4]
    from skyward.core.protocol.messages import Proof

    with pytest.raises(ProtocolError, match="secret"):
        agent.receive_data(_piece(0, 0, _prelude(_envelope(Proof(proof)))))


def test_a_small_message_overtakes_a_large_one() -> None:
    """A heartbeat goes out between two pieces of a gigabyte."""
    owner, agent = opened()
    owner.send(Run(1, True, None, None, {}), [bytes(10_000_000)], 1)
    for chunk in owner.data_to_send(500_000):
        assert agent.receive_data(chunk) == []
    owner.send(Ping(3.0))
    first = carry(owner, agent)
    assert [type(received.message) for received in first] == [Ping, Run]


@given(sizes=st.lists(st.sampled_from([0, 10, WHOLE, WHOLE + 1, 50_000, 700_000]), max_size=12), data=st.data())
def test_a_wire_that_is_first_in_first_out_keeps_all_in_order(sizes: list[int], data: st.DataObject) -> None:
    """Whatever the sizes, whenever it is written and however it is cut, messages arrive as they were sent."""
    source, target = Wire.opened(Role.OWNER, fifo=True), Wire.opened(Role.AGENT)
    got: list[Received] = []
    for task, size in enumerate(sizes):
        source.send(Run(task, True, None, None, {}), [bytes([task]) * size])
        for _ in range(data.draw(st.integers(0, 2))):
            stream = b"".join(source.data_to_send(100_000))
            cut = data.draw(st.integers(0, len(stream)))
            got += [*target.receive_data(stream[:cut]), *target.receive_data(stream[cut:])]
    got += carry(source, target)
    assert not source.has_data
    assert source.large == 0
    assert [received.message.task for received in got if isinstance(received.message, Run)] == list(range(len(sizes)))
    assert [bytes(received.buffers[0]) for received in got] == [bytes([n]) * size for n, size in enumerate(sizes)]


def test_what_must_keep_its_order_is_refused_when_it_is_large() -> None:
    """Another message could overtake it; nothing is queued, and the wire goes on."""
    owner, agent = opened()
    for kind in ORDERED:
        message = kind(1)
        sender = agent if kind is Output else owner
        sender.send(message, [bytes(WHOLE)])
        with pytest.raises(ProtocolError, match="overtaken"):
            sender.send(message, [bytes(WHOLE), b"x"])
    assert len(carry(agent, owner)) == 1
    assert len(carry(owner, agent)) == len(ORDERED) - 1


def test_a_goodbye_ends_what_was_being_sent() -> None:
    """The rest of it, which no goodbye allows, would make the other end drop the link, and with it the goodbye."""
    owner, agent = opened()
    for number in (1, 2, 3):
        owner.send(Run(number, True, None, None, {}), [bytes(1_000_000)], number)
    stream = b"".join(bytes(part) for part in owner.data_to_send(300_000))
    owner.send(Bye())
    stream += b"".join(bytes(part) for part in owner.data_to_send())
    assert [received.message for received in agent.receive_data(stream)] == [Bye()]
    assert not owner.has_data
    assert owner.large == 0


def test_nothing_after_goodbye() -> None:
    """Whoever has said goodbye says nothing more; the other end may still finish."""
    owner, agent = opened()
    owner.send(Bye())
    with pytest.raises(ProtocolError):
        owner.send(Ping(1.0))
    carry(owner, agent)
    agent.send(Output(1), [b"last words\n"])
    assert [type(received.message) for received in carry(agent, owner)] == [Output]


@given(sizes=st.lists(st.integers(0, 300_000), min_size=1, max_size=4), data=st.data())
def test_all_that_was_on_its_way_when_we_said_goodbye_arrives(sizes: list[int], data: st.DataObject) -> None:
    """Large messages too, wherever between their pieces the goodbye was said."""
    owner, agent = opened()
    for number, size in enumerate(sizes, 1):
        agent.send(Done(number, 0.0), [bytes(size)])
    pieces = [bytes(piece) for buffers in iter(lambda: agent.data_to_send(20_000), []) for piece in buffers]
    goodbye = data.draw(st.integers(0, len(pieces)), "the piece before which we say goodbye")
    heard = []
    for number, piece in enumerate(pieces):
        if number == goodbye:
            owner.send(Bye())
        heard += owner.receive_data(piece)
    assert sorted(sum(map(len, received.buffers)) for received in heard) == sorted(sizes)


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
    owner, agent = opened()
    wire = owner if role is Role.OWNER else agent
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
            line.append(outbox.post(Ping(float(posted)), [b"x"]))
        elif step == "break":  # everything on the line is lost; the peer says what it has
            outbox.acknowledge(inbox.received)
            line = [*range(outbox.acknowledged + 1, outbox.last + 1)]
        else:
            some = line if step == "carry" else []
            data.draw(st.randoms()).shuffle(some)  # large messages are overtaken
            accepted += [number for number in some if inbox.accept(number)]
            line = []
    assert sorted(accepted) == list(range(1, posted + 1))
    outbox.acknowledge(inbox.received)
    assert outbox.acknowledged == outbox.last == posted
    assert outbox.size == 0


@given(messages=st.lists(st.tuples(OWNER_MESSAGES, BUFFERS), max_size=8), sent=st.integers(0, 8))
def test_a_later_link_brings_what_an_earlier_one_lost(messages: Any, sent: int) -> None:
    """Whether a message had become a piece, was large, or was never sent at all."""
    outbox, (lost, _) = Outbox(), opened()
    for at, (message, buffers) in enumerate(messages):
        outbox.post(message, buffers, lost if at < sent else None)
    owner, agent = opened()
    outbox.repeat(owner)
    got = sorted(carry(owner, agent), key=lambda received: received.number)
    assert [(it.number, it.message) for it in got] == [(at, message) for at, (message, _) in enumerate(messages, 1)]
    assert [[bytes(part) for part in it.buffers] for it in got] == [list(buffers) for _, buffers in messages]


def test_what_the_wire_does_not_take_is_not_kept() -> None:
    """It has no number either, for the peer would wait for that."""
    outbox, (owner, _) = Outbox(), opened(SizeLimits(message=10))
    with pytest.raises(ProtocolError):
        outbox.post(Ping(1.0), [b"x" * 11], owner)
    assert outbox.post(Ping(1.0), [], owner) == 1
    assert outbox.last == 1


def test_a_piece_goes_on_open_links_only() -> None:
    """What was said in one conversation is not said before the next has been opened."""
    owner, _ = opened()
    piece = owner.send(Ping(1.0))
    assert piece is not None
    with pytest.raises(ProtocolError):
        Wire(Role.OWNER).send_again(piece)


def test_an_acknowledgement_of_the_unsent_is_a_protocol_error() -> None:
    """A peer that claims more than it was sent is broken."""
    with pytest.raises(ProtocolError):
        Outbox().acknowledge(1)


# --- memory ----------------------------------------------------------------------------------------------------------

SIZES = st.sampled_from([0, 1, 16 * 1024, 2**20 - 1, 2**20, 2**21, 2**24 + 1, 2**32])
COUNTS = st.sampled_from([1, 2, 100, 5_000, 60_000])
"""What a peer may say that it will send; it then sends a byte here and there."""


@st.composite
def few_bytes_of_much(draw: st.DrawFn) -> list[bytes]:
    """Large messages that begin, and pieces of one to three bytes at the beginnings of their buffers."""
    frames = []
    for number in range(1, draw(st.integers(1, 3))):
        sizes = [draw(SIZES)] * draw(COUNTS)
        frames.append(_piece(1, number, _prelude(_envelope(Run(1, True, None, None, {})), *sizes)))
        step = draw(st.sampled_from([sizes[0], 2**20, 2**21, 10_000])) or 1
        for index in range(draw(st.sampled_from([1, 3, 400]))):
            frames.append(_data(number, index * step, b"x" * draw(st.integers(1, 3))))
    return frames


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@given(frames=few_bytes_of_much())
@examples(15)
def test_a_peer_makes_us_take_little_more_memory_than_it_sends(frames: list[bytes]) -> None:
    agent = opened()[1]
    sent = sum(map(len, frames))
    gc.collect()
    before = _resident()
    tracemalloc.start()
    try:
        with contextlib.suppress(ProtocolError):
            for frame in frames:
                agent.receive_data(frame)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < (70 << 20) + 40 * sent
    assert _resident() - before < (100 << 20) + 40 * sent, "huge pages count as well"


@pytest.mark.slow
@pytest.mark.parametrize("size", [16 * 1024, 2**20 - 1, 2**20, 2**21, 2**24])
def test_large_messages_that_do_come_are_not_refused(size: int) -> None:
    """However many buffers there are, of whatever size, and with two messages in turn."""
    owner, agent = opened()
    content, count = bytes(size), (200 << 20) // size
    for number in (1, 2):
        owner.send(Run(number, True, None, None, {}), [content] * (count // 2), number)
    got: list[Received] = []
    while parts := owner.data_to_send():
        got += agent.receive_data(b"".join(parts))
    assert [len(received.buffers) for received in got] == [count // 2] * 2
    assert (agent._ahead.arrived, agent._ahead.allocated) == (0, 0)


def test_only_owners_compress() -> None:
    """A node could make its owner take a thousand times what it sends; nothing is compressed on that way."""
    owner = opened()[0]
    owner.receive_data(_piece(1, 1, _prelude(_envelope(Done(1, 0.0, {})), 2**20)))
    with pytest.raises(ProtocolError, match="kind 3"):
        owner.receive_data(_packed(1, 0, bytes(2**18)))
