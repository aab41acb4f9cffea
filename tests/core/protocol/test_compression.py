"""Compression where it pays: the decision, what is measured for it, and that no piece grows beyond what is wanted."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Sequence

import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from skyward.core.errors import ProtocolError
from skyward.core.protocol.compression import Packer, RateMeter, Sample, pays, unpack
from skyward.core.protocol.transfers import Outgoing

NOISE = random.Random(1).randbytes(1 << 20)
DIGITS = random.Random(2).randbytes(1 << 20).translate(bytes(b"0123456789"[byte % 10] for byte in range(256)))


def ticking(step: float) -> Callable[[], float]:
    """A clock that goes on by a step whenever it is asked."""
    now = [0.0]

    def clock() -> float:
        now[0] += step
        return now[0]

    return clock


def packer(rate: float | None, step: float = 1e-4) -> Packer:
    """One for a link of a known rate; a sample's slice of 64 kB takes `step` seconds."""
    rate_meter = RateMeter()
    rate_meter.rate = rate
    return Packer(rate_meter, ticking(step))


@pytest.mark.parametrize(
    ("ratio", "speed", "rate", "answer"),
    [
        (1.06, 1.1e9, 17e6, False),  # random floats, however slow the line is
        (1.6, 400e6, 50e6, True),  # float32 held as float64, over 50 ms
        (1.6, 400e6, 400e6, False),  # and to a machine next door
        (10.0, 740e6, 50e6, True),
        (10.0, 740e6, 1e9, False),
        (16.0, 1.6e9, 4e9, False),  # loopback
        (16.0, 1.6e9, None, False),  # not known yet
        (100.0, 10e6, 50e6, False),  # a processor that is slower than the line
        (1.6, 400e6, 0.0, True),  # a line that stands still
        (1.06, 1.1e9, 0.0, False),
    ],
)
def test_it_pays_where_data_shrink_and_the_line_is_slower(
    ratio: float, speed: float, rate: float | None, answer: bool
) -> None:
    assert pays(Sample(ratio, speed), rate) is answer


@given(st.floats(1.0, 100.0), st.floats(1e6, 1e10), st.floats(0, 1e10), st.floats(1.0, 100.0))
def test_what_pays_pays_more_on_a_slower_line(ratio: float, speed: float, rate: float, slower: float) -> None:
    if pays(Sample(ratio, speed), rate):
        assert pays(Sample(ratio, speed), rate / slower)


def test_a_rate_is_told_only_from_stretches_in_which_the_link_was_full() -> None:
    rate_meter = RateMeter()
    rate_meter.full(1_000_000, 10.0)  # the buffers on the way are filled, which says nothing
    rate_meter.full(1_500_000, 10.05)
    assert rate_meter.rate is None
    rate_meter.full(6_500_000, 10.11)
    assert rate_meter.rate == pytest.approx(50e6)
    rate_meter.idle()
    rate_meter.full(6_000_001, 60.0)
    assert rate_meter.rate == pytest.approx(50e6)
    rate_meter.full(18_000_001, 60.4)
    assert rate_meter.rate == pytest.approx(40e6)


SECONDS = st.sampled_from([0.0, 1e-9, 0.05, 0.1, 0.5, 5.0, 1e6]) | st.floats(0, 1e4)
WRITTEN = st.sampled_from([0, 1, 65_536, 2**40]) | st.integers(0, 10**9)


@given(st.lists(st.tuples(SECONDS, WRITTEN, st.booleans()), max_size=12), SECONDS, st.sampled_from([NOISE, DIGITS]))
def test_whatever_a_line_did_each_piece_goes_packed_or_plain(
    history: list[tuple[float, int, bool]], step: float, content: bytes
) -> None:
    """Also after it stood still, or when the clock did; and what is packed is the piece."""
    rate_meter, now, written = RateMeter(), 0.0, 0
    packing = Packer(rate_meter, ticking(step))
    message = Outgoing(1, [memoryview(content)])
    for seconds, more, full in history:
        now, written = now + seconds, written + more
        if full:
            rate_meter.full(written, now)
        else:
            rate_meter.idle()
        assert rate_meter.rate is None or 0 <= rate_meter.rate < math.inf
        body = message.views[0][: 1 << 15]
        packed = packing.pack(message, body)
        assert packed is None or unpack(memoryview(packed), 1 << 15) == body


def test_the_sample_is_taken_all_over_the_message() -> None:
    view = memoryview(NOISE)
    half = [view, memoryview(bytes(3 << 20))]
    assert packer(1e6).measure([view]).ratio < 1.05
    assert packer(1e6).measure([memoryview(DIGITS)]).ratio > 1.8
    assert 2 < packer(1e6).measure(half).ratio < 4
    assert packer(1e6).measure([memoryview(b"a" * 1000)] * 1000).ratio > 10
    assert packer(1e6, step=1e-3).measure([view]).speed == pytest.approx(65536 / 1e-3)


@pytest.mark.parametrize(("content", "shrinks"), [(NOISE, False), (DIGITS, True)], ids=["noise", "digits"])
def test_noise_goes_as_it_is_and_digits_do_not(content: bytes, shrinks: bool) -> None:
    body = memoryview(content)[: 1 << 18]
    packed = packer(20e6).pack(Outgoing(1, [memoryview(content)]), body)
    assert (packed is not None) is shrinks
    if packed is not None:
        assert unpack(memoryview(packed), 1 << 18) == body


def test_a_piece_of_noise_in_a_message_that_shrinks_goes_as_it_is() -> None:
    message = Outgoing(1, [memoryview(NOISE), memoryview(bytes(8 << 20))])
    assert packer(20e6).pack(message, message.views[1][: 1 << 18]) is not None
    assert packer(20e6).pack(message, message.views[0][: 1 << 18]) is None


def test_looking_takes_a_small_part_of_the_time_only() -> None:
    """Until the next look, what was seen in one message is thought of others, and each piece is judged by itself."""
    rate_meter = RateMeter()
    rate_meter.rate = 10e6
    now = [0.0]
    looks = []

    class Looking(Packer):
        def measure(self, views: Sequence[memoryview]) -> Sample:
            looks.append(bytes(views[0][:10]))
            now[0] += 0.001
            return Sample(1.0 if bytes(views[0]) == NOISE else 3.0, 1e9)

    packing = Looking(rate_meter, lambda: now[0])

    def shrinks(content: bytes) -> bool:
        return packing.pack(Outgoing(1, [memoryview(content)]), memoryview(content)[:100_000]) is not None

    assert [shrinks(DIGITS), shrinks(NOISE), shrinks(DIGITS)] == [True, False, True]
    assert len(looks) == 1
    now[0] += 0.06
    assert [shrinks(NOISE), shrinks(DIGITS)] == [False, False]
    assert len(looks) == 2
    now[0] += 0.06
    assert shrinks(DIGITS)


def test_nothing_is_tried_before_the_rate_is_known_nor_for_little() -> None:
    message = Outgoing(1, [memoryview(DIGITS)])
    assert packer(None).pack(message, memoryview(DIGITS)) is None
    assert message.sample is None
    message.views = [memoryview(DIGITS)[:100_000]]
    assert packer(1e6).pack(message, message.views[0]) is None
    assert message.sample is not None


@given(st.binary(max_size=200))
@example(zstandard.ZstdCompressor().compress(b"x" * 1000))
@example(zstandard.ZstdCompressor(write_content_size=False).compress(b"x" * 100))
def test_garbage_raises_only_a_protocol_error(garbage: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        assert 0 < len(unpack(memoryview(garbage), 999)) <= 999


@pytest.mark.parametrize(
    "piece",
    [
        zstandard.ZstdCompressor().compress(b""),
        zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1000)),
        zstandard.ZstdCompressor().compress(bytes(1000)) + b"more",
        zstandard.ZstdCompressor().compress(bytes(1000))[:-3],
        b"",
    ],
    ids=["empty", "of no known size", "with a tail", "cut", "nothing"],
)
def test_a_piece_that_is_not_as_it_should_be_is_refused(piece: bytes) -> None:
    with pytest.raises(ProtocolError):
        unpack(memoryview(piece), 1 << 18)


@pytest.mark.slow
def test_a_bomb_is_refused() -> None:
    """32 kB that would be 1 GB."""
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 30))
    with pytest.raises(ProtocolError):
        unpack(memoryview(bomb), 1 << 18)
