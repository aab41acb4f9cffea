"""A liveness probe for processes that slots are forked from: one that hangs, unlike one that has died, is silent.

While something is expected of such a process, it is polled every few seconds and asked a question that a healthy
process answers at once, whatever happens to its slots: a killed slot may take minutes to end, and a fork that was
passed on is made by another process. Polls are counted instead of seconds, so neither a clock that jumps nor a sleep of
the process that asks counts against the one that is asked. Pure.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple

from skyward.worker.forkserver.protocol import EXITED, FAILED, FORKED, UP

__all__ = ["LIMITS", "Limits", "Probe", "ProbeState"]

_POLLS = 12  # for which a question may stay unanswered


class Limits(NamedTuple):
    """When a process that slots are forked from counts as hung.

    Attributes
    ----------
    answer
        Seconds for which a question may stay unanswered.
    start
        Seconds until it must be up. Imports may take minutes on a busy machine with slow disks, so this is the
        driver's own limit for the first slots of a node, `Timing.ready`.
    """

    answer: float = 60.0
    start: float = 600.0

    @property
    def period(self) -> float:
        """Seconds between two polls."""
        return self.answer / _POLLS


LIMITS = Limits()


class ProbeState(Enum):
    """What a poll found: idle, so that polling may stop; ask; wait for the answer; or hung."""

    IDLE = auto()
    ASK = auto()
    WAIT = auto()
    HUNG = auto()


class Probe:
    """Watches one process; the question is `protocol.ECHO`.

    Parameters
    ----------
    start
        Number of polls until it must be up; None if it is.
    """

    def __init__(self, start: int | None = None) -> None:
        self._start = start
        self._born: set[int] = set()  # slots that are to be made
        self._ended: set[int] = set()  # slots that are to end
        self._silent: int | None = None if start is None else 0  # polls since the question, or since it was started

    def __repr__(self) -> str:
        return f"<Probe {len(self._born)} to be made, {len(self._ended)} to end, silent for {self._silent} polls>"

    @property
    def is_up(self) -> bool:
        """Whether it has begun to answer."""
        return self._start is None

    @property
    def is_needed(self) -> bool:
        """Whether it should be polled."""
        return bool(self._silent is not None or self._born or self._ended)

    def awaits(self, slot: int) -> bool:
        """Whether this slot is still to be made."""
        return slot in self._born

    def forks(self, slot: int) -> None:
        """It was asked to make a slot."""
        self._born.add(slot)

    def kills(self, slot: int) -> None:
        """It was asked to kill a slot that it has, or will have made by then."""
        self._ended.add(slot)

    def heard(self, what: int, slot: int) -> None:
        """It has sent something, and so answered what was asked before."""
        if what == UP:
            self._start = None
        if what in (FORKED, FAILED, EXITED):
            self._born.discard(slot)
        if what in (FAILED, EXITED):
            self._ended.discard(slot)
        if self._start is None:
            self._silent = None

    def poll(self) -> ProbeState:
        """Poll; to be called every `Limits.period` seconds while `is_needed`."""
        if self._silent is None:
            if not self.is_needed:
                return ProbeState.IDLE
            self._silent = 0
            return ProbeState.ASK
        self._silent += 1
        return ProbeState.HUNG if self._silent >= (self._start or _POLLS) else ProbeState.WAIT
