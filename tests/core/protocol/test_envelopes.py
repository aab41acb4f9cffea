"""Envelopes are unpacked as msgpack does it, and take memory as they are large."""

from __future__ import annotations

import struct
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.core.errors import ProtocolError
from skyward.core.protocol.envelopes import unpack
from tests.examples import examples

ATOMS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, width=32)
    | st.text(max_size=300)
    | st.binary(max_size=300)
)
VALUES = st.recursive(
    ATOMS, lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=9), inner, max_size=20)
)


@pytest.mark.slow
@given(value=VALUES, single=st.booleans())
def test_every_value_comes_back(value: Any, single: bool) -> None:
    padded = [value, b"x" * 2000]  # large enough to be looked through
    packed = msgpack.packb(padded, use_single_float=single)
    assert unpack(memoryview(packed)) == msgpack.unpackb(packed, strict_map_key=False)


@pytest.mark.parametrize("size", [31, 32, 255, 256, 65_535, 65_536])
@pytest.mark.parametrize("kind", [bytes, str, list, dict])
def test_lengths_of_every_width(kind: type[Any], size: int) -> None:
    numbers = range(size)
    value = {bytes: b"b" * size, str: "s" * size, list: [None] * size, dict: dict.fromkeys(numbers)}[kind]
    assert unpack(memoryview(msgpack.packb([value, b"x" * 2000]))) == [value, b"x" * 2000]


def deep(head: bytes, count: int, size: int) -> bytes:
    return (head * count).ljust(size, b"\xc0")


HOSTILE = {
    "lists that announce as much as there are bytes": deep(b"\xdd" + struct.pack("!I", 250_000), 500, 500_000),
    "maps that do": deep(b"\xdf" + struct.pack("!I", 100_000), 500, 500_000),
    "empty maps": b"\xdd" + struct.pack("!I", 400_000) + b"\x80" * 400_000,
    "empty lists": b"\xdd" + struct.pack("!I", 400_000) + b"\x90" * 400_000,
    "extension types": b"\xdd" + struct.pack("!I", 100_000) + b"\xd4\x05x" * 100_000,
    "text beyond the end": b"\x92\xc5\x07\xd0" + b"x" * 2000 + b"\xdb" + struct.pack("!I", 2**32 - 1),
    "a length that is cut off": b"\x92\xc5\x07\xd0" + b"x" * 2000 + b"\xdd\x00",
    "no kind of msgpack's": b"\x92\xc1" + b"x" * 2000,
}


@pytest.mark.parametrize("packed", HOSTILE.values(), ids=HOSTILE)
def test_what_would_take_much_memory_is_refused(packed: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            unpack(memoryview(packed))
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@given(data=st.binary(min_size=1025, max_size=3000))
@examples(60)
def test_garbage_takes_memory_in_proportion_to_its_size(data: bytes) -> None:
    tracemalloc.start()
    try:
        unpack(memoryview(data))
    except Exception:
        pass
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most < 100 * len(data)
