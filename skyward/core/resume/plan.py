"""Decides what of a task is to be computed, given what is stored, and puts its result together. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["CallPlan"]


class CallPlan:
    """What is known of the calls of one task before it is submitted.

    Parameters
    ----------
    keys
        The keys of its calls' results, in order.
    known
        Results that were taken from the file, by the numbers of their calls.
    seconds
        How long these took when they were computed.
    """

    __slots__ = ("keys", "known", "missing", "seconds")

    def __init__(self, keys: Sequence[bytes], known: Mapping[int, Any], seconds: float = 0.0) -> None:
        self.keys = keys
        self.known = known
        self.seconds = seconds
        self.missing = [number for number in range(len(keys)) if number not in known]

    def __repr__(self) -> str:
        return f"<CallPlan for {len(self.missing)} of {len(self.keys)} calls>"

    def merge(self, computed: Sequence[Any]) -> list[Any]:
        """Return the results of all calls in order, given those of the missing ones.

        Raises
        ------
        ValueError
            There are more or fewer of them than there should be.
        """
        results = dict(self.known)
        results.update(zip(self.missing, computed, strict=True))
        return [results[number] for number in range(len(self.keys))]
