"""A provider of simulated machines: slow, forgetful, sometimes refusing, and late in what it shows."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from skyward.core.billing import BY_THE_SECOND, Billing
from skyward.core.builtins_table import OURS
from skyward.core.errors import (
    AuthFailed,
    CloudError,
    LinkError,
    NoCapacity,
    NotFound,
    ProvisioningError,
    QuotaExceeded,
    RateLimited,
)
from skyward.core.events import Note
from skyward.core.interfaces import Link, Provider, Shell, Trait
from skyward.core.scope import Scope
from skyward.core.spec import Endpoint, Machine, MachineId, MachineState, Offer, Order, Resources
from tests.simulation.network import Line
from tests.simulation.node import SECRET
from tests.simulation.world import World

__all__ = ["MARKETS", "Cloud", "Hosts", "SimulatedBuyer", "SimulatedTransport", "registered"]

_MINUTES = Billing(minimum=120.0, unit=60.0)
OFFERS = tuple(
    Offer(name, vcpus=vcpus, memory=2**33, price=price, spot=spot, region=zone, zone_of=zone[:-1], billing=billing)
    for name, vcpus, price, billing in (
        ("small", 4, 0.1, BY_THE_SECOND),
        ("large", 8, 0.3, _MINUTES),
        ("odd", 8, None, BY_THE_SECOND),
    )
    for zone in ("here-a", "here-b", "there-a")
    for spot in (False, True)
)
# What the providers of some worlds offer instead: for nothing, and without saying what it costs.
MARKETS = {
    "": OFFERS,
    "free": tuple(replace(offer, price=0.0) if offer.machine == "small" else offer for offer in OFFERS),
    "unpriced": tuple(replace(offer, price=None) for offer in OFFERS),
}
_REFUSALS: tuple[tuple[type[ProvisioningError], Scope | None], ...] = (
    (NoCapacity, None),
    (NoCapacity, None),
    (NoCapacity, Scope.ZONE),
    (QuotaExceeded, None),
    (QuotaExceeded, Scope.SPOT | Scope.REGION),
    (ProvisioningError, None),
    (ProvisioningError, Scope.OFFER),
    (ProvisioningError, Scope.TYPE),
    (AuthFailed, None),
    (AuthFailed, Scope.REGION),
    (NotFound, Scope.ACCOUNT),
)


class _Record:
    """One machine, as the provider knows it."""

    def __init__(self, machine: Machine, shown_from: float, price: float, by_minutes: bool, made: float) -> None:
        self.machine = machine
        self.shown_from = shown_from
        self.price = price
        self.by_minutes = by_minutes
        self.made = made
        self.ended: float | None = None
        self.hidden_from = float("inf")  # once it has ended, when it is no longer listed
        self.billed = True

    def cost(self, now: float) -> float:
        """US dollars so far: some kinds of machines cost whole minutes, and two at least."""
        seconds = (now if self.ended is None else self.ended) - self.made
        if self.by_minutes:
            seconds = max(120.0, math.ceil(seconds / 60.0 - 1e-6) * 60.0)
        return self.price * seconds / 3600.0


class Cloud:
    """A rental provider.

    Parameters
    ----------
    world
        Whose time it keeps.
    boot
        Starts a machine's agent under a name; returns the name of its host.
    end
        Ends what runs on a host.
    batch
        Whether it creates several machines in one call.
    rented
        Whether its machines cost money; hosts that are the user's own are there at once, and stay when it is over.
    local
        Whether its machines are the driver's own, so that files can be shared.
    striped
        Whether links to its machines have stripes.
    neighbours
        Whether its machines may reach each other.
    first
        Number of its first machine.
    market
        Which of `MARKETS` it offers.
    capacity
        How many machines it has.
    records
        Those of another source that shows the same machines.
    """

    name: ClassVar[str] = "simulated"
    patience: ClassVar[float] = 40.0
    listing_delay: ClassVar[float] = 5.0
    poll: ClassVar[float] = 2.0

    def __init__(
        self,
        world: World,
        boot: Callable[[str], None],
        end: Callable[[str], None],
        *,
        batch: bool,
        rented: bool,
        local: bool,
        striped: bool,
        neighbours: bool,
        first: int,
        market: str = "",
        capacity: float = math.inf,
        records: dict[str, _Record] | None = None,
    ) -> None:
        kinds = (Trait.RENTED, Trait.DESTROYS, Trait.SPOT) if rented else ()
        here = (Trait.DRIVER_ENVIRONMENT,) if local else ()
        self.traits = frozenset({*kinds, *here, *([Trait.BATCH] if batch else [])})
        self.world = world
        self.records: dict[str, _Record] = {} if records is None else records
        # How many more of each there will be.
        self.lost_replies = self.refusals = self.failures = self.duds = self.denials = 0
        self.empty = self.undead = self.slips = 0
        self.capacity = capacity
        self.was_denied = False
        self.down_until = 0.0
        self._boot, self._end, self._offers = boot, end, MARKETS[market]
        self._neighbours = neighbours
        self._transport = StripedTransport if striped else SimulatedTransport
        self._numbers = itertools.count(first)

    def __repr__(self) -> str:
        return f"<Cloud with {sum(record.billed for record in self.records.values())} machines billed>"

    @property
    def is_rented(self) -> bool:
        """Whether its machines cost money."""
        return Trait.RENTED in self.traits

    def settings(self) -> dict[str, object]:
        return {}

    def offers(self, _: Resources) -> Sequence[Offer]:
        return list(self._offers)

    def create(self, order: Order) -> Sequence[Machine]:
        random = self.world.random
        self._may_fail()
        if self.refusals > 0:
            self.refusals -= 1
            kind, scope = self.world.random.choice(_REFUSALS)
            raise kind("simulated: none left", scope=scope)
        if self.capacity - self._taken < order.count:
            raise NoCapacity("simulated: all hosts are in use")
        if self.empty > 0:
            self.empty -= 1
            return []
        made = []
        for _ in range(order.count if random.random() < 0.8 else random.randint(1, order.count)):
            name = f"m-{next(self._numbers)}"
            machine = Machine(
                MachineId(name), None, name, "agent", SECRET, MachineState.STARTING, order.name, order.tag
            )
            price = 0.0 if order.offer is None else order.offer.price or 0.0
            shown = self.world.now + random.uniform(0.0, 0.9 * self.listing_delay)
            by_minutes = order.offer is not None and order.offer.billing is _MINUTES
            self.records[name] = _Record(machine, shown, price, by_minutes, self.world.now)
            if order.deadline is not None and order.deadline < math.inf:  # it keeps to that itself
                self.world.at(order.deadline, lambda name=name: self.stop(name, MachineState.GONE))
            self.world.tell(f"{name} is created")
            if not self.is_rented:
                self._boots(name)
                machine = self.records[name].machine
            elif self.duds > 0:
                self.duds -= 1  # it will never boot
            else:
                self.world.after(random.choice((0.1, 2.0, 10.0)), lambda name=name: self._boots(name))
            made.append(machine)
        if self.lost_replies > 0:
            self.lost_replies -= 1
            raise CloudError("simulated: no reply")
        return made

    @property
    def _taken(self) -> int:
        return sum(record.billed for record in self.records.values())

    def _boots(self, name: str) -> None:
        record = self.records[name]
        if record.machine.state is MachineState.STARTING:
            self._boot(name)
            host = f"10.0.0.{name.removeprefix('m-')}" if self._neighbours else "127.0.0.1"
            endpoint = Endpoint(self._transport.name, host, options={"world": id(self.world), "machine": name})
            record.machine = replace(record.machine, state=MachineState.RUNNING, endpoint=endpoint)

    def machines(self, tag: str) -> Sequence[Machine]:
        self._may_fail()
        now = self.world.now
        shown = [record for record in self.records.values() if record.shown_from <= now < record.hidden_from]
        return [record.machine for record in shown if record.machine.tag == tag]

    def all_machines(self) -> Sequence[Machine]:
        return [record.machine for record in self.records.values()]

    def destroy(self, ids: Sequence[MachineId]) -> None:
        self._may_fail()
        if self.undead > 0:
            self.undead -= 1  # it says that it will, and does not
            return
        for id in ids:
            if self.is_rented:
                self.stop(id, MachineState.GONE)
            else:
                self.records[id].billed = False  # it is forgotten; its agent has to end by itself

    def stop(self, name: str, state: MachineState) -> None:
        """A machine ends: nothing runs there, and soon it is not listed any more."""
        record = self.records.get(name)
        if record is not None and record.billed:
            self.world.tell(f"{name} ends: {state.value}")
            # One that the provider has stopped still costs until it is destroyed.
            record.billed = state is not MachineState.GONE
            record.ended = None if record.billed else self.world.now
            record.machine = replace(record.machine, state=state)
            if not record.billed:
                record.hidden_from = self.world.now + self.world.random.uniform(0.0, self.listing_delay)
            self._end(name)

    def clear(self, _: str) -> None:
        self._may_fail()

    @property
    def cost(self) -> float:
        """US dollars that all machines have cost so far."""
        return sum(record.cost(self.world.now) for record in self.records.values())

    def cost_of(self, seconds: float) -> float:
        """US dollars for which all machines that there have been run for so long."""
        return sum(record.price for record in self.records.values()) * seconds / 3600.0

    def _may_fail(self) -> None:
        if self.denials > 0:
            self.denials -= 1
            self.was_denied = True
            raise AuthFailed("simulated: who are you?")
        if self.world.now < self.down_until:
            self.was_denied = True
            raise CloudError("simulated: the API is out of service")
        if self.failures > 0:
            self.failures -= 1
            raise self.world.random.choice((CloudError, RateLimited))("simulated: the API is down")


class Hosts(Cloud):
    """Machines of the user's own, beside a provider's."""

    name: ClassVar[str] = "simulated-hosts"


class Twin(Cloud):
    """Another region of the same account: it shows, and ends, the first one's machines as well."""

    name: ClassVar[str] = "simulated-twin"


class SimulatedBuyer:
    """What `Buyer` is to a pool, without ledger, keys and reaper."""

    def __init__(self, _: str, rentals: Sequence[Any]) -> None:
        self._cloud: Cloud = rentals[0]

    def buy(self, provider: Provider, order: Order) -> Sequence[Machine]:
        return provider.create(order)

    def end(self, provider: Provider, ids: Sequence[MachineId]) -> None:
        provider.destroy(ids)

    def with_keys(self, machine: Machine) -> Machine:
        return machine

    def reached(self, *_: object) -> None:
        if self._cloud.slips > 0:
            self._cloud.slips -= 1
            raise RuntimeError("simulated: a fault of our own")

    def close(self, _: int) -> Note:
        return Note("closed")


class SimulatedTransport:
    """Reaches simulated machines."""

    name: ClassVar[str] = "simulated"
    striped: ClassVar[bool] = False
    lines: ClassVar[dict[tuple[object, str], Line]] = {}

    async def connect(self, endpoint: Endpoint, timeout: float) -> Link:
        line = self.lines[endpoint.options["world"], str(endpoint.options["machine"])]
        await line.reach(timeout)
        return _Link(line)


class StripedTransport(SimulatedTransport):
    """Reaches simulated machines over several connections."""

    name: ClassVar[str] = "simulated-striped"
    striped: ClassVar[bool] = True


class _Link:
    """A connection that opens channels."""

    shell: Shell | None = None

    def __init__(self, line: Line) -> None:
        self._line = line
        self._channels: list[Any] = []
        self._cuts = line.cuts
        self._is_open = True
        line.links += 1

    async def open_channel(self, address: str) -> Any:
        if len(self._channels) >= self._line.route.channels:
            raise LinkError("the host refuses another channel")
        channel = await self._line.open(self._cuts)
        self._channels.append(channel)
        return channel

    async def close(self) -> None:
        self._line.links -= self._is_open
        self._is_open = False
        for channel in self._channels:
            channel.close()


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """Let pools find the transport, and the other tests find nothing of it."""
    transports = OURS["skyward.transports"]
    ours = (SimulatedTransport, StripedTransport)
    transports.update({transport.name: f"{__name__}:{transport.__name__}" for transport in ours})
    try:
        yield
    finally:
        for transport in ours:
            del transports[transport.name]
