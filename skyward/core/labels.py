"""Names of functions in messages."""

from __future__ import annotations

import functools
from types import FunctionType

__all__ = ["label"]


def label(function: object) -> str:
    """Name a task after its function, after what a `functools.partial` wraps, or after the class of a callable."""
    if type(function) is FunctionType:  # the usual case, and called for each task
        return function.__qualname__
    while isinstance(function, functools.partial):
        function = function.func
    for attribute in ("__qualname__", "__name__", "label"):  # the last one is for our own batches and chunks
        name = getattr(function, attribute, None)
        if name and isinstance(name, str):
            return name
    return type(function).__qualname__
