"""What rules let a pickle do: call with plain arguments, make without ``__init__``, set attributes."""

from __future__ import annotations

from typing import Any

import pytest

from skyward.core.results.rules import Mark, RefusedPickle, attributes, called, made


class Plain:
    def __init__(self) -> None:
        raise AssertionError("a rule never runs it")


class Stateful(Plain):
    def __setstate__(self, state: Any) -> None:
        self.seen = state


def test_calls_take_only_the_types_that_are_named() -> None:
    assert called(int, str)("3") == 3
    assert called(int)(3.5) == 3
    for argument in (3, True, b"3"):
        with pytest.raises(RefusedPickle, match="makes a int from something else"):
            called(int, str)(argument)


def test_objects_are_made_without_init_and_given_attributes() -> None:
    thing = attributes(made(Plain)(), {"x": 1})
    assert (type(thing), thing.x) == (Plain, 1)
    assert attributes(made(Plain)(), None).__dict__ == {}
    assert attributes(made(Stateful)(), [2]).seen == [2]
    for state in ([1], {1: 2}, "x"):
        with pytest.raises(RefusedPickle, match="a state that is not a dict of attributes"):
            attributes(made(Plain)(), state)


def test_a_mark_does_nothing() -> None:
    mark = Mark("os.system")
    assert not callable(mark)
    assert "os.system" in repr(mark)
    with pytest.raises(AttributeError):
        mark.attribute = 1  # type: ignore[attr-defined]
