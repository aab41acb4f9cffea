"""What functions are called in messages."""

from __future__ import annotations

import functools
from types import FunctionType

__all__ = ["label"]


def label(function: object) -> str:
    """What to call a task after: the function; what a `functools.partial` wraps; the class of another callable."""
    if type(function) is FunctionType:  # nearly always, and asked for each task
        return function.__qualname__
    while isinstance(function, functools.partial):
        function = function.func
    for attribute in ("__qualname__", "__name__", "label"):  # the last one is that of batches and chunks of ours
        name = getattr(function, attribute, None)
        if name and isinstance(name, str):
            return name
    return type(function).__qualname__
