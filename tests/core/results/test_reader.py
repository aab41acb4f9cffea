"""Results and exceptions of nodes, read as data, with words that help."""

from __future__ import annotations

import decimal
import pickle
import sys
import types

import pytest

from skyward.core.errors import PayloadError, TaskFailed
from skyward.core.payload import exceptions, pickling
from skyward.core.results.names import Trusted
from skyward.core.results.reader import Reader
from tests.core.results.hostile import Reduced

READER = Reader(Trusted())


class Point:
    pass


class Odd(Exception):
    """It holds something that is no data."""

    def __init__(self, point: Point) -> None:
        super().__init__("odd", point)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Point(), r"tests\.core\.results\.test_reader\.Point.*trusted=\['tests\.core\.results\.test_reader:Point'\]"),
        (types.SimpleNamespace(x=print), r"builtins\.print.*do not trust that machine"),
        (lambda: 1, r'its code.*results="any"'),
        (Reduced(sys.exit, (1,)), r"sys\.exit.*do not trust that machine"),
        (decimal.Context(), r'decimal\.Context.*results="any"'),
    ],
)
def test_a_refusal_says_what_and_what_to_do(value, text):
    head, buffers = pickling.dumps(value, large=None)
    with pytest.raises(PayloadError, match=text):
        READER.value(head, buffers)


def test_an_exception_comes_with_its_causes_and_traceback():
    try:
        try:
            raise KeyError("k")
        except KeyError as key:
            raise ValueError("v") from key
    except ValueError as error:
        (head,) = exceptions.dump(error, as_data=True)
    back = READER.error(head)
    assert (type(back), type(back.__cause__)) == (ValueError, KeyError)
    assert isinstance(back.__cause__.__cause__, exceptions.RemoteTraceback)
    assert "KeyError: 'k'" in str(back.__cause__.__cause__)


def test_an_exception_that_is_more_than_data_is_text():
    (head,) = exceptions.dump(Odd(Point()), as_data=True)
    back = READER.error(head)
    assert type(back) is TaskFailed
    assert "Odd: ('odd', " in str(back)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        pickle.dumps(Reduced(sys.exit, (1,))),
        pickle.dumps(([], "text")),
        pickle.dumps(([(pickle.dumps(Reduced(sys.exit, (1,))), "said")], "text")),
        pickle.dumps(([(pickle.dumps(3), "a number")], "text")),
        pickle.dumps(([(1, 2, 3)], "text")),
    ],
)
def test_whatever_a_node_says_of_a_failure_is_an_exception(head):
    back = READER.error(head)
    assert isinstance(back, TaskFailed)
