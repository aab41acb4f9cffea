"""Lets the provider that will be asked first begin before the pool's own parts are loaded, if it is `Preparable`."""

from __future__ import annotations

from collections.abc import Sequence

from skyward.core.interfaces import Preparable, Provider
from skyward.core.spec import Order

__all__ = ["discard", "prepare"]


def prepare(providers: Sequence[Provider], order: Order) -> None:
    """Begin with an order for all machines of a pool. The caller ends it by `discard`, whatever happens."""
    if isinstance(first := providers[0], Preparable):
        first.prepare(order)


def discard(providers: Sequence[Provider], tag: str) -> None:
    """End what was prepared; no effect on what was created since. May be repeated."""
    for provider in providers:
        if isinstance(provider, Preparable):
            provider.discard(tag)
