"""Finds a resource's pool by the resource's name, for clouds without tags; an account may contain other things, too."""

from __future__ import annotations

import re

__all__ = ["pool_of"]

_ORDER = re.compile(r"(sky-\d+-\d+-[0-9a-f]+)-\d+", re.ASCII)  # a pool's tag, and a number


def pool_of(name: str) -> str:
    """Return the tag of the pool whose order has this name; empty for a name that is not an order's."""
    match = _ORDER.fullmatch(name)
    return match[1] if match else ""
