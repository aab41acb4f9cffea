"""PURE. For how much time a provider bills a machine, which is rarely exactly the time that it existed."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["BY_THE_SECOND", "Billing"]

_SLACK = 1e-6  # seconds, or fraction of a unit: tolerance for rounding errors


@dataclass(frozen=True, slots=True)
class Billing:
    """How a provider bills the time for which a machine exists.

    Attributes
    ----------
    minimum
        Minimum number of seconds billed.
    unit
        Billing increment in seconds, such as 3600 where started hours are billed in full; 0 for billing by the second.
    """

    minimum: float = 0.0
    unit: float = 0.0

    def seconds(self, lived: float) -> float:
        """Seconds that are billed for a machine that existed for `lived` seconds."""
        seconds = max(self.minimum, lived, 0.0)
        if not self.unit or math.isinf(seconds):
            return seconds
        return max(1, math.ceil(seconds / self.unit - _SLACK)) * self.unit

    def within(self, paid: float) -> float:
        """How long a machine may exist if `paid` seconds are paid for; 0 if that is less than the minimum."""
        if paid + _SLACK < self.minimum:
            return 0.0
        if not self.unit or math.isinf(paid):
            return paid
        return math.floor(paid / self.unit + _SLACK) * self.unit


BY_THE_SECOND = Billing()
