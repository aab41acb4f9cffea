"""Bytes come back as they were, and no others are taken for them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.core.resume.packing import checksum, pack, unpack

PARTS = st.lists(st.binary(max_size=200), min_size=1)


@given(PARTS)
def test_what_is_packed_is_unpacked(parts: list[bytes]) -> None:
    """In memory that can be written to, aligned, also from other kinds of buffers."""
    data = bytearray(b"".join(pack([parts[0], *map(memoryview, parts[1:])])))
    found = unpack(data)
    assert [bytes(part) for part in found] == parts
    assert not any(part.readonly for part in found)
    data[:] = bytes(len(data))
    assert not any(any(part) for part in found)


@given(PARTS, st.integers(1, 100))
def test_what_is_cut_off_is_refused(parts: list[bytes], less: int) -> None:
    data = bytearray(b"".join(pack(parts)))
    with pytest.raises(ValueError, match="a stored result"):
        unpack(data[: max(0, len(data) - less)])


@given(st.binary(max_size=100))
def test_garbage_is_refused_or_has_the_right_size(data: bytes) -> None:
    try:
        parts = unpack(bytearray(data))
    except ValueError:
        return
    assert sum(map(len, parts)) <= len(data)


@given(PARTS, st.data())
def test_a_changed_byte_or_key_shows(parts: list[bytes], data: st.DataObject) -> None:
    packed = bytearray(b"".join(pack(parts)))
    before = checksum(b"key", pack(parts))
    assert before == checksum(b"key", [packed]) != checksum(b"another", [packed])
    place = data.draw(st.integers(0, len(packed) - 1))
    packed[place] ^= data.draw(st.integers(1, 255))
    assert checksum(b"key", [packed]) != before
