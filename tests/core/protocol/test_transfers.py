"""Large messages that arrive: any order of pieces fills the buffers, none twice, with no more memory than allowed."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.core.errors import ProtocolError
from skyward.core.protocol.buffers import BufferPool
from skyward.core.protocol.messages import Ping
from skyward.core.protocol.transfers import Ahead, Incoming


def incoming(*sizes: int, ahead: Ahead | None = None) -> Incoming:
    return Incoming(1, 7, Ping(0.0), sizes, 10, ahead or Ahead(BufferPool()))


@given(
    sizes=st.lists(st.integers(0, 50), min_size=1, max_size=6).filter(sum),
    cuts=st.lists(st.integers(0, 300), max_size=8),
    seed=st.integers(0, 999),
)
def test_pieces_in_any_order_fill_the_buffers(sizes: list[int], cuts: list[int], seed: int) -> None:
    ahead = Ahead(BufferPool())
    message, total = incoming(*sizes, ahead=ahead), sum(sizes)
    content = random.Random(seed).randbytes(total)
    pieces = list(pairwise(sorted({0, total, *(cut % total for cut in cuts)})))
    random.Random(seed).shuffle(pieces)
    for start, end in pieces:
        message.claim(start, end - start)
        message.fill(start, memoryview(content[start:end]))
    assert not message.missing
    buffers = message.whole()
    assert [len(buffer) for buffer in buffers] == sizes
    assert b"".join(map(bytes, buffers)) == content
    assert (ahead.arrived, ahead.allocated) == (0, 0)


@pytest.mark.parametrize(("at", "count"), [(5, 10), (0, 6), (9, 1), (95, 10), (100, 1), (50, 0)])
def test_no_byte_is_claimed_twice_or_beyond_the_end(at: int, count: int) -> None:
    message = incoming(60, 40)
    message.claim(5, 5)
    with pytest.raises(ProtocolError, match="no gap for it"):
        message.claim(at, count)
    message.claim(10, 90)
    message.claim(0, 5)


def test_memory_is_bounded_by_what_has_arrived() -> None:
    ahead = Ahead(BufferPool())
    ahead.count(64 << 20)
    with pytest.raises(ProtocolError, match="only 0 bytes have arrived"):
        ahead.count(1)
    ahead.arrived = 100
    ahead.count(200)
    with pytest.raises(ProtocolError):
        ahead.count(1)


def test_no_memory_for_a_buffer_is_the_peers_fault() -> None:
    class Full(BufferPool):
        def take(self, size: int) -> Any:
            raise MemoryError

    with pytest.raises(ProtocolError, match="no memory"):
        Ahead(Full()).room(1 << 20)
