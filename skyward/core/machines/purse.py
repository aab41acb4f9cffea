"""Pays for a fleet's machines out of its budget: on what terms one is bought, and when it is given up. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

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
    now
        The fleet's time.
    slept
        Seconds for which the fleet's clock has stood still, as that of a laptop does which sleeps, while machines cost.
    started
        Whether the pool has had its minimum of nodes.
    """

    def __init__(self, budget: Budget | None, states: Sequence[SourceState], orders: OrderBook) -> None:
        self._budget = budget
        self._states = states
        self._orders = orders
        self.now = -math.inf
        self.slept = 0.0
        self.started = False

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

    def pays(self, candidate: Candidate, machines: int) -> bool:
        """Whether that many machines of a candidate can be paid for, for long enough."""
        return self._payable(candidate, machines) == machines

    def payable(self, missing: int, count: int) -> int:
        """How many of the missing machines can be paid for, with the candidate that allows most.

        0 if the pool could not start with these and the `count` that it has.
        """
        payable = max((self._payable(candidate, missing) for candidate in self._orders.candidates), default=missing)
        return self._enough(payable, count)

    def _enough(self, payable: int, count: int) -> int:
        few = self._budget is not None and not self.started and count + payable < self._budget.min_nodes
        return 0 if few else payable

    def fewer(self, candidates: Iterable[Candidate], missing: int, count: int) -> int:
        """How many of the missing machines to buy now of these candidates, since those that allow more rest.

        0 while money may become free, and if the pool can wait for those that rest.

        Parameters
        ----------
        candidates
            Those that don't rest.
        missing, count
            How many machines are missing, and how many the pool has.
        """
        if self._budget is None or self.is_waiting or count >= self._budget.min_nodes:
            return 0
        payable = self._enough(max((self._payable(candidate, missing) for candidate in candidates), default=0), count)
        return payable if payable < self.payable(missing, count) else 0

    @property
    def is_waiting(self) -> bool:
        """Whether money may become free: from an order without an answer, or a machine that is being terminated.

        Not from one where polls keep being refused: nobody knows when it will end.
        """
        alive = (owned for state, _, owned in self._owned if owned.terms and not state.blind)
        ending = (owned for owned in alive if owned.phase is Phase.ENDING)
        doubtful = any(state.doubtful for state in self._states)
        return bool(self._orders.out) or doubtful or any(not owned.accepted for owned in ending)

    def terms(self, candidate: Candidate, machines: int) -> Terms | None:
        """The terms of each machine if that many are rented with all money that is free; None without a budget."""
        if self._budget is None or candidate.offer is None:
            return None
        return self._budget.terms(candidate.offer, machines, self._free(self._budget), self._paid)

    def refuse(self, missing: int) -> str:
        """Report that not all missing machines are bought, and why."""
        assert self._budget is not None
        offers = [candidate.offer for candidate in self._orders.candidates if candidate.offer is not None]
        cheapest = min(offers, key=lambda offer: math.inf if offer.price is None else offer.price)
        reason = self._budget.why_not(cheapest, missing, self._free(self._budget))
        self._orders.note(BudgetExceeded(reason))
        return reason

    def _payable(self, candidate: Candidate, machines: int) -> int:
        if self._budget is None or candidate.offer is None:
            return machines
        return self._budget.pays_for(candidate.offer, machines, self._free(self._budget))

    @property
    def _paid(self) -> float:
        """The time by which machines are charged."""
        return self.now + self.slept

    def _free(self, budget: Budget) -> float:
        """US dollars for which machines can still be bought."""
        held = [
            owned.terms.held(owned.since + self.slept if owned.phase is Phase.ENDING and owned.accepted else None)
            for _, _, owned in self._owned
            if owned.terms
        ]
        out = [
            count * terms.share
            for order, (_, count) in self._orders.out.items()
            if (terms := self._orders.terms.get(order)) is not None
        ]
        doubtful = [count * terms.share for state in self._states for count, terms in state.doubtful]
        return budget.free([*held, *out, *doubtful])

    # --- what machines have cost ---

    def gone(self, owned: OwnedMachine) -> None:
        """Record that a machine no longer exists."""
        if self._budget is not None and owned.terms is not None:
            self._budget.spent += owned.terms.cost((owned.since if owned.accepted else self.now) + self.slept)

    def doubt(self, state: SourceState, order: str, count: int) -> None:
        """Record that it is unknown whether an order was carried out.

        Parameters
        ----------
        state
            The source.
        order, count
            The order's name, and for how many machines it is.
        """
        if (terms := self._orders.terms.get(order)) is not None:
            state.doubtful.append((count, terms))

    def settle_doubts(self, state: SourceState, since: float) -> None:
        """Decide, from a poll that began at `since`, what orders have cost whose replies were lost.

        Machines that are found pay for themselves. Those that are not may have ended themselves, if they had the time.
        """
        if self._budget is None or since < state.shown_from:
            return  # what was made need not be shown yet
        for count, terms in state.doubtful:
            found = sum(owned.terms is terms for owned in state.machines.values())
            if self._paid >= terms.began + terms.seconds:
                self._budget.spent += max(0, count - found) * terms.share
        state.doubtful.clear()

    # --- giving machines up ---

    def give_up(self) -> Iterator[Command]:
        """Give up machines whose share is spent; first say so if no other will run."""
        budget, paid = self._budget, self._paid
        alive = [found for found in self._owned if found[2].phase is not Phase.ENDING and not found[2].spent]
        due = [found for found in alive if (terms := found[2].terms) is not None and paid >= terms.ends]
        if budget is None or not due:
            return
        more = self._orders.out or any(self._payable(candidate, 1) for candidate in self._orders.candidates)
        if len(due) == len(alive) and not more:
            cost = budget.spent + sum(owned.terms.cost(paid) for _, _, owned in self._owned if owned.terms)
            reason = f"budget=${budget.amount:.4g} is spent: the machines have cost about ${cost:.4g}"
            self._orders.note(BudgetExceeded(reason))
            yield Exhausted(reason)  # first, so that no task is moved from one machine that ends to the next
        for state, id, owned in due:
            owned.spent = True
            if owned.phase is Phase.BEGUN:
                yield Abandon(state.number, id, f"its share of budget=${budget.amount:.4g} is spent", blameless=True)
            else:
                owned.end(self.now)
