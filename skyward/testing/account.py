"""A cloud account, and the pools that a suite opens there and always releases; see provider.py."""

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
        The provider, with valid credentials.
    live
        Lists what would still be billed or clutter the account: machines, volumes, keys, firewalls. It must not use the
        provider.
    impostor
        The same provider with credentials that the cloud rejects.
    faults
        Switches that make the next call fail, once: "no_capacity", "quota" and "lost_reply" (machines are created, but
        the connection ends without a reply) for calls that create; "throttle", "server_error" and "html" (a proxy's
        page) for any call. Tests of missing faults are skipped.
    calm
        Turns all faults off.
    """

    provider: Rental
    live: Callable[[], Collection[object]]
    impostor: Rental | None = None
    faults: Mapping[str, Callable[[], None]] = field(default_factory=dict)
    calm: Callable[[], None] = lambda: None


class Pool:
    """A tag, and orders with it, as a pool makes them."""

    def __init__(self, provider: Rental) -> None:
        self.provider = provider
        self.tag = f"sky-{os.getpid()}-{next(_numbers)}-{os.urandom(3).hex()}"
        self.key = make_key(self.tag)
        self._orders = itertools.count(1)

    def __repr__(self) -> str:
        return f"<Pool {self.tag} at {self.provider.name}>"

    def order(self, offer: Offer, count: int = 1, orphan_timeout: float = 600.0) -> Order:
        """Make the next order.

        Parameters
        ----------
        offer
            The offer to take.
        count
            Number of machines.
        orphan_timeout
            Seconds without contact after which a machine terminates itself.
        """
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
        """Create one machine."""
        (machine,) = self.provider.create(self.order(offer))
        return machine

    def machines(self) -> list[Machine]:
        """The machines that are not gone."""
        return [machine for machine in self.provider.machines(self.tag) if machine.state is not MachineState.GONE]


class Suite:
    """What all suites share. Subclasses define the fixture `rental`."""

    time_limit = 60.0
    """Seconds for a machine to boot, to end, or to be listed."""
    pause = 0.1
    """Seconds between two polls; use more if the API limits their rate."""
    resources = Resources()
    """What the rented machines must have; the cheapest are chosen."""

    @pytest.fixture
    def rental(self) -> Account:
        """The account; new for each test, or shared."""
        raise NotImplementedError

    @pytest.fixture
    def pools(self, rental: Account) -> Iterator[Callable[[], Pool]]:
        """Make pools. At the end everything is released, and nothing may be live."""
        begun: list[Pool] = []

        def begin() -> Pool:
            begun.append(Pool(rental.provider))
            return begun[-1]

        yield begin
        rental.calm()
        for pool in begun:
            self.release(pool)
        self.until(lambda: not rental.live(), lambda: f"still live, unknown to the provider: {rental.live()}")

    def choose(self, provider: Provider) -> Offer:
        """Choose the offer to rent."""
        chosen = offer_selection.select(provider.offers(self.resources), self.resources, "on-demand")
        assert chosen, f"no offer meets {self.resources}"
        return chosen[0]

    def until(self, condition: Callable[[], bool], what: Callable[[], object]) -> None:
        """Wait for a condition; while calls fail, it does not hold yet."""
        end = time.monotonic() + self.time_limit
        while True:
            trouble: SkywardError | None = None
            try:
                if condition():
                    return
            except CloudError as error:
                trouble = error
            assert time.monotonic() < end, f"timeout after {self.time_limit:g} s: {what()} {trouble or ''}"
            time.sleep(self.pause)

    def release(self, pool: Pool) -> None:
        """Terminate a pool's machines and remove the rest, as core does."""
        provider = pool.provider
        shown_after = time.monotonic() + provider.listing_delay

        def gone() -> bool:
            left = [machine.id for machine in pool.machines()]
            if left:
                provider.destroy(left)
            # What was created by a call whose reply was lost may be listed later.
            return not left and (not self._in_doubt or time.monotonic() > shown_after)

        self.until(gone, lambda: f"{pool} still has machines: {pool.machines()}")

        def cleared() -> bool:
            provider.clear(pool.tag)
            return True

        self.until(cleared, lambda: f"{pool} can't be cleared")

    _in_doubt = False  # an order failed, and it may have created something

    def comes_up(self, pool: Pool, id: str) -> Machine:
        """Wait until a machine runs, checking it meanwhile, and return it."""
        found: list[Machine] = []

        def running() -> bool:
            machine = next((machine for machine in pool.machines() if machine.id == id), None)
            if machine is not None:
                check(machine, pool)
                assert machine.state in (MachineState.STARTING, MachineState.RUNNING), machine
                found.append(machine)
            return machine is not None and machine.state is MachineState.RUNNING

        self.until(running, lambda: f"{id} is not running: {found[-1:]}")
        return found[-1]


def check(machine: Machine, pool: Pool, name: str | None = None) -> None:
    """Check what must hold for every listed machine, in any state.

    Parameters
    ----------
    machine
        The machine.
    pool
        The pool it belongs to.
    name
        Name of its order, if known.
    """
    assert type(machine.id) is str
    assert machine.id
    assert machine.tag == pool.tag
    assert machine.order.startswith(f"{pool.tag}-")
    assert name in (None, machine.order)
    assert machine.name
    if machine.state is MachineState.RUNNING:
        assert machine.endpoint is not None, "a running machine must have an endpoint"
    if machine.endpoint is not None:
        assert machine.endpoint.host
        assert machine.endpoint.port is None or 0 < machine.endpoint.port < 65536
        assert machine.endpoint.transport != "ssh" or machine.endpoint.user, "an SSH endpoint must have a user"
