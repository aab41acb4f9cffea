"""How far a refusal reaches."""

from __future__ import annotations

import enum

__all__ = ["Scope"]


class Scope(enum.Flag):
    """How far a provider's refusal of an offer reaches: to the offers that share all that is named here with it.

    Scopes are combined by ``|``: ``SPOT | REGION`` is what is refused for spot machines of one region.
    """

    ACCOUNT = 0  # nothing need be shared: all offers of the provider
    TYPE = enum.auto()
    SPOT = enum.auto()  # both are spot machines, or neither is
    ZONE = enum.auto()
    REGION = enum.auto()
    OFFER = TYPE | SPOT | ZONE | REGION
