"""PURE. Pays for the machines of a fleet out of its budget: on which terms one is bought, and when it is given up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from skyward.core.errors import BudgetExceeded
from skyward.core.machines.budget import Budget, Terms
from skyward.core.machines.fleet_events import Abandon, Candidate, Command, Exhausted
from skyward.core.machines.fleet_state import OwnedMachine, Phase, SourceState
from skyward.core.machines.order_book import OrderBook
from skyward.core.spec import MachineId

__all__ = ["Purse"]


class Purse:
    """The money of one fleet.

    Parameters
    ----------
    budget
        What it may spend; None: as much as it takes.
    states, orders
        The fleet's sources and orders.

    Attributes
    ----------
    slept
        Seconds for which the fleet's clock has stood still, as that of a laptop does which sleeps, while machines cost.
    """

    def __init__(self, budget: Budget | None, states: Sequence[SourceState], orders: OrderBook) -> None:
        self._budget = budget
        self._states = states
        self._orders = orders
        self.slept = 0.0

    def __repr__(self) -> str:
        return f"<Purse {self._budget}>"

    @property
    def due_times(self) -> Iterator[float]:
        """When machines must be given up."""
        return (owned.terms.ends - self.slept for _, _, owned in self._owned if owned.terms and not owned.spent)

    @property
    def _owned(self) -> Iterator[tuple[SourceState, MachineId, OwnedMachine]]:
        return ((state, id, owned) for state in self._states for id, owned in state.machines.items())

    # --- buying ---

    def terms(self, candidate: Candidate, missing: int, now: float) -> tuple[int, Terms | None]:
        """How many of the machines that are missing can be bought of a candidate, and on which terms each.

        All or none: with fewer, or if the pool could not start with so few, there are no terms.

        Parameters
        ----------
        candidate
            What may be ordered.
        missing
            How many machines are wanted that are neither there nor ordered.
        now
            The time.
        """
        budget, offer = self._budget, candidate.offer
        if budget is None or offer is None:
            return missing, None
        free = self._free(budget, now)
        count = budget.pays_for(offer, missing, free)
        if count == missing:
            return missing, budget.terms(offer, missing, free, now + self.slept)
        return (count if self._orders.placed or count >= budget.least else 0), None

    def refuse(self, candidate: Candidate, missing: int, now: float) -> str:
        """Note that not all of the machines that are missing are bought, and say why.

        Parameters
        ----------
        candidate
            What may be ordered.
        missing
            How many machines are wanted that are neither there nor ordered.
        now
            The time.
        """
        assert self._budget is not None
        assert candidate.offer is not None
        reason = self._budget.why_not(candidate.offer, missing, self._free(self._budget, now))
        self._orders.note(BudgetExceeded(reason))
        return reason

    def _free(self, budget: Budget, now: float) -> float:
        """US dollars for which machines can still be bought."""
        held = [
            owned.terms.held(now + self.slept, ending=owned.phase is Phase.ENDING)
            for _, _, owned in self._owned
            if owned.terms
        ]
        out = [count * self._orders.terms[order].share for order, (_, count) in self._orders.out.items()]
        doubtful = [count * terms.share for state in self._states for count, terms in state.doubtful]
        return budget.free([*held, *out, *doubtful])

    # --- what machines have cost ---

    def gone(self, owned: OwnedMachine, now: float) -> None:
        """Note that a machine no longer exists."""
        if self._budget is not None and owned.terms is not None:
            self._budget.spent += owned.terms.cost((owned.since if owned.accepted else now) + self.slept)

    def doubt(self, state: SourceState, order: str, count: int) -> None:
        """Note that nobody knows whether an order was carried out.

        Parameters
        ----------
        state
            The source.
        order, count
            The order's name, and for how many machines it is.
        """
        if (terms := self._orders.terms.get(order)) is not None:
            state.doubtful.append((count, terms))

    def settle_doubts(self, state: SourceState, now: float) -> None:
        """Decide, from a poll, what orders have cost whose replies were lost: all, if their machines may be gone."""
        for count, terms in state.doubtful:
            found = any(owned.terms is terms for owned in state.machines.values())
            if self._budget is not None and not found and now + self.slept >= terms.began + terms.seconds:
                self._budget.spent += count * terms.share
        state.doubtful.clear()

    # --- giving machines up ---

    def give_up(self, now: float) -> Iterator[Command]:
        """Give up machines whose share is spent; first say so if no other will run."""
        budget, paid = self._budget, now + self.slept
        alive = [found for found in self._owned if found[2].phase is not Phase.ENDING and not found[2].spent]
        due = [found for found in alive if (terms := found[2].terms) is not None and paid >= terms.ends]
        if budget is None or not due:
            return
        if len(due) == len(alive) and not self._orders.out and not self._affords_another(budget, now):
            cost = budget.spent + sum(owned.terms.cost(paid) for _, _, owned in self._owned if owned.terms)
            reason = f"budget=${budget.amount:.4g} is spent: the machines have cost about ${cost:.4g}"
            self._orders.note(BudgetExceeded(reason))
            yield Exhausted(reason)  # first, so that no task is moved from one machine that ends to the next
        for state, id, owned in due:
            owned.spent = True
            if owned.phase is Phase.SERVING:
                yield Abandon(state.number, id, f"its share of budget=${budget.amount:.4g} is spent")
            else:
                owned.end(now)

    def _affords_another(self, budget: Budget, now: float) -> bool:
        """Whether another machine of any offer could be bought, or had for nothing."""
        free, offers = self._free(budget, now), [candidate.offer for candidate in self._orders.candidates]
        return any(offer is None or budget.pays_for(offer, 1, free) for offer in offers)
