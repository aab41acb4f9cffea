"""Tasks that consist of several of the user's calls, for parts of skyward that treat each call by itself. Pure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

__all__ = ["STAND_INS", "Call", "NoIdentity", "SeveralCalls"]

Call: TypeAlias = tuple[Callable[..., Any], Sequence[Any], Mapping[str, Any]]
"""Function, arguments, keyword arguments."""


STAND_INS: dict[tuple[str, str], Callable[[Any], object]] = {}
"""Module and name of a class -> what counts of an instance where calls are compared with those of another run: for
classes of others that contain what differs from run to run, and means nothing. May raise `NoIdentity`."""


class NoIdentity(Exception):
    """Something in a call has no identity beyond this process; the text says what."""


class SeveralCalls(ABC):
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
