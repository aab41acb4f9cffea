"""What front ends know of the pool that an object is sent to, when it is pickled in a way of theirs."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

from skyward.core.tasks.answers import Answers
from skyward.core.tasks.kept_calls import KeptCalls

__all__ = ["PoolContext"]


@dataclass(eq=False)
class PoolContext:
    """One pool, as `pickling.POOL_REDUCERS` get it.

    Attributes
    ----------
    shared
        Whether all nodes see the driver's files.
    answers
        Reads what nodes send.
    kept
        Calls whose results are kept.
    at_end
        Closed when the pool has ended.
    guests
        What front ends keep for the pool, by names of their own.
    """

    shared: bool
    answers: Answers
    kept: KeptCalls
    at_end: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    guests: dict[str, Any] = field(default_factory=dict)
