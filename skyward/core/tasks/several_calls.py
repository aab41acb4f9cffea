"""Tasks that consist of several of the user's calls, for parts of skyward that treat each call by itself. Pure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

__all__ = ["STAND_INS", "Call", "NoIdentity", "SeveralCalls", "Traceable", "latest"]

Call: TypeAlias = tuple[Callable[..., Any], Sequence[Any], Mapping[str, Any]]
"""Function, arguments, keyword arguments."""


STAND_INS: dict[tuple[str, str], Callable[[Any], object]] = {}
"""Module and name of a class -> what counts of an instance where calls are compared with those of another run: for
classes of others that contain what differs from run to run, and means nothing. May raise `NoIdentity`."""


class NoIdentity(Exception):
    """Something in a call has no identity beyond this process; the text says what."""


class Traceable(ABC):
    """A task of several calls that knows, after a failure in its slot, which of them has failed."""

    __slots__ = ()

    @abstractmethod
    def each(self) -> Sequence[Call]:
        """Return its calls, in order."""

    @abstractmethod
    def reached(self) -> tuple[int, Call] | None:
        """The number of that call, and the call; None if it was none of them."""


def latest(calls: Sequence[Call], progress: Any) -> tuple[int, Call] | None:
    """Return the call that was begun last, for `Traceable.reached`.

    Parameters
    ----------
    calls
        The calls of a task.
    progress
        An iterator over a list with an item for each of them; None if it has not been made. Lists' iterators know how
        much is left, so a task need not count.
    """
    if progress is None:
        return None
    number = len(calls) - progress.__length_hint__() - 1
    return (number, calls[number]) if number >= 0 else None


class SeveralCalls(Traceable):
    """A task that returns the list of the results of several calls. Used in the thread that submits it."""

    __slots__ = ()

    @property
    def context(self) -> bytes:
        """What else the results depend on, such as what runs before the calls; empty for nothing."""
        return b""

    @abstractmethod
    def parts(self) -> Sequence[Call]:
        """Return what counts of its calls, in the order of their results."""

    @abstractmethod
    def only(self, wanted: Sequence[int]) -> SeveralCalls:
        """Return a task of some of the calls, by their numbers in `parts`, in that order."""
