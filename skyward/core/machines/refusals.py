"""What a refused offer says about others: which would be refused too, and which one to try next. Pure.

A provider that says how far its refusal reaches (`Scope`) is believed. Often it does not: a cloud whose policies forbid
spot machines, all types but one, or a region answers each order with the same "not authorized". Then the offers that
differ most from what was refused are tried first, so that a few orders find what is allowed.
"""

from __future__ import annotations

from collections import Counter

from skyward.core.errors import (
    AuthFailed,
    CloudError,
    ConfigError,
    NoCapacity,
    PoolNotActive,
    ProvisioningError,
    QuotaExceeded,
    SkywardError,
)
from skyward.core.scope import Scope
from skyward.core.spec import Offer

__all__ = ["Denials", "reaches", "without_name"]

_BEFORE_OTHERS = 2  # denials on one market (spot or not) of a region before other markets and regions are tried


def without_name(error: SkywardError, provider: str) -> str:
    """An error's text without the provider's name, with which most errors begin."""
    return str(error).removeprefix(f"{provider}: ")


def reaches(error: SkywardError, refused: Offer | None, other: Offer | None) -> bool:
    """Whether another offer of the same provider would be refused too.

    Parameters
    ----------
    error
        Why an offer was refused.
    refused
        That offer; None where the provider makes none.
    other
        The offer in question.
    """
    scope = _scope(error)
    if refused is None or other is None:
        return _is_of_account(error, scope)
    if scope is not None:
        return _share(scope, refused, other)
    if isinstance(error, QuotaExceeded):
        alike = _share(Scope.SPOT | Scope.REGION, refused, other) and refused.accelerator == other.accelerator
        return alike and (other.vcpus or 0) >= (refused.vcpus or 0)
    return _is_of_account(error, scope)


def _scope(error: SkywardError) -> Scope | None:
    return error.scope if isinstance(error, ProvisioningError) else None


def _is_of_account(error: SkywardError, scope: Scope | None) -> bool:
    if scope is not None:
        return scope is Scope.ACCOUNT
    return isinstance(error, (AuthFailed, ConfigError, CloudError, PoolNotActive))


def _share(scope: Scope, one: Offer, other: Offer) -> bool:
    return (
        (Scope.TYPE not in scope or one.machine == other.machine)
        and (Scope.SPOT not in scope or one.spot == other.spot)
        and (Scope.ZONE not in scope or one.region == other.region)
        and (Scope.REGION not in scope or _region(one) == _region(other))
    )


def _region(offer: Offer) -> str | None:
    return offer.zone_of or offer.region


class Denials:
    """Offers that one provider has denied without saying what makes them forbidden."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str | None, bool]] = Counter()

    def __repr__(self) -> str:
        return f"<Denials {self._counts}>"

    def __bool__(self) -> bool:
        return bool(self._counts)

    def add(self, error: SkywardError, offer: Offer | None) -> None:
        """Count a refusal, unless it is for lack of capacity or quota, or says itself how far it reaches."""
        scope = _scope(error)
        if offer is None or isinstance(error, (NoCapacity, QuotaExceeded, CloudError)):
            return
        if scope is Scope.OFFER or (scope is None and not _is_of_account(error, scope)):
            self._counts.update(_marks(offer))

    def rank(self, offer: Offer | None) -> tuple[int, int, int]:
        """Sort key of an offer: the smaller, the more it differs from those that were denied."""
        if offer is None:
            return (0, 0, 0)
        place, kind, zone = (self._counts[mark] for mark in _marks(offer))
        return (place // _BEFORE_OTHERS, kind, zone)


def _marks(offer: Offer) -> tuple[tuple[str, str | None, bool], ...]:
    return (
        ("region", _region(offer), offer.spot),
        ("machine", offer.machine, offer.spot),
        ("zone", offer.region, offer.spot),
    )
