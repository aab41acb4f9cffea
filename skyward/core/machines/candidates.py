"""Asks all providers for their offers, and puts those that fit in the order in which to try them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from skyward.core.errors import NoOffer, SkywardError
from skyward.core.interfaces import Provider
from skyward.core.machines import offer_selection
from skyward.core.machines.fleet_events import Candidate
from skyward.core.machines.plan import Plan
from skyward.core.machines.provider_calls import ProviderCalls, checked_list
from skyward.core.machines.refusals import without_name
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
    if plan.budget is None:
        return chosen
    priced = [offer for offer in chosen if offer.price is not None]
    if not priced:
        raise NoOffer(f"{provider.name}: it does not say what {chosen[0].machine} costs, so no budget can be kept")
    return priced


def _refusal(provider: Provider, error: SkywardError) -> str:
    return f"{provider.name}: {without_name(error, provider.name)}"


def _price(offer: Offer | None) -> float:
    return math.inf if offer is None or offer.price is None else offer.price
