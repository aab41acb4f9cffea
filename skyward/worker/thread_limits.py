"""How many threads BLAS and OpenMP may start in a slot: by environment variables, and by threadpoolctl if installed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from skyward.core.protocol.messages import THREAD_VARIABLES

__all__ = ["Limit", "defaults"]


def defaults(count: int, env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for `count` threads, except those that the user has set."""
    return {name: str(count) for name in THREAD_VARIABLES if name not in env}


class Limit:
    """The limit of this process, whose libraries were loaded under the default limit.

    Parameters
    ----------
    default
        Number of threads for tasks that set no limit.
    """

    def __init__(self, default: int) -> None:
        self.default = default
        self.now = default
        self._loaded = default  # the limit that libraries found when they were loaded
        self._requested: int | None = None
        self._before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
        self._pools: Any = None

    def __repr__(self) -> str:
        return f"<Limit {self.now} threads, default {self.default}>"

    def follow(self, changed: Mapping[str, str | None]) -> None:
        """Make what the user has set since the default; None for a variable that was unset, so ours applies again."""
        ours = {name: changed[name] for name in THREAD_VARIABLES if name in changed}
        if not ours:
            return
        self._before.update((name, value or str(self._loaded)) for name, value in ours.items())
        number = next((value for value in self._before.values() if value), "")
        self.default = int(number) if number.isdecimal() and int(number) else self._loaded
        self.set(self._requested)

    def set(self, count: int | None) -> None:
        """Change the limit, also in libraries that are already loaded; None restores the default."""
        self.now = count or self.default
        self._requested = count
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
        if self.now == self._loaded:
            return
        try:
            import threadpoolctl  # noqa: PLC0415 - a node may lack it, and few tasks need it
        except ImportError:
            return
        self._pools = threadpoolctl.threadpool_limits(limits=self.now)
