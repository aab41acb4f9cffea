"""An account at a cloud and the pools that a suite has there, whose end it makes sure of; see provider.py."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

import pytest

from skyward.core.errors import CloudError, SkywardError
from skyward.core.interfaces import Provider, Rental
from skyward.core.machines import offer_selection
from skyward.core.machines.ssh_keys import make_key
from skyward.core.spec import Machine, MachineState, Offer, Order, Resources

__all__ = ["Account", "Pool", "Suite", "check"]

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Account:
    """What a provider is tested with.

    Attributes
    ----------
    provider
        The provider, with credentials that hold.
    live
        What would still be billed or clutter the account: machines, volumes, keys, firewalls. Asked past the provider.
    impostor
        The same provider with credentials that the cloud refuses.
    faults
        Switches that make the next call fail, once: "no_capacity", "quota" and "lost_reply" (machines are made, and the
        connection ends without a reply) of those that create; "throttle", "server_error" and "html" (a proxy's page) of
        any. Tests of faults that are not among them are skipped.
    calm
        Switches all faults off.
    """

    provider: Rental
    live: Callable[[], Collection[object]]
    impostor: Rental | None = None
    faults: Mapping[str, Callable[[], None]] = field(default_factory=dict)
    calm: Callable[[], None] = lambda: None


class Pool:
    """A tag, and orders under it, as a pool makes them."""

    def __init__(self, provider: Rental) -> None:
        self.provider = provider
        self.tag = f"sky-{os.getpid()}-{next(_numbers)}-{os.urandom(3).hex()}"
        self.key = make_key(self.tag)
        self._orders = itertools.count(1)

    def __repr__(self) -> str:
        return f"<Pool {self.tag} at {self.provider.name}>"

    def order(self, offer: Offer, count: int = 1, orphan_timeout: float = 600.0) -> Order:
        """The next order."""
        name = f"{self.tag}-{next(self._orders)}"
        return Order(
            *(self.tag, count, Resources()),
            orphan_timeout=orphan_timeout,
            name=name,
            offer=offer,
            host_key=make_key(name),
            user_key=self.key.public,
        )

    def create(self, offer: Offer) -> Machine:
        """One machine."""
        (machine,) = self.provider.create(self.order(offer))
        return machine

    def machines(self) -> list[Machine]:
        """Those that are not gone."""
        return [machine for machine in self.provider.machines(self.tag) if machine.state is not MachineState.GONE]


class Suite:
    """What all suites share. Subclasses define the fixture `rental`."""

    time_limit = 60.0
    """Seconds for a machine to boot, to end, or to be shown."""
    pause = 0.1
    """Seconds between two looks; more where the API counts them."""
    resources = Resources()
    """What the machines must have that are bought; the cheapest are taken."""

    @pytest.fixture
    def rental(self) -> Account:
        """The account; made anew for each test, or shared."""
        raise NotImplementedError

    @pytest.fixture
    def pools(self, rental: Account) -> Iterator[Callable[[], Pool]]:
        """Makes pools. At the end all is given back, and nothing may be live."""
        begun: list[Pool] = []

        def begin() -> Pool:
            begun.append(Pool(rental.provider))
            return begun[-1]

        yield begin
        rental.calm()
        for pool in begun:
            self.give_back(pool)
        self.until(lambda: not rental.live(), lambda: f"still live, unknown to the provider: {rental.live()}")

    def choose(self, provider: Provider) -> Offer:
        """The offer to buy."""
        chosen = offer_selection.select(provider.offers(self.resources), self.resources, "on-demand")
        assert chosen, f"no offer meets {self.resources}"
        return chosen[0]

    def until(self, condition: Callable[[], bool], what: Callable[[], object]) -> None:
        """Wait for a condition; calls that fail on the way count as not yet."""
        end = time.monotonic() + self.time_limit
        while True:
            trouble: SkywardError | None = None
            try:
                if condition():
                    return
            except CloudError as error:
                trouble = error
            assert time.monotonic() < end, f"not within {self.time_limit:g} s: {what()} {trouble or ''}"
            time.sleep(self.pause)

    def give_back(self, pool: Pool) -> None:
        """End a pool's machines and remove the rest, as core does."""
        provider = pool.provider
        shown_after = time.monotonic() + provider.listing_delay

        def gone() -> bool:
            left = [machine.id for machine in pool.machines()]
            if left:
                provider.destroy(left)
            # What a lost reply has made is shown only later.
            return not left and (not self._in_doubt or time.monotonic() > shown_after)

        self.until(gone, lambda: f"{pool} still has {pool.machines()}")

        def cleared() -> bool:
            provider.clear(pool.tag)
            return True

        self.until(cleared, lambda: f"{pool} can't be cleared")

    _in_doubt = False  # an order failed, and it is not known whether it made anything

    def comes_up(self, pool: Pool, id: str) -> Machine:
        """The machine when it runs, having looked at it meanwhile."""
        found: list[Machine] = []

        def running() -> bool:
            machine = next((machine for machine in pool.machines() if machine.id == id), None)
            if machine is not None:
                check(machine, pool)
                assert machine.state in (MachineState.STARTING, MachineState.RUNNING), machine
                found.append(machine)
            return machine is not None and machine.state is MachineState.RUNNING

        self.until(running, lambda: f"{id} does not run: {found[-1:]}")
        return found[-1]


def check(machine: Machine, pool: Pool, name: str | None = None) -> None:
    """What holds of each machine that is shown, in any state."""
    assert type(machine.id) is str
    assert machine.id
    assert machine.tag == pool.tag
    assert machine.order.startswith(f"{pool.tag}-")
    assert name in (None, machine.order)
    assert machine.name
    if machine.state is MachineState.RUNNING:
        assert machine.endpoint is not None, "a machine that runs has an address"
    if machine.endpoint is not None:
        assert machine.endpoint.host
        assert machine.endpoint.port is None or 0 < machine.endpoint.port < 65536
        assert machine.endpoint.transport != "ssh" or machine.endpoint.user, "the name of who logs in"
