"""Tells listeners about rented machines: which exist, what they are, and since when they cost money."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from skyward.core.events import Events, MachineEnded, MachineInfo, MachineMade
from skyward.core.machines.plan import Plan
from skyward.core.spec import Machine, MachineId, Offer

__all__ = ["MachineReports"]


class MachineReports:
    """What listeners know of the machines of one pool.

    Parameters
    ----------
    plan
        What the pool wants, with its providers.
    events
        Gets the events.
    clock
        Returns the time in seconds.
    """

    def __init__(self, plan: Plan, events: Events, clock: Callable[[], float]) -> None:
        self._plan = plan
        self._events = events
        self._clock = clock
        self._offers: dict[str, tuple[Offer, float]] = {}  # each order -> what was ordered, and when
        self._made: set[tuple[int, MachineId]] = set()  # machines that have been reported

    def __repr__(self) -> str:
        return f"<MachineReports of {len(self._made)} machines>"

    def ordered(self, order: str, offer: Offer | None) -> None:
        """An order goes out, of that name."""
        if offer is not None:
            self._offers[order] = offer, self._clock()

    def made(self, source: int, machines: Sequence[Machine]) -> None:
        """Machines exist. May be repeated: the reply to an order may have been lost, so that it is seen later."""
        if self._plan.rental(source) is None:
            return
        for machine in machines:
            if (source, machine.id) not in self._made:
                self._made.add((source, machine.id))
                now = self._clock()
                _, since = self._offers.get(machine.order, (None, now))
                self._events.emit(MachineMade(machine.id, self.info(source, machine), now - since))

    def ended(self, source: int, ids: Sequence[MachineId]) -> None:
        """The provider has agreed to terminate machines."""
        for id in ids:
            if (source, id) in self._made:
                self._events.emit(MachineEnded(id, self._plan.providers[source].name))

    def info(self, source: int, machine: Machine) -> MachineInfo:
        """What is known of a machine."""
        name = self._plan.providers[source].name
        if self._plan.rental(source) is None:
            return MachineInfo(name, machine.name, 0.0)
        offer, _ = self._offers.get(machine.order, (None, 0.0))
        if offer is None:
            return MachineInfo(name)
        return MachineInfo(name, offer.machine, offer.price, offer.spot, offer.region, offer.billing)
