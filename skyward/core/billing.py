"""What a provider bills for a machine: rarely exactly the time that it existed. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["BY_THE_SECOND", "Billing"]

_HOUR = 3600.0
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
    minimum_cost
        Minimum charge for a machine, in US dollars.
    """

    minimum: float = 0.0
    unit: float = 0.0
    minimum_cost: float = 0.0

    def seconds(self, lived: float) -> float:
        """Seconds that are billed for a machine that existed for `lived` seconds."""
        seconds = max(self.minimum, lived, 0.0)
        if not self.unit or math.isinf(seconds):
            return seconds
        return max(1, math.ceil(seconds / self.unit - _SLACK)) * self.unit

    def cost(self, price: float, lived: float) -> float:
        """US dollars that are billed for a machine.

        Parameters
        ----------
        price
            US dollars per hour. If it is 0, nothing is billed.
        lived
            How long the machine existed, in seconds.
        """
        return max(self.minimum_cost, price * self.seconds(lived) / _HOUR) if price else 0.0

    def affordable(self, price: float, dollars: float) -> float:
        """How long a machine may exist, in seconds; 0 if the money is less than the minimum that is billed.

        Parameters
        ----------
        price
            US dollars per hour.
        dollars
            What it may cost.
        """
        if not price:
            return math.inf
        paid = dollars / price * _HOUR
        if paid + _SLACK < self.minimum or dollars * (1 + _SLACK) < self.minimum_cost:
            return 0.0
        if not self.unit or math.isinf(paid):
            return paid
        return math.floor(paid / self.unit + _SLACK) * self.unit


BY_THE_SECOND = Billing()
