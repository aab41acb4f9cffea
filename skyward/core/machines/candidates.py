"""Asks all providers for their offers, and sorts those that fit by the order in which to try them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from skyward.core.errors import NoOffer, PackagesFailed, SkywardError
from skyward.core.interfaces import Provider
from skyward.core.machines import offer_selection
from skyward.core.machines.fleet_events import Candidate
from skyward.core.machines.plan import Plan
from skyward.core.machines.provider_calls import ProviderCalls, checked_list
from skyward.core.machines.refusals import without_name
from skyward.core.packages.lists import MACHINES, Lack
from skyward.core.spec import Offer, Offers

__all__ = ["find_candidates"]


async def find_candidates(plan: Plan, calls: ProviderCalls, warn: Callable[[str], None]) -> list[Candidate]:
    """What can be ordered, in the order in which to try it.

    Parameters
    ----------
    plan
        What the pool wants, and whom to ask.
    calls
        Calls the providers.
    warn
        Called with a line for the user about each provider, or region of one, that refused while others did not.

    Raises
    ------
    SkywardError
        Nothing can be ordered; the first provider's reason.
    """
    found: list[Candidate] = []
    errors: list[SkywardError] = []
    for source, provider in enumerate(plan.providers):
        try:
            found += [Candidate(source, offer) for offer in await _offers(plan, source, calls, warn)]
        except SkywardError as error:
            errors.append(error)
            if len(plan.providers) > 1:
                warn(_refusal(provider, error))
    if not found:
        raise errors[0]
    if plan.order.allocation == "cheapest":  # across providers, not one after another
        found.sort(key=lambda candidate: _price(candidate.offer))
    return found


async def _offers(plan: Plan, source: int, calls: ProviderCalls, warn: Callable[[str], None]) -> Sequence[Offer | None]:
    provider, order = plan.providers[source], plan.order
    if plan.rental(source) is None:
        return [None]  # it has what it has
    offers = await calls.ask(provider.name, checked_list, Offer, provider.offers, order.resources)
    for error in offers.refused if isinstance(offers, Offers) else ():
        warn(_refusal(provider, error))
    chosen = offer_selection.select(offers, order.resources, order.allocation)
    if not chosen:
        raise NoOffer(f"{provider.name}: {offer_selection.nearest(offers, order.resources, order.allocation)}")
    fitting = await _buildable(plan, provider, chosen, calls, warn)
    if plan.budget is None:
        return fitting
    priced = [offer for offer in fitting if offer.price is not None]
    if not priced:
        raise NoOffer(f"{provider.name}: it does not say what {fitting[0].machine} costs, so budget= can't be enforced")
    return priced


async def _buildable(
    plan: Plan, provider: Provider, offers: Sequence[Offer], calls: ProviderCalls, warn: Callable[[str], None]
) -> Sequence[Offer]:
    """The offers of machines that can have all that nodes need or, if there is none, all that they can't do without."""
    lack = plan.lack
    if lack is None:
        return offers
    kinds = {offer.architecture for offer in offers}
    lacks = {kind: await calls.run(_lack, lack, kind) for kind in kinds}
    whole = [offer for offer in offers if lacks[offer.architecture] is None]
    if whole:
        return whole
    usable = [offer for offer in offers if (known := lacks[offer.architecture]) and not known.is_fatal]
    first = lacks[(usable or offers)[0].architecture]
    assert first is not None
    if not usable:
        raise PackagesFailed(
            f"{provider.name}: {first.text}. Nothing was rented; name a version that has one, in sky.Image(pip=[...]), "
            "or another kind of machine"
        )
    warn(f"{provider.name}: {first.text}, so tasks that need it will fail")
    return usable


def _lack(lack: Callable[[str], Lack | None], architecture: str | None) -> Lack | None:
    """What machines of an architecture lack; of one that is not known, only what all of them do."""
    lacks = [lack(machine) for machine in (MACHINES if architecture is None else (architecture,))]
    return None if None in lacks else lacks[0]


def _refusal(provider: Provider, error: SkywardError) -> str:
    return f"{provider.name}: {without_name(error, provider.name)}"


def _price(offer: Offer | None) -> float:
    return math.inf if offer is None or offer.price is None else offer.price
