"""Exceptions are of their own class, though none of its code runs while they are read."""

from __future__ import annotations

import pickle
import sys
from dataclasses import dataclass

import pytest

from skyward.core.errors import PayloadError, RateLimited
from skyward.core.results.rules import RefusedPickle
from tests.core.results.hostile import Reduced, read

RAN: list[str] = []


class Particular(Exception):
    """Its ``__init__`` takes what ``args`` do not hold."""

    def __init__(self, one: int, two: int) -> None:
        RAN.append("init")
        super().__init__(f"{one} and {two}")
        self.two = two

    def __setstate__(self, state: object) -> None:
        RAN.append("setstate")


@dataclass(frozen=True)
class Frozen(Exception):
    code: int


class Ends(Exception):
    def __del__(self) -> None:
        RAN.append("del")


def rebuilt(error: BaseException) -> bytes:
    """As nodes send them."""
    from skyward.core.payload import exceptions

    return exceptions._dump_rebuilt(error)


@pytest.mark.parametrize("dump", [rebuilt, lambda error: pickle.dumps(error, protocol=5)])
@pytest.mark.parametrize(
    "error",
    [
        *(ValueError("x", 1), KeyError("k"), OSError(2, "no", "file"), UnicodeDecodeError("utf-8", b"x", 0, 1, "bad")),
        *(PayloadError("p"), ModuleNotFoundError("m"), StopIteration(3)),
    ],
    ids=repr,
)
def test_known_exceptions_come_back(error, dump):
    back = read(dump(error))
    assert type(back) is type(error)
    assert back.args == error.args


def test_the_users_own_come_back_without_their_code():
    error = Particular(1, 2)
    error.add_note("noted")
    RAN.clear()
    back = read(rebuilt(error))
    assert (type(back), back.args, back.two, back.__notes__) == (Particular, ("1 and 2",), 2, ["noted"])
    assert RAN == []
    assert read(rebuilt(Frozen(3))).code == 3
    assert read(rebuilt(RateLimited("r", 2.0))).wait == 2.0


def test_groups_come_back():
    group = ExceptionGroup("g", [ValueError(1), Particular(1, 2)])
    back = read(rebuilt(group))
    assert [type(each) for each in back.exceptions] == [ValueError, Particular]


def test_what_acts_when_it_ends_is_refused():
    data = rebuilt(Ends("x"))
    RAN.clear()
    with pytest.raises(RefusedPickle):
        read(data)
    assert RAN == []


@pytest.mark.parametrize("state", [{"__class__": KeyError}, {"__traceback__": None}, [1]])
def test_states_that_are_no_attributes_are_refused(state):
    with pytest.raises(RefusedPickle):
        read(pickle.dumps(Reduced(ValueError, ("x",), state), protocol=5))


def test_only_exceptions_are_rebuilt_as_such():
    from skyward.core.payload.exceptions import _rebuild

    for kind in (dict, PayloadError.__mro__[-1]):
        with pytest.raises(RefusedPickle):
            read(pickle.dumps(Reduced(_rebuild, (kind, (), {})), protocol=5))


def test_no_module_is_imported_for_an_exception():
    assert "ftplib" not in sys.modules or sys.modules.pop("ftplib")
    with pytest.raises(RefusedPickle):
        read(b"\x80\x05\x8c\x06ftplib\x8c\x05Error\x93.")
    assert "ftplib" not in sys.modules
