"""Selects the offers that meet a request, sorts them, and names the nearest ones when none does. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

from skyward.core.errors import ConfigError
from skyward.core.spec import Allocation, Offer, Resources

__all__ = ["AcceleratorRequest", "meets", "nearest", "select"]

_MAKERS = {"NVIDIA", "AMD", "TESLA", "GEFORCE", "INTEL", "QUADRO"}
_SIZE = re.compile(r"(\d+)(?:GB|GIB|G)")
_MAX_FACTOR = 5.0  # times the cheapest price; more is paid only if a max_price allows it
_SLACK = 0.9  # an "80 GB" accelerator may report 79.6 GB or 80 GiB


@dataclass(frozen=True, slots=True)
class AcceleratorRequest:
    """A request such as ``accelerator="H100:8"``.

    A name matches a model that contains all its words, ignoring maker, case, spaces and hyphens: ``"A100"`` and
    ``"a100-80gb"`` match "NVIDIA A100 SXM4 80GB", ``"rtx4090"`` and ``"4090"`` match "RTX 4090". ``"A10"`` matches
    neither "A100" nor "A10G".
    """

    name: str
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> AcceleratorRequest:
        """Parse ``"A100"`` or ``"A100:4"``.

        Raises
        ------
        ConfigError
            The count is not a positive number, or there is no name.
        """
        name, colon, count = text.partition(":")
        if not _words(name) or (colon and not (count.strip().isdecimal() and int(count) > 0)):
            raise ConfigError(
                f'accelerator={text!r} is not a model or model:count; write for example "A100" or "H100:8"'
            )
        return cls(name.strip(), int(count) if colon else 1)

    def matches(self, offer: Offer) -> bool:
        """Whether an offer has at least `count` of this model."""
        if offer.accelerator is None or offer.accelerators < self.count:
            return False
        model = _words(offer.accelerator)
        return all(_is_in(word, model) or _is_size(word, offer) for word in _words(self.name))


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[\s_/-]+", name.upper()) if word and word not in _MAKERS]


def _is_in(word: str, model: Sequence[str]) -> bool:
    """Whether adjacent words of the model spell the word."""
    return any(
        "".join(model[start:end]) == word for start in range(len(model)) for end in range(start + 1, len(model) + 1)
    )


def _is_size(word: str, offer: Offer) -> bool:
    match = _SIZE.fullmatch(word)
    if match is None or offer.accelerator_memory is None:
        return False
    wanted = int(match[1]) * 1e9
    return wanted * _SLACK <= offer.accelerator_memory <= wanted * 2**30 / 1e9 / _SLACK


def meets(offer: Offer, resources: Resources, *, price: bool = True) -> bool:
    """Whether an offer has what is requested. What it does not state counts as insufficient.

    Parameters
    ----------
    offer, resources
        The offer, and the request.
    price
        Whether ``resources.max_price`` counts.
    """
    wanted = None if resources.accelerator is None else AcceleratorRequest.parse(resources.accelerator)
    return (
        (resources.machine is None or offer.machine == resources.machine)
        and (wanted is None or wanted.matches(offer))
        and (resources.vcpus is None or (offer.vcpus or 0) >= resources.vcpus)
        and (resources.memory is None or (offer.memory or 0) >= int(resources.memory))
        and offer.gpus >= resources.gpus
        and (not price or resources.max_price is None or _price(offer) <= resources.max_price)
    )


def select(offers: Iterable[Offer], resources: Resources, allocation: Allocation) -> list[Offer]:
    """Select the offers that meet `resources`, in the order in which to try them; unknown prices come last.

    Without a `max_price`, offers that cost more than five times the cheapest on-demand one, or whose price is unknown,
    are left out; so are accelerators that were not requested, unless there is nothing else.

    Parameters
    ----------
    offers
        Those of one provider.
    resources
        What each node must have.
    allocation
        ``"on-demand"`` and ``"always-spot"`` leave out the other kind. ``"cheapest"`` sorts by price alone.
        ``"spot-if-available"`` takes spot machines first as long as they cost no more than the cheapest on-demand one,
        and sorts by price from there on.
    """
    spot = {"always-spot": True, "on-demand": False}.get(allocation)
    offers = list(offers)
    if resources.machine is not None and not any(offer.accelerators for offer in offers):
        resources = replace(resources, gpus=0)  # the provider lists no GPUs; whoever names a machine knows them
    fitting = [offer for offer in offers if meets(offer, resources) and (spot is None or offer.spot is spot)]
    fitting = _reasonable(fitting, resources)
    if allocation == "spot-if-available":
        limit = min((_price(offer) for offer in fitting if not offer.spot), default=math.inf)
        return sorted(fitting, key=lambda offer: (not (offer.spot and _price(offer) <= limit), *_order(offer)))
    return sorted(fitting, key=_order)


def _reasonable(offers: list[Offer], resources: Resources) -> list[Offer]:
    """Drop offers that no user can have intended who names neither a machine nor a price."""
    if resources.machine is not None:
        return offers
    if resources.accelerator is None and not resources.gpus:
        offers = [offer for offer in offers if offer.accelerator is None] or offers
    if resources.max_price is None:
        cheapest = min((_price(offer) for offer in offers if not offer.spot), default=math.inf)
        cheapest = min(map(_price, offers), default=math.inf) if cheapest == math.inf else cheapest
        if cheapest < math.inf:
            offers = [offer for offer in offers if _price(offer) <= _MAX_FACTOR * cheapest]
    return offers


def _price(offer: Offer) -> float:
    return math.inf if offer.price is None else offer.price


def _order(offer: Offer) -> tuple[float, bool, float, float, str, str]:
    size = (offer.vcpus or math.inf, offer.memory or math.inf)
    return (_price(offer), not offer.spot, *size, offer.machine, offer.region or "")


def nearest(offers: Sequence[Offer], resources: Resources, allocation: Allocation) -> str:
    """Explain why no offer meets a request: what rules them out, and what is available instead.

    Parameters
    ----------
    offers, resources, allocation
        As given to `select`, which has returned nothing.
    """
    if not offers:
        return "the provider has no offers at all with these settings"
    if resources.machine is not None and not any(offer.machine == resources.machine for offer in offers):
        close = _closest((offer.machine for offer in offers), resources.machine)
        return f"no offer has machine={resources.machine!r}; the closest names are {_listed(close)}"
    if resources.accelerator is not None:
        wanted = AcceleratorRequest.parse(resources.accelerator)
        if not any(AcceleratorRequest(wanted.name).matches(offer) for offer in offers):
            close = _closest((offer.accelerator for offer in offers if offer.accelerator), wanted.name)
            others = f"; the closest are {_listed(close)}" if close else ", or any other accelerator"
            return f"no offer has accelerator={resources.accelerator!r}{others}"
        largest = max(offer.accelerators for offer in offers if AcceleratorRequest(wanted.name).matches(offer))
        if largest < wanted.count:
            instead = f"accelerator='{wanted.name}:{largest}'"
            return f"no machine has {wanted.count} {wanted.name}; the maximum is {largest}: {instead}"
    kind = [offer for offer in offers if meets(offer, resources, price=False)]
    if not kind and resources.gpus:
        without = [offer for offer in offers if meets(offer, replace(resources, gpus=0), price=False)]
        if without:
            return _too_few_gpus(max(offer.gpus for offer in without), resources)
    if not kind:
        vcpus = max((offer.vcpus or 0 for offer in offers), default=0)
        memory = max((offer.memory or 0 for offer in offers), default=0)
        return f"no machine has all of this at once; the largest have {vcpus} vCPUs and {memory / 2**30:.0f} GiB"
    cheapest = select(kind, Resources(), allocation)
    if not cheapest:
        market = "a spot machine" if allocation == "always-spot" else "on demand"
        return f"none of the {len(kind)} matching offers is {market}; allocation='spot-if-available' takes both"
    limit = resources.max_price
    return f"no offer costs ${limit}/h or less (max_price={limit}); the cheapest is {cheapest[0]}"


def _too_few_gpus(available: int, resources: Resources) -> str:
    wanted = f"{resources.gpus} GPU{'s' if resources.gpus > 1 else ''}, which Worker(gpus=...) needs on each node"
    if resources.machine is not None:
        return f"machine={resources.machine!r} has {available or 'none'} of the {wanted}"
    if available == 0:
        return f"no offer has {wanted}, as far as the provider says; a machine=... that you name need not be listed so"
    return f"no offer has {wanted}; the maximum is {available}: lower Worker(concurrency=...) or gpus"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def _closest(names: Iterable[str], wanted: str) -> list[str]:
    """The names most similar to one."""
    return sorted(set(names), key=lambda name: (-SequenceMatcher(None, name.upper(), wanted.upper()).ratio(), name))[:5]
