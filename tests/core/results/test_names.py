"""What a user trusts besides data."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any, NamedTuple

import cloudpickle
import pytest

from skyward.core.errors import ConfigError
from skyward.core.results.names import Trusted
from skyward.core.results.rules import RefusedPickle
from tests.core.results.hostile import read


class Pair(NamedTuple):
    a: int
    b: int


@dataclass
class Point:
    x: int

    class Inner:
        pass


class Slotted:
    __slots__ = ("x",)


class Listed(list[int]):
    pass


class Restored:
    def __getstate__(self) -> int:
        return 5

    def __setstate__(self, state: int) -> None:
        self.x = state


def made_by_hand() -> Point:
    return Point(7)


class ByHand:
    def __reduce__(self) -> Any:
        return made_by_hand, ()


def test_nothing_of_the_users_is_trusted_unless_named():
    for value in (Point(1), Pair(1, 2), Point, Listed(), Restored()):
        with pytest.raises(RefusedPickle, match=type(value).__name__ if value is not Point else "Point") as caught:
            read(pickle.dumps(value, protocol=5))
        assert caught.value.trusted == f"{__name__}:{getattr(value, '__name__', type(value).__name__)}"


@pytest.mark.parametrize("trusted", [Point, f"{__name__}:Point", __name__, "tests.core"])
def test_a_class_is_named_in_any_of_four_ways(trusted):
    assert read(pickle.dumps([Point(1), Point(2)], protocol=5), trusted=[trusted]) == [Point(1), Point(2)]


def test_all_that_pickle_does_is_done_for_it():
    slotted, listed = Slotted(), Listed([1, 2])
    slotted.x = 3
    listed.name = "n"  # type: ignore[attr-defined]
    back = read(pickle.dumps([slotted, listed, Pair(1, 2), Restored(), Point.Inner()], protocol=5), trusted=[__name__])
    assert (back[0].x, back[1], back[1].name, back[2], back[3].x) == (3, [1, 2], "n", Pair(1, 2), 5)
    assert type(back[4]) is Point.Inner


def test_functions_must_be_named_themselves():
    data = pickle.dumps(ByHand(), protocol=5)
    with pytest.raises(RefusedPickle):
        read(data, trusted=[__name__])
    for trusted in (made_by_hand, f"{__name__}:made_by_hand"):
        assert read(data, trusted=[trusted]) == Point(7)


def test_a_module_is_not_trusted_with_what_it_imports():
    with pytest.raises(RefusedPickle):
        read(b"\x80\x05\x8c\x05tests\x94.".replace(b"\x94.", b"\x8c\x02os\x93."), trusted=["tests"])
    data = pickle.dumps(("x", "y"), protocol=5)
    assert read(data, trusted=["tests"]) == ("x", "y")
    named = f"\x8c{chr(len(__name__))}{__name__}\x8c\x08dataclas"  # no such name
    with pytest.raises((RefusedPickle, AttributeError)):
        read(b"\x80\x05" + named.encode("latin-1") + b"\x93.", trusted=[__name__])


def test_a_class_by_value_is_refused_with_its_code():
    kind = type("Local", (), {"__module__": "__main__"})
    with pytest.raises(RefusedPickle, match="__main__"):
        read(cloudpickle.dumps(kind()))


@pytest.mark.parametrize("wrong", ["Point", [3], ["a b"], ["a:"], ["a.b:c.d e"], 7, [None]])
def test_what_names_nothing_is_an_error(wrong):
    with pytest.raises(ConfigError, match="trusted"):
        Trusted.parse(wrong)
