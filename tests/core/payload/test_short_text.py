"""A failed call is described shortly, quickly and without running the code of its arguments."""

from __future__ import annotations

import dataclasses
import enum
import functools
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.core.payload.short_text import call_text, short_text
from tests.lazily import Lazy

pd, sk = Lazy("pandas"), Lazy("tests.estimators")


class Hostile:
    """Whatever is asked of it raises, or takes for ever."""

    def __repr__(self) -> str:
        raise AssertionError("asked for its repr")

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"asked for {name}")

    def __len__(self) -> int:
        raise AssertionError("asked for its length")

    def __eq__(self, other: object) -> bool:
        raise AssertionError("compared")

    __hash__ = None  # type: ignore[assignment]


class Claims(Hostile):
    @property
    def __class__(self) -> Any:
        raise AssertionError("asked for its class")

    @__class__.setter
    def __class__(self, value: type) -> None:
        raise AssertionError


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0
    password: str = "hunter2"


class Pair(NamedTuple):
    left: int
    right: int


class Colour(enum.Enum):
    RED = 1


def fit(model: Any, data: Any, api_key: str = "") -> None:
    """Nothing."""


VALUES: list[tuple[Any, str]] = [
    (3, "3"), (1.5, "1.5"), (None, "None"), ("it's", '"it\'s"'), ("a\nb", "'a\\nb'"), (b"x", "b'x'"),
    (1 << 100_000, "<int of 100,001 bits>"),
    ([1, 2], "[1, 2]"), ((1,), "(1,)"), (set(), "{}"), (list(range(1000)), "[0, 1, 2, 3, 4, 5, ... 1,000 in total]"),
    ({"C": 10}, "{'C': 10}"), ([[[[1]]]], "[[[<list of 1>]]]"),
    ({"token": "abc", "a_password": "abc", "tokens": 3}, "{'token': '***', 'a_password': '***', 'tokens': 3}"),
    (np.zeros((3, 2)), "<ndarray float64 (3, 2)>"), (np.float64(0.5), "np.float64(0.5)"),
    (Point(1, password="x"), "Point(x=1, password='***')"),
    (Path("/a"), "PosixPath('/a')"),
    (fit, "fit"), (int, "int"), (functools.partial(fit, 3), "partial(fit, ...)"), (range(3), "range(0, 3)"),
    (Hostile(), "Hostile()"), ([Hostile()], "[Hostile()]"), (Claims(), "Claims()"), (object(), "<object>"),
    (ValueError("x"), "ValueError()"),
]  # fmt: skip


def test_values() -> None:
    for value, text in VALUES:
        assert short_text(value) == text


@pytest.mark.slow
def test_values_of_libraries() -> None:
    assert short_text(pd.DataFrame({"a": [1, 2]})) == "<DataFrame (2, 1)>"
    assert short_text(pd.Series([1])) == "<Series int64 (1,)>"
    assert short_text(sk.SVC(C=10)) == "SVC(C=10)"


def test_large_values_are_cut_and_quick() -> None:
    began = time.process_time()
    for value in ("x" * 10_000_000, [["y" * 1000] * 1000] * 1000, {str(i): i for i in range(100_000)}, b"z" * 10**7):
        assert len(short_text(value)) <= 80
    cycle: list[Any] = []
    cycle.append(cycle)
    assert short_text(cycle) == "[[[<list of 1>]]]"
    assert short_text("x" * 1000).endswith("1,000 characters")
    assert time.process_time() - began < 5


@given(st.recursive(st.integers() | st.text() | st.binary() | st.floats(), lambda s: st.lists(s) | st.tuples(s)))
def test_any_value_is_one_short_line(value: object) -> None:
    text = short_text(value)
    assert len(text) <= 80
    assert "\n" not in text


def test_calls() -> None:
    assert call_text(fit, (3, [1]), {}) == "fit(3, [1])"
    assert call_text(fit, (3, [1], "sk-1"), {}) == "fit(3, [1], '***')"
    assert call_text(fit, (), {"model": Pair(1, 2), "api_key": "sk-1"}) == "fit(model=<Pair>, api_key='***')"
    assert call_text(Hostile(), (1,), {}) == "Hostile(1)"  # type: ignore[arg-type]


def test_long_calls_have_a_line_for_each_argument() -> None:
    text = call_text(fit, ("x" * 70, "y" * 70), {})
    assert text.splitlines() == ["fit(", f"    '{'x' * 70}',", f"    '{'y' * 70}',", ")"]
    many = call_text(fit, range(100), {"a": 1})
    assert many.endswith("11, ... (89 more))")


def test_a_call_that_is_none() -> None:
    """A node may have been sent anything."""
    assert call_text(fit, 5, None) == "fit(...)"  # type: ignore[arg-type]
