"""Offers of all providers, in the order in which to try them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from skyward.core.errors import AuthFailed, NoOffer, PackagesFailed, SkywardError
from skyward.core.image import Image
from skyward.core.interfaces import Provider, Trait
from skyward.core.machines.candidates import find_candidates
from skyward.core.machines.fleet_events import Candidate
from skyward.core.machines.plan import Plan
from skyward.core.machines.provider_calls import ProviderCalls
from skyward.core.packages.lists import Lack
from skyward.core.spec import Machine, MachineId, Nodes, Offer, Offers, Order, Resources
from tests.core.memory_agent import QUICK, SETUP


class Shop:
    """Offers, and nothing else."""

    name: ClassVar[str] = "shop"
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.RENTED})

    def __init__(self, offers: Sequence[Offer] | SkywardError) -> None:
        self._offers = offers

    def offers(self, resources: Resources) -> Sequence[Offer]:
        if isinstance(self._offers, SkywardError):
            raise self._offers
        return self._offers

    def create(self, order: Order) -> Sequence[Machine]:
        raise NotImplementedError

    def machines(self, tag: str) -> Sequence[Machine]:
        raise NotImplementedError

    def destroy(self, ids: Sequence[MachineId]) -> None:
        raise NotImplementedError


class Hosts(Shop):
    name: ClassVar[str] = "hosts"
    traits: ClassVar[frozenset[Trait]] = frozenset()


CHEAP, DEAR = Offer("cheap", vcpus=2, price=1.0), Offer("dear", vcpus=2, price=2.0)
DENIED = AuthFailed("shop: no credentials")


def find(
    *providers: Provider,
    allocation: str = "on-demand",
    budget: float | None = None,
    lack: Callable[[str], Lack | None] | None = None,
    **wanted: Any,
) -> tuple[list[Candidate], list[str]]:
    order = replace(Order("tag", 1, Resources(**wanted)), allocation=allocation)
    plan = Plan(providers, Nodes(1, 1), order, Image(), SETUP, QUICK, budget=budget, lack=lack)
    warnings: list[str] = []

    async def main() -> list[Candidate]:
        calls = ProviderCalls()
        try:
            return await find_candidates(plan, calls, warnings.append)
        finally:
            calls.close()

    return asyncio.run(main()), warnings


def test_providers_are_asked_in_order_and_each_ones_offers_sorted() -> None:
    found, warnings = find(Shop([DEAR]), Shop([DEAR, CHEAP]))
    assert found == [Candidate(0, DEAR), Candidate(1, CHEAP), Candidate(1, DEAR)]
    assert warnings == []


def test_cheapest_means_of_all_providers() -> None:
    found, _ = find(Shop([DEAR]), Shop([CHEAP]), allocation="cheapest")
    assert found == [Candidate(1, CHEAP), Candidate(0, DEAR)]


def test_what_is_not_rented_makes_no_offers_and_can_be_ordered() -> None:
    assert find(Hosts(DENIED))[0] == [Candidate(0, None)]


def test_one_that_refuses_is_named_once_and_the_others_are_used() -> None:
    found, warnings = find(Shop(DENIED), Shop([CHEAP]))
    assert found == [Candidate(1, CHEAP)]
    assert warnings == ["shop: no credentials"]


def test_a_region_that_refuses_is_named_beside_the_offers_of_others() -> None:
    found, warnings = find(Shop(Offers([CHEAP], [DENIED])))
    assert found == [Candidate(0, CHEAP)]
    assert warnings == ["shop: no credentials"]


def test_when_nothing_can_be_ordered_the_first_reason_is_raised() -> None:
    with pytest.raises(AuthFailed) as caught:
        find(Shop(DENIED), Shop([]))
    assert caught.value is DENIED
    with pytest.raises(NoOffer, match="shop: no machine has all of this at once"):
        find(Shop([CHEAP]), vcpus=64)


def test_with_a_budget_only_offers_with_a_price_count() -> None:
    """What it will cost must be known."""
    unknown = replace(CHEAP, price=None)
    candidates, _ = find(Shop([unknown, replace(CHEAP, region="there")]), budget=5.0, machine="cheap")
    assert [candidate.offer for candidate in candidates] == [replace(CHEAP, region="there")]
    with pytest.raises(NoOffer, match="does not say what cheap costs, so budget= can't be enforced"):
        find(Shop([unknown]), budget=5.0, machine="cheap")
    assert find(Shop([unknown]), machine="cheap")[0]
    assert find(Hosts([]), budget=5.0)[0] == [Candidate(0, None)]


X86, ARM = replace(DEAR, machine="x86", architecture="x86_64"), replace(CHEAP, machine="arm", architecture="aarch64")


def test_machines_for_which_packages_have_no_build_are_not_taken() -> None:
    def lack(machine: str) -> Lack | None:
        return Lack("fast==1.0 has no build for aarch64", is_fatal=True) if machine == "aarch64" else None

    assert find(Shop([ARM, X86]), lack=lack) == ([Candidate(0, X86)], [])
    assert find(Shop([CHEAP]), lack=lack) == ([Candidate(0, CHEAP)], []), "it may be one that has it"
    with pytest.raises(PackagesFailed, match=r"shop: fast==1\.0 has no build for aarch64\. Nothing was rented"):
        find(Shop([ARM]), lack=lack)
    assert find(Shop([ARM]), Shop([X86]), lack=lack)[0] == [Candidate(1, X86)]
    assert find(Hosts([]), lack=lack)[0] == [Candidate(0, None)], "it costs nothing to look there"


def test_what_may_not_be_needed_is_said_before_a_machine_is_rented_that_can_not_have_it() -> None:
    found, warnings = find(Shop([ARM]), lack=lambda _: Lack("your fast is compiled for Linux x86_64", is_fatal=False))
    assert found == [Candidate(0, ARM)]
    assert warnings == ["shop: your fast is compiled for Linux x86_64, so tasks that need it will fail"]
