"""Life of a slot with the joblib plugin. Nodes import this module by name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from skyward.joblib_ext import slot_backend

__all__ = ["registered"]


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """Let tasks of this slot name the backend ``"skyward"``."""
    slot_backend.enter_slot()
    yield
