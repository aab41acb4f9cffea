"""The joblib side of a slot's life. Imported on nodes, by name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from skyward.joblib_ext import active_pool, backend

__all__ = ["NAME", "registered"]

NAME = backend.NAME  # importing the backend has made it known to joblib


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """Let tasks of this slot use ``backend="skyward"``: nested calls get the slot's own cores."""
    active_pool.set_on_node()
    yield
