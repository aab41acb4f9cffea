"""Which offer to order next: the candidates, the orders that are out, and why others were refused. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from skyward.core.errors import CloudError, NoCapacity, QuotaExceeded, SkywardError
from skyward.core.machines.budget import Terms
from skyward.core.machines.fleet_events import Candidate, Create
from skyward.core.machines.fleet_state import SourceState
from skyward.core.machines.refusals import reaches
from skyward.core.spec import Machine

__all__ = ["NO_CAPACITY_REST", "OrderBook", "is_spot"]

NO_CAPACITY_REST = 60.0
"""Seconds for which an offer is not tried again when there was no machine of its kind."""

_REST: dict[type[SkywardError], float] = {NoCapacity: NO_CAPACITY_REST, QuotaExceeded: 600.0, CloudError: 30.0}
_LONG_REST = 600.0  # seconds, for refusals that will hardly differ next time
_MAX_REFUSALS = 20  # in a row, of a source's spot machines or of its others, after which all of that kind rest


class OrderBook:
    """The orders of one fleet.

    Parameters
    ----------
    candidates
        Offers in the order in which to try them.
    tag
        The pool's; names of orders begin with it.

    Attributes
    ----------
    out
        Orders without an answer yet: name -> (candidate, count).
    placed
        Every order -> the source whose state its machines belong to.
    terms
        Every order that a budget pays for -> the terms of each of its machines.
    """

    def __init__(self, candidates: Sequence[Candidate], tag: str) -> None:
        self.candidates = list(candidates)
        self.out: dict[str, tuple[int, int]] = {}
        self.placed: dict[str, int] = {}
        self.terms: dict[str, Terms] = {}
        self._tag = tag
        self._last = 0
        self._resting: dict[int, float] = {}  # candidate -> until when
        self._refusals: list[tuple[float, SkywardError]] = []  # each with the number of the last order at that time

    def __repr__(self) -> str:
        return f"<OrderBook {len(self.out)} orders out of {self._last}>"

    @property
    def count(self) -> int:
        """Machines in the orders that are out."""
        return sum(count for _, count in self.out.values())

    @property
    def refusals(self) -> list[SkywardError]:
        """Why orders were refused; refusals older than the last order that did bring machines are forgotten."""
        return [error for _, error in self._refusals]

    @property
    def due_times(self) -> Iterable[float]:
        """When candidates that rest may be tried again."""
        return self._resting.values()

    def out_at(self, source: int) -> int:
        """How many orders are out at a source."""
        return sum(self.candidates[number].source == source for number, _ in self.out.values())

    def note(self, error: SkywardError, *, lasting: bool = False) -> None:
        """Remember why a machine could not be provisioned; `lasting`: also when later orders bring machines."""
        self._refusals.append((math.inf if lasting else self._last, error))

    def choice(
        self, states: Sequence[SourceState], now: float, pays: Callable[[Candidate], bool] = lambda _: True
    ) -> int | None:
        """The candidate to try now: the first free one; at a source with denials, the one least like what was denied.

        Parameters
        ----------
        states
            Of all sources.
        now
            The time; minus infinity asks whether any candidate does not rest.
        pays
            Whether a candidate can be paid for.
        """
        free = (number for number in self._free(states, now) if pays(self.candidates[number]))
        first = next(free, None)
        if first is None:
            return None
        source = self.candidates[first].source
        denials = states[source].denials
        if not denials:
            return first
        same = (number for number in free if self.candidates[number].source == source)
        return min([first, *same], key=lambda number: denials.rank(self.candidates[number].offer))

    def free(self, states: Sequence[SourceState], now: float) -> Iterator[Candidate]:
        """The candidates that may be tried now.

        Parameters
        ----------
        states, now
            See `choice`.
        """
        return (self.candidates[number] for number in self._free(states, now))

    def _free(self, states: Sequence[SourceState], now: float) -> Iterator[int]:
        for number, candidate in enumerate(self.candidates):
            if self._resting.get(number, -math.inf) <= now and not states[candidate.source].blind:
                yield number

    def wake(self, number: int) -> Candidate:
        """End a candidate's rest, since it is tried now."""
        self._resting.pop(number, None)
        return self.candidates[number]

    def place(self, number: int, count: int, terms: Terms | None = None) -> Create:
        """Order machines.

        Parameters
        ----------
        number
            Which candidate.
        count
            How many machines.
        terms
            Of each of them; None without a budget.
        """
        candidate = self.candidates[number]
        self._last += 1
        name = f"{self._tag}-{self._last}"
        self.out[name], self.placed[name] = (number, count), candidate.source
        if terms is None:
            return Create(name, candidate, count)
        self.terms[name] = terms
        return Create(name, candidate, count, terms.seconds)

    def made(self, order: str, machines: Sequence[Machine], now: float) -> Candidate:
        """Record that an order was carried out; returns its candidate.

        Parameters
        ----------
        order, machines
            The order's name, and what it made; nothing means that there is no capacity.
        now
            The time.
        """
        number, _ = self.out.pop(order)
        placed = int(order.rpartition("-")[2])
        self._refusals = [refusal for refusal in self._refusals if refusal[0] >= placed]
        if not machines:
            self._resting[number] = now + NO_CAPACITY_REST
        return self.candidates[number]

    def refused(self, order: str, error: SkywardError) -> tuple[int, int]:
        """Record that an order was refused; returns its candidate's number and its count."""
        self.note(error)
        return self.out.pop(order)

    def rest(self, number: int, error: SkywardError, in_a_row: int, now: float) -> None:
        """Let a candidate rest that was refused, and all others of its source that would be refused too.

        Parameters
        ----------
        number, error
            Which one, and why.
        in_a_row
            Refusals in a row of the source's spot machines, or of its others, as the candidate is one or not.
        now
            The time.
        """
        candidate = self.candidates[number]
        seconds = next((seconds for kind, seconds in _REST.items() if isinstance(error, kind)), _LONG_REST)
        for other, known in enumerate(self.candidates):
            alike = in_a_row >= _MAX_REFUSALS and is_spot(known) == is_spot(candidate)
            alike = alike or reaches(error, candidate.offer, known.offer)
            if other == number or (known.source == candidate.source and alike):
                self._resting[other] = max(self._resting.get(other, now), now + seconds)

    def rest_until(self, candidate: Candidate, until: float) -> None:
        """Let a candidate rest whose machine did not come up."""
        self._resting[self.candidates.index(candidate)] = until

    def owner(self, machine: Machine) -> int | None:
        """The source that ordered a machine, or was the first to show it; None if that is not known."""
        return self.placed.get(machine.order or machine.id)

    def belongs_to(self, machine: Machine, source: int) -> bool:
        """Whether a machine that a poll shows is this source's to use or to terminate.

        Another source of the same account may show it as well. While its order is out, the reply will tell; if it is
        not, the reply was lost. A machine whose order nobody knows belongs to the first source that shows it.
        """
        name = machine.order or machine.id
        lost = None if self.out_at(source) else source
        return self.placed.get(name, lost) == source and name not in self.out


def is_spot(candidate: Candidate) -> bool:
    """Whether the candidate is a spot machine."""
    return candidate.offer is not None and candidate.offer.spot
