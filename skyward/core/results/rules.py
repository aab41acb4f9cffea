"""What a pickle that is read as data may do with a name: a `Rule` for each name it may refer to.

A rule never hands a pickle the function it refers to. What is called is in the rule, is ours, and checks its arguments;
the pickle gets the class if that is needed as a value, and otherwise a `Mark`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = ["Build", "Call", "Mark", "Pending", "RefusedPickle", "Rule", "attributes", "called", "made"]


class RefusedPickle(Exception):
    """A pickle does something that data does not.

    Parameters
    ----------
    text
        What it does, as the rest of a sentence that starts with "it".
    trusted
        What the user could put into ``trusted=[...]`` to allow it, if that would help.
    is_odd
        Whether it suggests an attack rather than a task.
    """

    def __init__(self, text: str, trusted: str | None = None, *, is_odd: bool = True) -> None:
        super().__init__(text)
        self.trusted = trusted
        self.is_odd = is_odd and trusted is None


class Mark:
    """Takes the place of a function that is not handed to the pickle."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return f"<{self._name}, not handed to a pickle>"


class Pending:
    """Takes the place of an object that can't be made until its state is known."""

    __slots__ = ("args", "place")

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.place = -1  # in the unpickler's memo

    def __repr__(self) -> str:
        return f"<Pending {self.args!r}>"


Call: TypeAlias = Callable[..., Any]
# Called with an object and its state; returns the object, or what takes its place.
Build: TypeAlias = Callable[[Any, Any], Any]


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """What may be done with a name.

    Attributes
    ----------
    value
        What the pickle gets: a class, or a `Mark`.
    call
        Makes an object when the pickle calls the name, or returns the rule of a name found by that call; None if it
        must not be called.
    new
        Makes an object without its ``__init__``; None if that is not allowed.
    build
        Sets the state of an object made that way; None if it has none.
    items
        Whether such an object accepts items, as lists, sets and dicts do.
    memory
        Whether `call` makes an array from a buffer; its first argument is then the buffers used so far, by identity.
    """

    value: Any
    call: Call | None = None
    new: Call | None = None
    build: Build | None = None
    items: bool = False
    memory: bool = False


def called(kind: Callable[..., Any], *types: type) -> Call:
    """Call something with arguments of these types only, or of any type that a pickle can make if none is given."""

    def call(*args: Any) -> Any:
        if types and not all(type(arg) in types for arg in args):
            raise RefusedPickle(f"makes a {getattr(kind, '__name__', kind)} from something else")
        return kind(*args)

    return call


def made(kind: type) -> Call:
    """Make an instance of a class whose ``__new__`` needs no arguments, without its ``__init__``."""

    def new() -> Any:
        return kind.__new__(kind)  # type: ignore[call-overload]

    return new


def attributes(made: Any, state: Any) -> Any:
    """Set an object's attributes with ``__setstate__``, or as pickle does if there is none."""
    set_state = getattr(type(made), "__setstate__", None)
    if set_state is not None:
        set_state(made, state)
    elif isinstance(state, dict) and all(type(name) is str for name in state):
        made.__dict__.update(state)
    elif state is not None:
        raise RefusedPickle(f"gives a {type(made).__name__} a state that is not a dict of attributes")
    return made
