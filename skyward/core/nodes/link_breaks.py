"""When a node is to be given up though it can be reached: its links break, and nothing comes of them in between. Pure.

A link that breaks is made again, and what was not acknowledged is sent again. That cures what a line does. It does not
cure a message that one end can't take: it comes again, and so does the break. Hence breaks are counted.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Breaks", "Progress"]

_FAULTS = 2  # breaks by an error of one end, without progress
_MANY = 10  # breaks by an error in a row of links that did not last, whatever was said in between
_SHORT = 5.0  # seconds; a link that lasted longer was of some use
_IN_A_ROW = 5  # links that broke at once
_PAUSE = 0.1  # seconds before the next link after one that broke at once, doubled each time


class Progress(NamedTuple):
    """How far a conversation has come: numbers of messages.

    Attributes
    ----------
    heard
        All up to this one have come from the node.
    told
        All up to this one have arrived there.
    last
        Was sent last.
    """

    heard: int
    told: int
    last: int


class Breaks:
    """Counts the broken links of one node."""

    def __init__(self) -> None:
        self._faults = 0
        self._short = 0
        self._many = 0
        self._before = Progress(0, 0, 0)

    def __repr__(self) -> str:
        return f"<Breaks {self._faults} by faults, {self._short} at once>"

    @property
    def pause(self) -> float:
        """Seconds to wait before the next try, so that what is wrong for a moment has that moment."""
        return _PAUSE * 2 ** (self._short - 1) if self._short else 0.0

    def count(self, now: Progress, seconds: float, reason: str, *, fault: bool) -> str | None:
        """A link broke; why the node is to be given up, or None to go on.

        Parameters
        ----------
        now
            Of the conversation.
        seconds
            How long the link had lasted.
        reason
            Why it broke.
        fault
            An error of one end is to blame, and not the line.
        """
        before, self._before = self._before, now
        # Each way for itself: what one end can't take holds up one direction only.
        heard, told = now.heard > before.heard, now.told > before.told
        if heard and (told or now.told == now.last):
            self._faults = 0
        self._faults += fault
        self._short = 0 if heard or told or seconds > _SHORT or fault else self._short + 1
        self._many = self._many + 1 if fault and seconds < _SHORT else 0
        if self._faults >= _FAULTS:
            return f"its link broke {self._faults} times for an error, and got no further in between: {reason}"
        if self._many >= _MANY:
            return f"its link broke {self._many} times in a row for an error soon after it was made: {reason}"
        if self._short >= _IN_A_ROW:
            return f"its link broke {self._short} times in a row as soon as it was made: {reason}"
        return None
