"""Which slot has which number for tasks, and which slots wait until the GPUs of another are free. Pure.

Without GPUs a number is free as soon as its slot is killed. A GPU is free when the slot's process has ended, because
only then has the kernel cleaned up after it: as many slots as there are shares of GPUs have numbers, and others wait.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from skyward.core.whoami import Seats

__all__ = ["Seating"]

_Request = TypeVar("_Request")
_FREE = 60.0  # seconds that a slot may wait for the GPUs of one that was killed


class Seating(Generic[_Request]):
    """The numbers of one fork server's slots.

    Parameters
    ----------
    shares
        How many shares of GPUs there are; 0 if slots have none of their own.

    Attributes
    ----------
    seated
        The number for tasks of each slot, unless threads share the slot or it is being killed.
    """

    def __init__(self, shares: int) -> None:
        self.seated: dict[int, int] = {}
        self._shares = shares
        self._seats = Seats()
        self._waiting: dict[int, tuple[_Request, float]] = {}  # what was asked for, and until when it waits

    def __repr__(self) -> str:
        return f"<Seating of {len(self.seated)}, {len(self._waiting)} waiting>"

    @property
    def has_place(self) -> bool:
        """Whether a further slot can be made now."""
        return not self._shares or len(self.seated) < self._shares

    def take(self, slot: int) -> int:
        """Give a slot the lowest free number, and return it."""
        seat = self.seated[slot] = self._seats.take()
        return seat

    def release(self, slot: int) -> None:
        """Record that a slot has ended; its number may be reused."""
        if (seat := self.seated.pop(slot, None)) is not None:
            self._seats.release(seat)

    def killed(self, slot: int) -> None:
        """Record that a slot is about to end, while its successor may already have been requested."""
        if not self._shares:
            self.release(slot)

    # --- slots that wait ---

    def wait(self, slot: int, request: _Request, now: float) -> None:
        """Let a slot wait for a place.

        Parameters
        ----------
        slot, request
            Its number, and what was asked for.
        now
            The time, in seconds.
        """
        self._waiting[slot] = request, now + _FREE

    def withdraw(self, slot: int) -> _Request | None:
        """Stop a slot's wait; return its request, if it waited."""
        found = self._waiting.pop(slot, None)
        return None if found is None else found[0]

    def due(self, now: float) -> Iterator[tuple[int, _Request, bool]]:
        """Yield each slot whose wait is over, its request, and whether it can be made now; otherwise it is given up."""
        for slot, (request, until) in list(self._waiting.items()):
            if self.has_place or now >= until:
                del self._waiting[slot]
                yield slot, request, self.has_place

    @property
    def next(self) -> float | None:
        """When the first one is given up; None if none waits."""
        return min((until for _, until in self._waiting.values()), default=None)
