"""When to give up a node that can be reached, since its links keep breaking without progress in between. Pure.

A link that breaks is made again, and what was not acknowledged is sent again. That makes up for faults of the line, but
not for a message that one end can't handle: it arrives again, and the link breaks again. So breaks are counted.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Breaks", "LinkProgress"]

_MAX_FAULTS = 2  # breaks after an error at one end, without progress
_MAX_BRIEF_FAULTS = 10  # consecutive breaks of brief links after an error, whatever was sent in between
_BRIEF = 5.0  # seconds; a link that lasted longer was of some use
_MAX_AT_ONCE = 5  # consecutive links that broke at once
_PAUSE = 0.1  # seconds before the next link after one that broke at once, doubled each time


class LinkProgress(NamedTuple):
    """How far a conversation has come, as numbers of messages.

    Attributes
    ----------
    received
        Every message of the node up to this one has arrived.
    acknowledged
        Every message to the node up to this one has arrived there.
    last
        The last one sent.
    """

    received: int
    acknowledged: int
    last: int


class Breaks:
    """Counts the broken links of one node."""

    def __init__(self) -> None:
        self._faults = 0
        self._at_once = 0
        self._brief_faults = 0
        self._before = LinkProgress(0, 0, 0)

    def __repr__(self) -> str:
        return f"<Breaks {self._faults} by faults, {self._at_once} at once>"

    @property
    def pause(self) -> float:
        """Seconds to wait before the next attempt, so that a brief problem has time to pass."""
        return _PAUSE * 2 ** (self._at_once - 1) if self._at_once else 0.0

    def count(self, now: LinkProgress, seconds: float, reason: str, *, fault: bool) -> str | None:
        """Count a link that broke. Returns why the node should be given up, or None to go on.

        Parameters
        ----------
        now
            How far the conversation has come.
        seconds
            How long the link lasted.
        reason
            Why it broke.
        fault
            Whether an error at one end is to blame, and not the line.
        """
        before, self._before = self._before, now
        # Each direction separately: a message that one end can't handle holds up one direction only.
        received, acknowledged = now.received > before.received, now.acknowledged > before.acknowledged
        if received and (acknowledged or now.acknowledged == now.last):
            self._faults = 0
        self._faults += fault
        self._at_once = 0 if received or acknowledged or seconds > _BRIEF or fault else self._at_once + 1
        self._brief_faults = self._brief_faults + 1 if fault and seconds < _BRIEF else 0
        if self._faults >= _MAX_FAULTS:
            return f"its link broke {self._faults} times after an error, without progress in between: {reason}"
        if self._brief_faults >= _MAX_BRIEF_FAULTS:
            return (
                f"its link broke {self._brief_faults} times in a row after an error, soon after it was made: {reason}"
            )
        if self._at_once >= _MAX_AT_ONCE:
            return f"its link broke {self._at_once} times in a row as soon as it was made: {reason}"
        return None
