"""How long each machine may run, so that all of them together never cost more than the pool may spend. Pure.

A machine is bought with a share of what is left, and the share decides until when it may run: that is known when it is
ordered, so the machine itself can keep to it even if nobody is left who could terminate it. The driver gives a machine
up a little earlier. What a machine did not use goes to those that are bought later.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from skyward.core.billing import BY_THE_SECOND, Billing
from skyward.core.spec import Offer

__all__ = ["MIN_SECONDS", "Budget", "Terms"]

MIN_SECONDS = 300.0
"""Seconds that a machine must be paid for: with fewer it would hardly do more than boot."""

_MARGIN = (30.0, 0.1)  # a machine is given up this long before the end, or this fraction of its time if less
_ENDING = 60.0  # seconds for which a machine that is being terminated may still cost


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms on which a machine was ordered.

    Attributes
    ----------
    price
        US dollars per hour.
    began
        When it was ordered, from when on it may cost money.
    seconds
        How long it may run.
    billing
        How its provider bills that.
    """

    price: float
    began: float
    seconds: float
    billing: Billing = BY_THE_SECOND

    @property
    def ends(self) -> float:
        """When to give it up."""
        longest, part = _MARGIN
        return self.began + self.seconds - min(longest, part * self.seconds)

    @property
    def share(self) -> float:
        """US dollars that it may cost."""
        return self.billing.cost(self.price, self.seconds)

    def cost(self, now: float) -> float:
        """US dollars that it has cost if it ends now."""
        return self.billing.cost(self.price, now - self.began)

    def held(self, ended: float | None = None) -> float:
        """US dollars that must be set aside for it; `ended` is when its provider agreed to terminate it."""
        return self.share if ended is None else min(self.share, self.cost(ended + _ENDING))


class Budget:
    """The budget of one pool.

    Parameters
    ----------
    amount
        US dollars.
    min_nodes
        Machines without which the pool does not start.

    Attributes
    ----------
    spent
        US dollars that machines have cost which no longer exist.
    """

    def __init__(self, amount: float, min_nodes: int = 1) -> None:
        self.amount = amount
        self.min_nodes = min_nodes
        self.spent = 0.0

    def __repr__(self) -> str:
        return f"<Budget of ${self.amount:.4g}, ${self.spent:.4g} of it spent on machines that are gone>"

    def free(self, held: Iterable[float]) -> float:
        """US dollars that are neither spent nor held for a machine that exists or is ordered."""
        return max(0.0, self.amount - self.spent - sum(held))

    def pays_for(self, offer: Offer, missing: int, free: float) -> int:
        """How many of the machines that are missing can be bought of an offer; each runs for `MIN_SECONDS` or longer.

        Parameters
        ----------
        offer
            What may be bought.
        missing
            How many machines are wanted.
        free
            US dollars that are free.
        """
        if not offer.price:
            return missing if offer.price == 0 else 0
        return min(missing, int(free / offer.billing.cost(offer.price, MIN_SECONDS) + 1e-9))

    def terms(self, offer: Offer, machines: int, free: float, now: float) -> Terms:
        """The terms of each machine if that many are rented with all money that is free.

        Parameters
        ----------
        offer
            What may be bought.
        machines
            How many.
        free
            US dollars that are free.
        now
            The time, from which on they cost money.
        """
        price = offer.price or 0.0
        return Terms(price, now, offer.billing.affordable(price, free / machines), offer.billing)

    def why_not(self, offer: Offer, missing: int, free: float) -> str:
        """Why the machines that are missing are not bought, or not all of them.

        Parameters
        ----------
        offer
            What may be bought.
        missing
            How many machines are wanted.
        free
            US dollars that are free.
        """
        left = f"${free:.4g} of budget=${self.amount:.4g} is left" if free < self.amount else f"budget=${free:.4g}"
        each = f"${offer.price:.4g}/h" if offer.price is not None else "an unknown price"
        what = f"{missing} machines" if missing > 1 else "a machine"
        time = f"{offer.billing.seconds(MIN_SECONDS) / 60:.0f} minutes{' each' * (missing > 1)}"
        charge = f" (minimum charge ${offer.billing.minimum_cost:.2g})" if offer.billing.minimum_cost else ""
        return f"{left}, which does not pay for {what} at {each} for {time}{charge}"
