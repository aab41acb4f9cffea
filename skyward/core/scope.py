"""How far a provider's refusal reaches."""

from __future__ import annotations

import enum

__all__ = ["Scope"]


class Scope(enum.Flag):
    """How far a provider's refusal of an offer reaches: to all offers that share these properties with it.

    Combine scopes with ``|``: ``SPOT | REGION`` is a refusal of spot machines in one region.
    """

    ACCOUNT = 0  # nothing has to be shared: all offers of the provider
    TYPE = enum.auto()
    SPOT = enum.auto()  # both or neither are spot machines
    ZONE = enum.auto()
    REGION = enum.auto()
    OFFER = TYPE | SPOT | ZONE | REGION
