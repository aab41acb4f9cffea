"""Whose a thing is, by its name alone, where a cloud has no tags; an account has things of other people, too."""

from __future__ import annotations

import re

__all__ = ["pool_of"]

_ORDER = re.compile(r"(sky-\d+-\d+-[0-9a-f]+)-\d+", re.ASCII)  # a pool's tag and a number


def pool_of(name: str) -> str:
    """The tag of the pool whose order is called so; empty for what is not named as orders are."""
    match = _ORDER.fullmatch(name)
    return match[1] if match else ""
