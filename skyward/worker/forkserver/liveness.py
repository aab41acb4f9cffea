"""Whether a process that slots are forked from still answers: one that hangs, unlike one that has died, says nothing.

A liveness probe. While something is awaited of that process, it is looked at every few seconds, and asked what any
process with nothing amiss answers at once, whatever becomes of its slots: one that is being killed may take minutes to
end, and a fork that was passed on is another one's to make. Looks are counted and not seconds, so neither a clock that
jumps nor a sleep of the one that asks is held against the one that is asked. Pure.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple

from skyward.worker.forkserver.protocol import EXITED, FAILED, FORKED, UP

__all__ = ["LIMITS", "Limits", "Look", "Probe"]

_LOOKS = 12  # that a question may remain open


class Limits(NamedTuple):
    """When a process that slots are forked from counts as hung.

    Attributes
    ----------
    answer
        Seconds for which it may leave a question open.
    start
        Seconds that it may take until it is up. Imports of some minutes are nothing unusual on a busy machine with slow
        disks, so this is the driver's own limit for the first slots of a node, `Timing.ready`.
    """

    answer: float = 60.0
    start: float = 600.0

    @property
    def period(self) -> float:
        """Seconds between two looks."""
        return self.answer / _LOOKS


LIMITS = Limits()


class Look(Enum):
    """What a look leads to: nothing is awaited, and none need follow; ask; wait for the answer; or it hangs."""

    REST = auto()
    ASK = auto()
    WAIT = auto()
    HUNG = auto()


class Probe:
    """Watches one process; the question is `protocol.ECHO`.

    Parameters
    ----------
    start
        Looks that it may take until it is up; None if it is.
    """

    def __init__(self, start: int | None = None) -> None:
        self._start = start
        self._born: set[int] = set()  # slots that are to be made
        self._ended: set[int] = set()  # slots that are to end
        self._silent: int | None = None if start is None else 0  # looks since the question, or since it was started

    def __repr__(self) -> str:
        return f"<Probe {len(self._born)} to be made, {len(self._ended)} to end, silent for {self._silent} looks>"

    @property
    def is_up(self) -> bool:
        """Whether it has begun to answer."""
        return self._start is None

    @property
    def is_needed(self) -> bool:
        """Whether looks are to be taken."""
        return bool(self._silent is not None or self._born or self._ended)

    def awaits(self, slot: int) -> bool:
        """Whether this slot is still to be made."""
        return slot in self._born

    def forks(self, slot: int) -> None:
        """It was told to make a slot."""
        self._born.add(slot)

    def kills(self, slot: int) -> None:
        """It was told to kill a slot that it has, or will have made by then."""
        self._ended.add(slot)

    def heard(self, what: int, slot: int) -> None:
        """It has said something, and so answered what was asked before."""
        if what == UP:
            self._start = None
        if what in (FORKED, FAILED, EXITED):
            self._born.discard(slot)
        if what in (FAILED, EXITED):
            self._ended.discard(slot)
        if self._start is None:
            self._silent = None

    def look(self) -> Look:
        """Look, which is to be done every `Limits.period` seconds while it is needed."""
        if self._silent is None:
            if not self.is_needed:
                return Look.REST
            self._silent = 0
            return Look.ASK
        self._silent += 1
        return Look.HUNG if self._silent >= (self._start or _LOOKS) else Look.WAIT
