"""Exceptions that are hard to send: they don't pickle, or don't load, or can't even say what they are."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any, Self

__all__ = ["Riddle", "is_odd", "odd"]


class _Named(Exception):
    def __init__(self, *, number: int) -> None:
        super().__init__(f"odd {number}", number)


class _Holding(Exception):
    def __init__(self, number: int) -> None:
        super().__init__(f"odd {number}")
        self.lock = threading.Lock()


class _Frozen(ValueError):
    def __setattr__(self, *_: object) -> None:
        raise TypeError("frozen")


class _Spiteful(Exception):
    def __reduce__(self) -> Any:
        raise RuntimeError("it does not want to be sent")


class _Unloadable(Exception):
    def __reduce_ex__(self, _: object) -> Any:
        return int, ("no number",)


class _Silent(Exception):
    def __str__(self) -> str:
        raise RuntimeError("it does not say what it is")


class _OtherArguments(Exception):
    def __new__(cls, *args: object) -> Self:
        if args:
            raise TypeError("it takes none")
        return super().__new__(cls)


class _Changeling(Exception):
    def __reduce_ex__(self, _: object) -> Any:
        return ValueError, self.args


class _Recluse(Exception):
    """Which only this module makes."""

    may_be_made = False

    def __new__(cls, *args: object) -> Self:
        if not cls.may_be_made:
            raise TypeError("nobody else may make it")
        return super().__new__(cls, *args)


def _recluse(number: int) -> BaseException:
    _Recluse.may_be_made = True
    try:
        return _Recluse(f"odd {number}")
    finally:
        _Recluse.may_be_made = False


def _bare(number: int) -> BaseException:
    error = _OtherArguments()
    error.args = (f"odd {number}",)
    return error


def _circle(number: int) -> BaseException:
    one, other = ValueError(f"odd {number}"), KeyError("the other")
    one.__cause__, other.__cause__ = other, one
    return one


def _local(number: int) -> BaseException:
    class Local(Exception):
        """Which no module has."""

    return Local(f"odd {number}")


def _noted(number: int) -> BaseException:
    error = LookupError(f"odd {number}")
    error.add_note("a note")
    error.__cause__ = _Holding(number)
    return error


_KINDS: tuple[Callable[[int], BaseException], ...] = (
    lambda number: _Named(number=number),
    _Holding,
    lambda number: _Frozen(f"odd {number}"),
    lambda number: _Spiteful(f"odd {number}"),
    lambda number: _Unloadable(f"odd {number}"),
    lambda number: _Silent(f"odd {number}"),
    lambda number: OSError(number, f"odd {number}", threading.Lock()),
    lambda number: ExceptionGroup("a group", [ValueError(f"odd {number}"), _Holding(number)]),
    lambda number: SystemExit(f"odd {number}"),
    lambda number: UnicodeDecodeError("utf-8", b"\xff", 0, 1, f"odd {number}"),
    _bare,
    _circle,
    _local,
    _noted,
    lambda number: _Changeling(f"odd {number}"),
    _recluse,
)


class Riddle:
    """A result that is sent, and can't be read where it arrives."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return _RIDDLES[self.number % len(_RIDDLES)]


_RIDDLES: tuple[tuple[Any, tuple[Any, ...]], ...] = ((int, ("no number",)), (sys.exit, (3,)), (getattr, (sys, "no")))


def odd(number: int) -> BaseException:
    """Make one of them."""
    return _KINDS[number % len(_KINDS)](number)


def is_odd(error: BaseException, number: int) -> bool:
    """Whether an error that has arrived is that one, or says so."""
    causes: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in causes:
        causes.append(link)
        link = link.__cause__
    return any(f"odd {number}" in text for cause in causes for text in (repr(cause.args), "".join(_texts(cause))))


def _texts(error: BaseException) -> list[str]:
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return [repr(getattr(error, "text", "")), *(repr(each.args) for each in inner)]
