"""What front ends send ahead of each call: it is loaded in the slot before anything of the call is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from skyward.core.payload import pickling

__all__ = ["FORERUNNERS", "SLOTS_ONLY", "Preceded", "preceded"]

FORERUNNERS: list[Callable[[Any], object | None]] = []
"""Each returns what to send ahead to the pool that it is given; None for nothing. Called for each task."""

SLOTS_ONLY: set[Callable[..., None]] = set()
"""Functions that pickles call in front of a call, and that must not be called where a call is loaded in the driver."""

_Call: TypeAlias = tuple[Any, Any, Any]


class Preceded(tuple[Any, ...]):  # noqa: SLOT001 - a tuple can only have empty slots
    """A call with what is loaded before it; its pickle loads as the plain call."""

    first: tuple[object, ...]
    call: _Call

    def __reduce__(self) -> Any:
        return _second, (self.first, self.call)


pickling.PLAIN[Preceded] = lambda both: (both.first, both.call)


def preceded(call: _Call, pool: object) -> Any:
    """Return a call with what is to be loaded before it, if there is anything.

    Parameters
    ----------
    call
        Function, arguments and keyword arguments, or what loads as that.
    pool
        The pool that it is sent to.
    """
    first: list[object] = []
    for make in FORERUNNERS:
        if (made := make(pool)) is not None:
            first.append(made)
    if not first:
        return call
    both = Preceded(call)
    both.first, both.call = tuple(first), call
    return both


def _second(_: object, call: _Call) -> _Call:
    """Return the call; called by the pickle, which loads the first part before the second."""
    return call
