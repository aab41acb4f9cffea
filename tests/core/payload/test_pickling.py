"""Payloads keep values whole, errors always arrive, and what does not pickle is named."""

from __future__ import annotations

import copy
import dataclasses
import functools
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from skyward.core.errors import PayloadError, TaskFailed
from skyward.core.payload import pickling
from skyward.core.payload.pickling import RemoteTraceback


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


class Node:
    def __init__(self, **parts: Any) -> None:
        self.__dict__.update(parts)


def test_the_culprit_is_named_wherever_it_sits() -> None:
    """In attributes, containers, closures, globals, partials, methods."""
    lock = threading.Lock()
    deep = Node(estimator=Node(steps=[("a", 1), ("b", Node(_logger=lock))]))
    cases = {
        "it.estimator.steps[1][1]._logger (a _thread.lock)": deep,
        "it['k'] (a _thread.lock)": {"k": lock},
        "it -> lock (closed over) (a _thread.lock)": lambda: lock,
        "it.args[0] (a _thread.lock)": functools.partial(print, lock),
        "it.__self__._logger (a _thread.lock)": Node(_logger=lock).__dict__ and Holder(lock).method,
    }
    for where, value in cases.items():
        with pytest.raises(PayloadError) as caught:
            pickling.dumps(value, "it")
        assert where in str(caught.value)


class Holder:
    def __init__(self, lock: Any) -> None:
        self._logger = lock

    def method(self) -> None:
        pass


def test_an_endless_structure_is_a_payload_error() -> None:
    """Recursion deeper than pickle can go is reported, not crashed on."""
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(PayloadError):
        pickling.dumps(nested)
    while nested:  # taken apart by hand: the interpreter's own way down is deep too
        nested = nested[0]


# --- exceptions -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int


@dataclasses.dataclass(frozen=True)
class FrozenEmpty(Exception):
    pass


class Finicky(Exception):
    def __init__(self, a: int, *, b: str) -> None:
        super().__init__(f"{a}{b}")
        self.a, self.b = a, b


class WithLock(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()
        self.code = 5


class BadStr(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Strange(Exception):
    def __reduce__(self) -> Any:
        raise RuntimeError("will not be pickled")


class Liar(Exception):
    def __reduce__(self) -> Any:
        return (copy.copy, ([1, 2],))


def carried(error: BaseException) -> BaseException:
    """Raise, dump, load."""
    try:
        raise error
    except BaseException as caught:
        (head,) = pickling.dump_error(caught)
    return pickling.load_error(bytearray(head))


@pytest.mark.parametrize(
    "error",
    [ValueError("x", 3), KeyError("k"), OSError(2, "gone", "file"), Finicky(1, b="z"), WithLock("t"), Strange("s"),
     UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), KeyboardInterrupt(), SystemExit(3), StopIteration(4),
     ExceptionGroup("several", [ValueError(1), Finicky(2, b="y")]), Frozen(6), FrozenEmpty()],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_exceptions_keep_type_args_and_attributes(error: BaseException) -> None:
    """Odd signatures, attributes that don't pickle, classes that refuse: the type and what can be carried arrive."""
    back = carried(error)
    assert type(back) is type(error)
    assert str(back) == str(error)
    for name in ("a", "b", "code", "errno", "filename", "exceptions"):
        if hasattr(error, name) and name != "exceptions":
            assert getattr(back, name) == getattr(error, name)
    assert isinstance(back.__cause__, RemoteTraceback)


def test_what_can_not_be_carried_is_said() -> None:
    """An exception that does not rebuild arrives as TaskFailed with its text, never as another exception here."""
    back = carried(Liar("hello"))
    assert isinstance(back, (TaskFailed, Liar))
    assert "hello" in str(back)
    assert isinstance(carried(BadStr()), BadStr)


def test_the_chain_of_causes_stays_and_ends_in_the_traceback() -> None:
    """`raise B from A` arrives as B from A from the remote traceback."""
    try:
        try:
            raise KeyError("a")
        except KeyError as cause:
            raise Finicky(1, b="2") from cause
    except Finicky as error:
        back = pickling.load_error(*pickling.dump_error(error))
    assert isinstance(back.__cause__, KeyError)
    assert "Finicky" in str(back.__cause__.__cause__)


def test_a_local_class_of_the_user_arrives_as_itself() -> None:
    """Exceptions and values of classes from `__main__` or a function keep their identity in this process."""

    class Local(Exception):
        pass

    assert type(carried(Local("x"))) is Local


def test_a_circle_of_causes_ends() -> None:
    """A cause that leads back is not followed for ever."""
    one, two = ValueError(1), ValueError(2)
    one.__cause__, two.__cause__ = two, one
    assert str(pickling.load_error(*pickling.dump_error(one))) == "1"
