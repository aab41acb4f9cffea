"""Frames are read whole, however they arrive, and nothing behind them is touched."""

from __future__ import annotations

import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.core.protocol.framing import Records, frame, read_frame, split_frame


@given(contents=st.lists(st.binary(max_size=40), min_size=1), cuts=st.lists(st.integers(1, 9), min_size=1))
def test_frames_are_read_one_by_one_however_they_arrive(contents: list[bytes], cuts: list[int]) -> None:
    stream = io.BytesIO(b"".join(map(frame, contents)) + b"next")
    turns = iter(cuts * 1000)
    assert [read_frame(lambda count: stream.read(min(count, next(turns)))) for _ in contents] == contents
    assert stream.read() == b"next"


@given(content=st.binary(max_size=40), more=st.binary(max_size=5))
def test_a_frame_is_split_off_once_it_is_whole(content: bytes, more: bytes) -> None:
    data = frame(content)
    assert all(split_frame(data[:size]) is None for size in range(len(data)))
    assert split_frame(bytearray(data + more)) == content


def test_a_stream_that_ends_within_a_frame_is_an_error() -> None:
    for size in range(7):
        with pytest.raises(EOFError):
            read_frame(io.BytesIO(frame(b"abc")[:size]).read)


def test_a_frame_over_the_limit_is_refused_before_it_is_read() -> None:
    assert read_frame(io.BytesIO(frame(b"abc")).read, limit=3) == b"abc"
    for attempt in (lambda: read_frame(io.BytesIO(frame(b"abc")[:4]).read, 2), lambda: split_frame(frame(b"abc"), 2)):
        with pytest.raises(ValueError, match="at most 2"):
            attempt()


@given(sent=st.lists(st.tuples(st.integers(0, 255), st.integers(0, 2**32 - 1))), cuts=st.lists(st.integers(1, 12)))
def test_records_may_be_cut_anywhere(sent: list[tuple[int, int]], cuts: list[int]) -> None:
    kind = struct.Struct("!BI")
    records, stream = Records(kind), io.BytesIO(b"".join(kind.pack(*record) for record in sent))
    parts = [*(stream.read(cut) for cut in cuts), stream.read()]
    assert [record for part in parts for record in records.receive(part)] == sent
    assert records.receive(kind.pack(1, 2)[:4]) == []
    assert "4 of the next" in repr(records)
