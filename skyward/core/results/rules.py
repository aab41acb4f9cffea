"""What a pickle that is read as data may do with a name: a `Rule` for each name that it may have.

A rule never gives a pickle the function it names. What is to be called stands in the rule, is ours, and looks at its
arguments; the pickle gets the class, where that is needed as a value, or else a `Mark`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = ["Build", "Call", "Mark", "Pending", "Refused", "Rule", "attributes", "called", "made"]


class Refused(Exception):
    """A pickle does what data does not.

    Parameters
    ----------
    text
        What it does, as the end of a sentence that begins with "it".
    trusted
        How the user would name in ``trusted=[...]`` what it is about, where that would help.
    is_odd
        Whether it is what an attack does, and hardly a task.
    """

    def __init__(self, text: str, trusted: str | None = None, *, is_odd: bool = True) -> None:
        super().__init__(text)
        self.trusted = trusted
        self.is_odd = is_odd and trusted is None


class Mark:
    """Stands in a pickle for a function, which the pickle is not given."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return f"<{self._name}, not given to a pickle>"


class Pending:
    """Stands for an object that can be made only when its state is known."""

    __slots__ = ("args", "place")

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.place = -1  # in the unpickler's memo

    def __repr__(self) -> str:
        return f"<Pending {self.args!r}>"


Call: TypeAlias = Callable[..., Any]
# With the object and its state; gives the object, or what takes its place.
Build: TypeAlias = Callable[[Any, Any], Any]


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """What may be done with a name.

    Attributes
    ----------
    value
        What stands in its place: a class, or a `Mark`.
    call
        Makes an object where the pickle calls it, or gives the rule of a name that is found by a call; None if it may
        not.
    new
        Makes an object without its ``__init__``; None if that may not be.
    build
        Gives an object that was made so its state; None if it takes none.
    items
        Whether such an object takes items, as lists, sets and dicts do.
    memory
        Whether `call` makes an array of a buffer: it is given those that have been used, by identity, before the rest.
    """

    value: Any
    call: Call | None = None
    new: Call | None = None
    build: Build | None = None
    items: bool = False
    memory: bool = False


def called(kind: Callable[..., Any], *types: type) -> Call:
    """Call something with arguments that are all of these types; of any that a pickle can make, if none is named."""

    def call(*args: Any) -> Any:
        if types and not all(type(arg) in types for arg in args):
            raise Refused(f"makes a {getattr(kind, '__name__', kind)} of something that is not one")
        return kind(*args)

    return call


def made(kind: type) -> Call:
    """Make an object of a class that needs no arguments, without its ``__init__``."""

    def new() -> Any:
        return kind.__new__(kind)  # type: ignore[call-overload]

    return new


def attributes(made: Any, state: Any) -> Any:
    """Give an object its attributes: as ``__setstate__`` does, or as pickle does where there is none."""
    set_state = getattr(type(made), "__setstate__", None)
    if set_state is not None:
        set_state(made, state)
    elif isinstance(state, dict) and all(type(name) is str for name in state):
        made.__dict__.update(state)
    elif state is not None:
        raise Refused(f"gives a {type(made).__name__} a state that is no attributes")
    return made
