"""PURE. Which offers meet what was asked, in which order they are tried, and what is nearest when none does."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from skyward.core.errors import ConfigError
from skyward.core.spec import Allocation, Offer, Resources

__all__ = ["Accelerator", "meets", "nearest", "select"]

_MAKERS = {"NVIDIA", "AMD", "TESLA", "GEFORCE", "INTEL", "QUADRO"}
_SIZE = re.compile(r"(\d+)(?:GB|GIB|G)")
_DEAREST = 5.0  # times the cheapest: more is not paid unless a max_price allows it
_SLACK = 0.9  # an "80 GB" accelerator may report 79.6 GB or 80 GiB


@dataclass(frozen=True, slots=True)
class Accelerator:
    """What ``accelerator="H100:8"`` asks for.

    A name matches a model that has all its words, whatever maker, case, spaces and hyphens: ``"A100"`` and
    ``"a100-80gb"`` match "NVIDIA A100 SXM4 80GB", ``"rtx4090"`` and ``"4090"`` match "RTX 4090". ``"A10"`` matches
    neither "A100" nor "A10G".
    """

    name: str
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Accelerator:
        """From ``"A100"`` or ``"A100:4"``.

        Raises
        ------
        ConfigError
            The count is no positive number, or there is no name.
        """
        name, colon, count = text.partition(":")
        if not _words(name) or (colon and not (count.strip().isdecimal() and int(count) > 0)):
            raise ConfigError(
                f'accelerator={text!r} is not a model or model:count; write for example "A100" or "H100:8"'
            )
        return cls(name.strip(), int(count) if colon else 1)

    def matches(self, offer: Offer) -> bool:
        """Whether the offer has at least so many of this model."""
        if offer.accelerator is None or offer.accelerators < self.count:
            return False
        model = _words(offer.accelerator)
        return all(_is_in(word, model) or _is_size(word, offer) for word in _words(self.name))


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[\s_/-]+", name.upper()) if word and word not in _MAKERS]


def _is_in(word: str, model: Sequence[str]) -> bool:
    """Whether neighbouring words of the model spell the word."""
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
    """Whether an offer has what is asked for; what it does not say counts as not enough."""
    wanted = None if resources.accelerator is None else Accelerator.parse(resources.accelerator)
    return (
        (resources.machine is None or offer.machine == resources.machine)
        and (wanted is None or wanted.matches(offer))
        and (resources.vcpus is None or (offer.vcpus or 0) >= resources.vcpus)
        and (resources.memory is None or (offer.memory or 0) >= int(resources.memory))
        and (not price or resources.max_price is None or _price(offer) <= resources.max_price)
    )


def select(offers: Iterable[Offer], resources: Resources, allocation: Allocation) -> list[Offer]:
    """The offers that meet `resources`, in the order in which to try them; unknown prices come last.

    Where the user gives no `max_price`, offers that cost more than five times the cheapest that stays, or whose price
    is unknown, are left out, and so are accelerators that were not asked for, unless there is nothing else.

    ``"cheapest"`` goes by price alone. ``"spot-if-available"`` takes spot machines first as long as they cost no more
    than the cheapest that stays, and goes by price from there on.
    """
    spot = {"always-spot": True, "on-demand": False}.get(allocation)
    fitting = [offer for offer in offers if meets(offer, resources) and (spot is None or offer.spot is spot)]
    fitting = _reasonable(fitting, resources)
    if allocation == "spot-if-available":
        limit = min((_price(offer) for offer in fitting if not offer.spot), default=math.inf)
        return sorted(fitting, key=lambda offer: (not (offer.spot and _price(offer) <= limit), *_order(offer)))
    return sorted(fitting, key=_order)


def _reasonable(offers: list[Offer], resources: Resources) -> list[Offer]:
    """Without what nobody would have meant to buy who names neither a machine nor a price."""
    if resources.machine is not None:
        return offers
    if resources.accelerator is None:
        offers = [offer for offer in offers if offer.accelerator is None] or offers
    if resources.max_price is None:
        cheapest = min((_price(offer) for offer in offers if not offer.spot), default=math.inf)
        cheapest = min(map(_price, offers), default=math.inf) if cheapest == math.inf else cheapest
        if cheapest < math.inf:
            offers = [offer for offer in offers if _price(offer) <= _DEAREST * cheapest]
    return offers


def _price(offer: Offer) -> float:
    return math.inf if offer.price is None else offer.price


def _order(offer: Offer) -> tuple[float, bool, float, float, str, str]:
    size = (offer.vcpus or math.inf, offer.memory or math.inf)
    return (_price(offer), not offer.spot, *size, offer.machine, offer.region or "")


def nearest(offers: Sequence[Offer], resources: Resources, allocation: Allocation) -> str:
    """What to tell a user whose wish no offer meets: the one thing that is in the way, and what can be had."""
    if not offers:
        return "the provider offers nothing at all with these settings"
    if resources.machine is not None and not any(offer.machine == resources.machine for offer in offers):
        close = _closest((offer.machine for offer in offers), resources.machine)
        return f"there is no machine={resources.machine!r}; the nearest names are {_listed(close)}"
    if resources.accelerator is not None:
        wanted = Accelerator.parse(resources.accelerator)
        if not any(Accelerator(wanted.name).matches(offer) for offer in offers):
            close = _closest((offer.accelerator for offer in offers if offer.accelerator), wanted.name)
            others = f"; the nearest are {_listed(close)}" if close else ", nor any other accelerator"
            return f"nobody offers accelerator={resources.accelerator!r}{others}"
        most = max(offer.accelerators for offer in offers if Accelerator(wanted.name).matches(offer))
        if most < wanted.count:
            return (
                f"no machine has {wanted.count} {wanted.name}; the most is {most}: accelerator='{wanted.name}:{most}'"
            )
    kind = [offer for offer in offers if meets(offer, resources, price=False)]
    if not kind:
        most_vcpus = max((offer.vcpus or 0 for offer in offers), default=0)
        most_memory = max((offer.memory or 0 for offer in offers), default=0)
        return (
            f"no machine has all of this at once; the largest have {most_vcpus} vcpus and {most_memory / 2**30:.0f} GiB"
        )
    cheapest = select(kind, Resources(), allocation)
    if not cheapest:
        sort = "a spot machine" if allocation == "always-spot" else "on demand"
        return f"none of the {len(kind)} fitting offers is {sort}; allocation='spot-if-available' takes both"
    return f"max_price={resources.max_price} is below all; the cheapest is {cheapest[0]}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def _closest(names: Iterable[str], wanted: str) -> list[str]:
    """The names that resemble one most."""
    return sorted(set(names), key=lambda name: (-SequenceMatcher(None, name.upper(), wanted.upper()).ratio(), name))[:5]
