"""Tells equal calls apart: 100 equal draws of a simulation are 100 results. Pure.

A call is one of its *series*, and the key of its result says which. A series consists of the equal calls of one
``Parallel`` call; or of all that one thread submits one by one, with `submit`, `map` or ``>>``. The order within a
series is that of submission, which is the program's. Series with equal calls are numbered as they begin, in the lane of
the thread that makes the call. Threads that have names of their own have a lane each, so it does not matter which of
them is faster. All others share one: what Python calls ``Thread-7`` or ``ThreadPoolExecutor-0_3`` may have another
number in the next run.

How many calls of an abandoned ``Parallel`` were submitted is chance, as it runs ahead of whoever takes the results. So
the number of a call counts within its series, and not from the first call of the program.
"""

from __future__ import annotations

import hashlib
import re
import struct

__all__ = ["Occurrences", "lane_of"]

_COUNT = 40  # bits for the number of equal calls in a series
_UNNAMED = re.compile(r"MainThread|Thread-\d+.*|Dummy-\d+|ThreadPoolExecutor-\d+_\d+|asyncio_\d+", re.DOTALL)


def lane_of(thread: str) -> str:
    """Return the lane of a thread by its name; empty for those whose names Python has made."""
    return "" if _UNNAMED.fullmatch(thread) else thread


class Occurrences:
    """Counts the equal calls of one run. For one thread at a time."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}  # call in a lane -> how many series have it
        # Its number there, and how many came before, as one integer: of small ones there is only one object.
        self._series: dict[int, dict[bytes, int]] = {}

    def __repr__(self) -> str:
        return f"<Occurrences of {len(self._numbers)} calls in {len(self._series)} series>"

    def key(self, call: bytes, lane: str, series: int) -> bytes:
        """Return the key of the result of a call that is being submitted.

        Parameters
        ----------
        call
            Its digest.
        lane
            Where its series is numbered; see `lane_of`.
        series
            Distinguishes the ``Parallel`` calls of this run; 0 for calls that are submitted one by one.
        """
        where = call if not lane else hashlib.blake2b(call + lane.encode("utf-8", "replace"), digest_size=16).digest()
        counts = self._series.setdefault(series, {})
        known = counts.get(where)
        if known is None:
            number = self._numbers.get(where, 0)
            self._numbers[where] = number + 1
            known = number << _COUNT
        counts[where] = known + 1
        return hashlib.blake2b(where + struct.pack("<Q", known), digest_size=16).digest()

    def end(self, series: int) -> None:
        """Forget what only a series needs that has ended."""
        self._series.pop(series, None)
