"""Payloads keep values whole, and what does not pickle is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from skyward.core.errors import PayloadError
from skyward.core.payload import pickling


def there_and_back(value: Any, **options: Any) -> Any:
    """Pickle, copy the buffers as a wire would, load."""
    head, buffers = pickling.dumps(value, **options)
    return pickling.loads(bytearray(head), [bytearray(buffer) for buffer in buffers])


@given(
    array=hnp.arrays(
        st.sampled_from(["f8", "i4", "u1", "c16", "?", "M8[s]", "U3"]), hnp.array_shapes(min_dims=0, max_side=40)
    ),
    fortran=st.booleans(),
    large=st.sampled_from([None, 0, 1, 1000]),
)
def test_arrays_keep_content_order_and_writability(array: Any, fortran: bool, large: int | None) -> None:
    """Every array comes back equal, in its memory order, and may be written."""
    array = np.asfortranarray(array) if fortran else array
    back = there_and_back(array, large=large)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    np.testing.assert_array_equal(back, array)
    assert back.flags.f_contiguous == array.flags.f_contiguous
    assert back.flags.writeable


def test_arrays_that_are_not_contiguous_or_special() -> None:
    """Slices, objects, subclasses and masked arrays come back equal."""
    base = np.arange(200_000.0).reshape(400, 500)
    for array in (base[::2, ::3], base.T[5:], base[::-1], np.array([object, None]), np.ma.masked_less(base, 7)):
        back = there_and_back(array, large=1000)
        assert type(back) is type(array)
        np.testing.assert_array_equal(np.asarray(back), np.asarray(array))


def test_large_buffers_stay_out_of_the_pickle() -> None:
    """An array of 8 MB costs a head of some hundred bytes and no copy."""
    array = np.arange(1_000_000.0)
    head, buffers = pickling.dumps({"x": [array]})
    assert len(head) < 1000
    assert [len(buffer) for buffer in buffers] == [array.nbytes]
    assert np.shares_memory(np.frombuffer(buffers[0]), array)


def test_an_endless_structure_is_a_payload_error() -> None:
    """Recursion deeper than pickle can go is reported, not crashed on."""
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(PayloadError):
        pickling.dumps(nested)
    while nested:  # taken apart by hand: the interpreter's own way down is deep too
        nested = nested[0]
