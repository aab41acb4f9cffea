"""How many threads BLAS and OpenMP may start in a slot: by environment variables, and by threadpoolctl where it is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

__all__ = ["VARIABLES", "Limit", "defaults"]

VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
"""The variables that joblib sets. Libraries read them when they are loaded, so they are set before that."""


def defaults(count: int, env: Mapping[str, str]) -> dict[str, str]:
    """The variables for `count` threads, except those that the user has set."""
    return {name: str(count) for name in VARIABLES if name not in env}


class Limit:
    """The limit of this process. Its libraries were loaded under the default one.

    Parameters
    ----------
    default
        Threads when a task says nothing.
    """

    def __init__(self, default: int) -> None:
        self.default = default
        self.now = default
        self._before = {name: os.environ.get(name) for name in VARIABLES}
        self._pools: Any = None

    def __repr__(self) -> str:
        return f"<Limit {self.now} threads, default {self.default}>"

    def set(self, count: int | None) -> None:
        """Change the limit, also of libraries that are loaded already; None goes back to the default."""
        self.now = count or self.default
        for name, before in self._before.items():
            if count is not None:
                os.environ[name] = str(count)
            elif before is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = before
        if self._pools is not None:
            self._pools.restore_original_limits()
            self._pools = None
        if count is None:
            return
        try:
            import threadpoolctl  # noqa: PLC0415 - a node may lack it, and few tasks need it
        except ImportError:
            return
        self._pools = threadpoolctl.threadpool_limits(limits=count)
