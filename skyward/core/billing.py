"""PURE. For how long a provider bills a machine that existed for some time: rarely for exactly that."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["BY_THE_SECOND", "Billing"]

_SLACK = 1e-6  # seconds, and parts of a unit: what sums of floats may be off


@dataclass(frozen=True, slots=True)
class Billing:
    """How a provider bills the time for which a machine exists.

    Attributes
    ----------
    minimum
        Seconds that are billed at least.
    unit
        Seconds of which whole multiples are billed, such as 3600 where each hour that has begun counts; 0 where it is
        by the second.
    """

    minimum: float = 0.0
    unit: float = 0.0

    def seconds(self, lived: float) -> float:
        """How many seconds are billed for a machine that existed for so many."""
        least = max(self.minimum, lived, 0.0)
        if not self.unit or math.isinf(least):
            return least
        return max(1, math.ceil(least / self.unit - _SLACK)) * self.unit

    def within(self, paid: float) -> float:
        """For how many seconds a machine may exist if so many are paid for; 0 if these are not even the minimum."""
        if paid + _SLACK < self.minimum:
            return 0.0
        if not self.unit or math.isinf(paid):
            return paid
        return math.floor(paid / self.unit + _SLACK) * self.unit


BY_THE_SECOND = Billing()
