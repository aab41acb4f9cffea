"""Suites that every provider of rented machines must pass. Derive a test class from the first::

    from skyward.testing.provider import Account, RentalConformance

    class TestMyCloud(RentalConformance):
        @pytest.fixture
        def rental(self):
            with MyFakeCloud() as cloud:
                yield Account(MyCloud(token=cloud.token, url=cloud.url), live=lambda: cloud.everything())

The account may be a real one, as nothing in the suite is a mock: about ten of the cheapest machines are rented for
moments, and everything is released, even if a test fails. `live` must not use the provider, since the provider is
checked against it.

`RentalBootConformance` is for machines that are real and reachable from here: it logs in.
"""

# ruff: noqa: D102 - a test's name says what holds

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from skyward.core.errors import (
    AuthFailed,
    CloudError,
    HostKeyError,
    HostUnreachable,
    LoginRefused,
    NoCapacity,
    ProvisioningError,
    QuotaExceeded,
    RateLimited,
    SkywardError,
)
from skyward.core.interfaces import Provider, Rental, Trait
from skyward.core.machines import offer_selection
from skyward.core.machines.ssh_keys import make_key
from skyward.core.spec import KeyPair, Machine, MachineState, Offer, Resources
from skyward.testing.account import Account, Pool, Suite, check
from skyward.transport.ssh import SSHTransport

__all__ = ["Account", "Pool", "RentalBootConformance", "RentalConformance"]

_MAX_NAME = 50  # characters of an order's name, as Order promises
_MAX_MESSAGE = 2000  # characters of an error, which should not contain a proxy's whole page
_IMPATIENCE = 20.0  # seconds within which a permanent refusal must be raised

_FAULTS: dict[str, type[SkywardError]] = {
    "no_capacity": NoCapacity,
    "quota": QuotaExceeded,
    "throttle": RateLimited,
    "server_error": CloudError,
    "html": CloudError,
    "lost_reply": CloudError,
}


def _shows(pool: Pool, ids: Collection[str]) -> bool:
    return {machine.id for machine in pool.machines()} == set(ids)


class RentalConformance(Suite):
    """What every provider of rented machines must do. Subclasses define the fixture `rental`."""

    def secrets(self, provider: Rental) -> dict[str, object]:
        """Arguments of the provider that `settings` leaves out; by default the fields marked with `SECRET`."""
        kind: Any = type(provider)  # a Protocol says nothing about dataclasses
        fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
        secret = (item.name for item in fields if item.metadata.get("secret"))
        return {name: value for name in secret if (value := getattr(provider, name)) is not None}

    def bogus(self, offer: Offer) -> Offer | None:
        """An offer that the cloud does not know; None if there can be none."""
        return replace(offer, machine="no-such-machine")

    # --- attributes ---

    def test_its_attributes_are_valid(self, rental: Account) -> None:
        provider = rental.provider
        assert isinstance(provider, Provider)
        assert isinstance(provider, Rental)
        assert provider.name
        assert {Trait.RENTED, Trait.DESTROYS} <= provider.traits
        assert Trait.DRIVER_ENVIRONMENT not in provider.traits
        assert min(provider.patience, provider.listing_delay, provider.poll) > 0
        assert provider.patience > provider.poll

    def test_settings_are_json_without_secrets_and_make_an_equal_provider(
        self, rental: Account, pools: Callable[[], Pool]
    ) -> None:
        provider, pool = rental.provider, pools()
        secrets = self.secrets(provider)
        text = json.dumps(provider.settings())
        for name, value in secrets.items():
            assert str(value) not in text, f"settings() reveals the secret {name}"
            assert str(value) not in repr(provider), f"repr() reveals the secret {name}"
        twin = type(provider)(**json.loads(text), **secrets)
        assert twin.settings() == provider.settings()
        made = pool.create(self.choose(twin))
        self.until(lambda: [m.id for m in twin.machines(pool.tag)] == [made.id], lambda: twin.machines(pool.tag))

    def test_it_can_be_pickled_with_its_credentials(self, rental: Account, pools: Callable[[], Pool]) -> None:
        provider, pool = rental.provider, pools()
        made = pool.create(self.choose(provider))  # so that it has connections
        twin = cloudpickle.loads(cloudpickle.dumps(provider))
        assert twin.settings() == provider.settings()
        self.until(lambda: [m.id for m in twin.machines(pool.tag)] == [made.id], lambda: twin.machines(pool.tag))
        pool.provider = twin
        self.release(pool)
        pool.provider = provider
        assert not pool.machines()

    # --- offers ---

    def test_offers_have_sane_values_and_units(self, rental: Account) -> None:
        offers = rental.provider.offers(Resources())
        assert offers
        for offer in offers:
            _check_offer(offer, spot=Trait.SPOT in rental.provider.traits)
        assert len({(o.machine, o.region, o.spot, json.dumps(o.extra, default=str)) for o in offers}) == len(offers)

    def test_requirements_that_no_offer_meets_are_no_error(self, rental: Account) -> None:
        wanted = Resources(machine="no-such-machine", accelerator="no-such-accelerator:64", vcpus=10**6)
        assert not offer_selection.select(rental.provider.offers(wanted), wanted, "cheapest")

    def test_requirements_exclude_no_offer_that_meets_them(self, rental: Account) -> None:
        every = rental.provider.offers(Resources())
        largest = max(every, key=lambda offer: offer.vcpus or 0)
        wanted = Resources(vcpus=largest.vcpus)
        matching = {(o.machine, o.region, o.spot) for o in every if offer_selection.meets(o, wanted)}
        assert matching <= {(o.machine, o.region, o.spot) for o in rental.provider.offers(wanted)}

    # --- a machine's life ---

    def test_a_machine_from_its_order_to_its_end(self, rental: Account, pools: Callable[[], Pool]) -> None:
        provider, pool = rental.provider, pools()
        order = pool.order(self.choose(provider))
        (made,) = provider.create(order)
        check(made, pool, order.name)
        assert made.state in (MachineState.STARTING, MachineState.RUNNING)
        assert rental.live()
        running = self.comes_up(pool, made.id)
        check(running, pool, order.name)
        assert [machine.id for machine in pool.machines()] == [made.id]
        assert [(m.tag, m.order) for m in provider.all_machines() if m.id == made.id] == [(pool.tag, order.name)]
        self.release(pool)
        assert made.id not in [m.id for m in provider.all_machines() if m.state is not MachineState.GONE]
        self.until(lambda: not rental.live(), lambda: f"still live: {rental.live()}")

    def test_names_may_be_long(self, rental: Account, pools: Callable[[], Pool]) -> None:
        provider, pool = rental.provider, pools()
        pool.tag = pool.tag.replace("sky-", f"sky-{'9' * (_MAX_NAME - len(pool.tag) - 2)}", 1)
        order = pool.order(self.choose(provider))
        assert len(order.name) == _MAX_NAME
        (made,) = provider.create(order)
        check(made, pool, order.name)
        self.until(lambda: [m.order for m in pool.machines()] == [order.name], pool.machines)

    def test_pools_see_their_own_machines_only(self, rental: Account, pools: Callable[[], Pool]) -> None:
        provider, ours, theirs = rental.provider, pools(), pools()
        offer = self.choose(provider)
        mine, other = ours.create(offer), theirs.create(offer)
        self.until(lambda: [m.id for m in ours.machines()] == [mine.id], ours.machines)
        self.until(lambda: [m.id for m in theirs.machines()] == [other.id], theirs.machines)
        assert {mine.id, other.id} <= {machine.id for machine in provider.all_machines()}
        assert all(machine.tag.startswith("sky-") for machine in provider.all_machines())
        for stranger in (ours.tag[:-1], f"{ours.tag}0"):
            assert not provider.machines(stranger)
            provider.clear(stranger)
        self.release(ours)
        assert [machine.id for machine in theirs.machines()] == [other.id]
        self.comes_up(theirs, other.id)  # nothing it needs was removed

    def test_terminating_one_machine_leaves_the_others(self, rental: Account, pools: Callable[[], Pool]) -> None:
        provider, pool = rental.provider, pools()
        offer = self.choose(provider)
        first, second = pool.create(offer), pool.create(offer)
        self.until(lambda: {m.id for m in pool.machines()} == {first.id, second.id}, pool.machines)

        def ended() -> bool:
            provider.destroy([first.id])
            return [machine.id for machine in pool.machines()] == [second.id]

        self.until(ended, pool.machines)
        assert self.comes_up(pool, second.id).id == second.id

    def test_termination_may_be_repeated(self, rental: Account, pools: Callable[[], Pool]) -> None:
        provider, pool = rental.provider, pools()
        made = pool.create(self.choose(provider))
        self.release(pool)
        provider.destroy([])
        provider.destroy([made.id])  # unknown by now
        provider.destroy([made.id, made.id])
        provider.clear(pool.tag)
        provider.clear(pool.tag)

    def test_an_unknown_machine_keeps_no_other_alive(self, rental: Account, pools: Callable[[], Pool]) -> None:
        provider, pool = rental.provider, pools()
        offer = self.choose(provider)
        gone = pool.create(offer)
        self.release(pool)
        made = pool.create(offer)

        def ended() -> bool:
            provider.destroy([gone.id, made.id])
            return not pool.machines()

        self.until(ended, pool.machines)

    def test_a_pool_that_rented_nothing_can_be_cleared(self, rental: Account, pools: Callable[[], Pool]) -> None:
        pool = pools()
        assert not pool.machines()
        rental.provider.clear(pool.tag)

    def test_one_order_may_be_for_several(self, rental: Account, pools: Callable[[], Pool]) -> None:
        if Trait.BATCH not in rental.provider.traits:
            pytest.skip("this provider creates one machine at a time")
        pool = pools()
        order = pool.order(self.choose(rental.provider), count=2)
        made = rental.provider.create(order)
        assert 1 <= len(made) <= 2
        assert len({machine.id for machine in made}) == len(made)
        for machine in made:
            check(machine, pool, order.name)
            self.comes_up(pool, machine.id)

    def test_the_same_order_twice_makes_machines_once(self, rental: Account, pools: Callable[[], Pool]) -> None:
        if Trait.SAFE_CREATE not in rental.provider.traits:
            pytest.skip("this provider can't recognize a repeated order")
        pool = pools()
        order = pool.order(self.choose(rental.provider))
        first, second = rental.provider.create(order), rental.provider.create(order)
        assert [machine.id for machine in first] == [machine.id for machine in second]
        self.until(lambda: [m.id for m in pool.machines()] == [first[0].id], pool.machines)

    # --- threads ---

    def test_concurrent_orders_do_not_mix(self, rental: Account, pools: Callable[[], Pool]) -> None:
        pool, other = pools(), pools()
        offer = self.choose(rental.provider)
        orders = [pool.order(offer), other.order(offer), pool.order(offer)]
        with ThreadPoolExecutor(len(orders), "skyward-suite") as threads:
            made = [machines[0] for machines in threads.map(rental.provider.create, orders)]
        assert [(m.order, m.tag) for m in made] == [(order.name, order.tag) for order in orders]
        assert len({machine.id for machine in made}) == len(made)
        for which in (pool, other):
            mine = {machine.id for machine in made if machine.tag == which.tag}
            self.until(functools.partial(_shows, which, mine), which.machines)

    def test_concurrent_queries_do_not_mix(self, rental: Account, pools: Callable[[], Pool]) -> None:
        provider, ours, theirs = rental.provider, pools(), pools()
        offer = self.choose(provider)
        made = {pool.tag: pool.create(offer).id for pool in (ours, theirs)}
        for pool in (ours, theirs):
            self.comes_up(pool, made[pool.tag])
        kinds = {(o.machine, o.region, o.spot) for o in provider.offers(Resources())}

        def query(number: int) -> None:
            pool = (ours, theirs)[number % 2]
            for _ in range(4):
                assert [machine.id for machine in pool.machines()] == [made[pool.tag]]
                assert set(made.values()) <= {machine.id for machine in provider.all_machines()}
                assert {(o.machine, o.region, o.spot) for o in provider.offers(Resources())} & kinds

        with ThreadPoolExecutor(8, "skyward-suite") as threads:
            list(threads.map(query, range(8)))

    # --- refusals ---

    def test_wrong_credentials_are_rejected_at_once(self, rental: Account, pools: Callable[[], Pool]) -> None:
        impostor = rental.impostor
        if impostor is None:
            pytest.skip("no provider with wrong credentials was given")
        pool = pools()
        order = pool.order(self.choose(rental.provider))
        begin = time.monotonic()
        calls: Sequence[Callable[[], object]] = (
            lambda: impostor.create(order),
            lambda: impostor.machines(pool.tag),
            impostor.all_machines,
        )
        for call in calls:
            with pytest.raises(AuthFailed) as caught:
                call()
            self.check_text(caught.value, impostor)
        # These two may notice that there is nothing to do, and make no request.
        for call in (lambda: impostor.destroy(["1"]), lambda: impostor.clear(pool.tag)):
            with contextlib.suppress(AuthFailed):
                call()
        assert time.monotonic() - begin < _IMPATIENCE
        assert not rental.live()

    def test_an_unknown_offer_is_rejected_at_once(self, rental: Account, pools: Callable[[], Pool]) -> None:
        pool = pools()
        bogus = self.bogus(self.choose(rental.provider))
        if bogus is None:
            pytest.skip("every offer is known")
        begin = time.monotonic()
        with pytest.raises(ProvisioningError) as caught:
            rental.provider.create(pool.order(bogus))
        assert not isinstance(caught.value, CloudError), "that would mean that something may have been created"
        assert time.monotonic() - begin < _IMPATIENCE
        self.check_text(caught.value, rental.provider)
        assert not pool.machines()

    @pytest.mark.parametrize("fault", _FAULTS)
    def test_a_fault_while_creating_has_its_error_and_leaves_nothing(
        self, rental: Account, pools: Callable[[], Pool], fault: str
    ) -> None:
        pool = pools()
        order = pool.order(self.choose(rental.provider))
        self._switch_on(rental, fault)
        made: Sequence[Machine] = ()
        try:
            made = rental.provider.create(order)
        except ProvisioningError as error:
            assert isinstance(error, _FAULTS[fault]), f"{type(error).__name__}: {error}"
            self.check_text(error, rental.provider)
            self._in_doubt = isinstance(error, CloudError) and not isinstance(error, RateLimited)
        else:  # the provider may retry a failed call if that is safe
            assert fault not in ("no_capacity", "quota"), "it was refused, but machines were rented anyway"
        self.release(pool)
        self._in_doubt = False
        assert len(made) <= 1
        self.until(lambda: not rental.live(), lambda: f"still live: {rental.live()}")

    @pytest.mark.parametrize("fault", ["throttle", "server_error", "html"])
    def test_a_fault_while_listing_is_retried_or_has_its_error(
        self, rental: Account, pools: Callable[[], Pool], fault: str
    ) -> None:
        provider, pool = rental.provider, pools()
        made = pool.create(self.choose(provider))
        self.comes_up(pool, made.id)
        for call in (pool.machines, provider.all_machines, lambda: provider.clear(f"{pool.tag}0")):
            self._switch_on(rental, fault)
            try:
                call()
            except ProvisioningError as error:
                assert isinstance(error, CloudError), f"{type(error).__name__}: {error}"
                self.check_text(error, provider)
            rental.calm()
        assert [machine.id for machine in pool.machines()] == [made.id], "a failed listing must not show less"

    def check_text(self, error: SkywardError, provider: Rental) -> None:
        """Check what must hold for every error."""
        text = str(error)
        assert provider.name in text.lower(), f"the error does not name the provider: {text}"
        assert len(text) < _MAX_MESSAGE
        assert "<html" not in text.lower(), text
        for name, value in self.secrets(provider).items():
            assert str(value) not in text, f"the error reveals the secret {name}"

    def _switch_on(self, rental: Account, fault: str) -> None:
        if fault not in rental.faults:
            pytest.skip(f"the account has no fault {fault!r}")
        rental.faults[fault]()


def _check_offer(offer: Offer, *, spot: bool) -> None:
    assert offer.machine, offer
    assert {type(offer.vcpus), type(offer.memory)} <= {int, type(None)}, offer
    assert offer.vcpus is None or 0 < offer.vcpus < 2**12, offer
    memory = f"{offer.machine}: memory={offer.memory}; is that in bytes?"
    assert offer.memory is None or 2**27 <= offer.memory < 2**46, memory
    assert (offer.accelerator is None) == (offer.accelerators == 0), offer
    assert offer.accelerator_memory is None or 10**9 <= offer.accelerator_memory < 10**12, offer
    assert offer.region is None or offer.region, offer
    assert spot or not offer.spot, "a spot offer of a provider without Trait.SPOT"
    if offer.price is not None:
        assert 0 < offer.price < math.inf, f"{offer.machine}: price={offer.price}; use None if it is unknown"
        # The most expensive core costs a few cents per hour, the cheapest more than a dollar per month.
        cores = (offer.vcpus or 1) + 100 * offer.accelerators
        assert offer.price / cores < 0.7, f"{offer.machine}: price={offer.price}; is that in dollars per hour?"


class RentalBootConformance(Suite):
    """What must hold for machines that can be reached. Subclasses define the fixture `rental`, with real machines."""

    def connect(self, machine: Machine, host_key: str, key: Path) -> str:
        """Log in as core does, and return the user's name there; raises the transport's error if that fails.

        Parameters
        ----------
        machine
            The machine.
        host_key
            The host key that it must present.
        key
            Path of the private key to use.
        """
        options: dict[str, Any] = {"host_key": host_key, "keys": [str(key)], "config": [], "jump": "none"}
        assert machine.endpoint is not None
        endpoint = replace(machine.endpoint, options={**machine.endpoint.options, **options})

        async def log_in() -> str:
            link = await SSHTransport().connect(endpoint, 10.0)
            try:
                return (await link.shell.run("id -un", timeout=10.0)).stdout.strip()
            finally:
                await link.close()

        return asyncio.run(log_in())

    def test_it_presents_our_host_key_and_accepts_our_key_only(
        self, rental: Account, pools: Callable[[], Pool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
        pool = pools()
        order = pool.order(self.choose(rental.provider))
        (made,) = rental.provider.create(order)
        machine = self.comes_up(pool, made.id)
        assert machine.endpoint is not None
        assert order.host_key is not None
        ours, theirs = _written(tmp_path / "ours", pool.key), _written(tmp_path / "theirs", make_key("stranger"))
        host_key = order.host_key.public
        who: list[str] = []

        def accepts_us() -> bool:
            try:
                who.append(self.connect(machine, host_key, ours))
            except (HostUnreachable, HostKeyError, LoginRefused):
                return False
            return True

        self.until(accepts_us, lambda: f"{machine.endpoint} does not accept our key")
        assert who[-1] == machine.endpoint.user
        with pytest.raises(LoginRefused):
            self.connect(machine, host_key, theirs)
        with pytest.raises(HostKeyError):
            self.connect(machine, make_key("impostor").public, ours)


def _written(path: Path, key: KeyPair) -> Path:
    path.touch(0o600)
    path.write_text(key.private)
    return path
