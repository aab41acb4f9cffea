"""Functions whose calls tests keep: in a module that imports nothing, since what a function can reach is read."""

from __future__ import annotations

import itertools
from typing import Any

__all__ = ["double", "draw"]


def double(x: Any) -> Any:
    return 2 * x


_drawn = itertools.count()


def draw() -> int:
    """Another result each time."""
    return next(_drawn)
