"""joblib's default backend while a pool is open: warns about calls that do not use the pool.

joblib's configuration is per thread. So a ``Parallel`` in a thread other than the block's, or in the block of a pool
without the plugin, uses joblib's default: processes on this machine, while the nodes are idle. A warning says so, once
for each pool. Only ``asyncio.to_thread`` passes on its caller's context, and with it the pool.
"""

from __future__ import annotations

import threading
import warnings
from typing import Any

from joblib import parallel as joblib_parallel
from joblib.parallel import BACKENDS, FallbackToBackend, LokyBackend

from skyward.joblib_ext import open_pools
from skyward.joblib_ext.backend import SkywardBackend

__all__ = ["NAME", "DefaultBackend", "install", "remove"]

NAME = "skyward-default"
_LOKY = "loky"


class DefaultBackend(LokyBackend):  # type: ignore[misc]
    """joblib's own default, with a warning; or the pool, in a thread that has inherited its context."""

    def _pool_backend(self) -> SkywardBackend | None:
        pool = open_pools.inherited()
        return None if pool is None else SkywardBackend(pool, nesting_level=self.nesting_level)

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return what the backend that is going to be used returns."""
        backend = self._pool_backend()
        return int(super().effective_n_jobs(n_jobs) if backend is None else backend.effective_n_jobs(n_jobs))

    def configure(self, n_jobs: int = 1, parallel: Any = None, **backend_kwargs: Any) -> int:
        """Switch to the backend that is to be used; called by joblib.

        Parameters
        ----------
        n_jobs, parallel, **backend_kwargs
            As given by joblib.
        """
        backend = self._pool_backend()
        if backend is None:
            if super().effective_n_jobs(n_jobs) != 1:
                _warn()
            backend = LokyBackend(nesting_level=self.nesting_level)
        raise FallbackToBackend(backend)


def _warn() -> None:
    entry = open_pools.current_entry()
    if entry is None or entry.warned:
        return
    entry.warned = True
    where, why = "", "it has no joblib plugin. To use the pool, open it with plugins=[sky.plugins.joblib()]"
    if entry.plugged:
        where = f" in thread {threading.current_thread().name!r}"
        why = "joblib's configuration is per thread. To use the pool, put "
        why += 'joblib.parallel_config(backend="skyward") around the call in this thread too'
    warnings.warn(
        f"joblib's Parallel runs on this machine{where}, not on the nodes of the open skyward pool: {why}. "
        'To run it here without this warning, use joblib.parallel_config(backend="loky")',
        UserWarning,
        stacklevel=5,
    )


def install() -> None:
    """Become joblib's default, unless the user has chosen another one. May be repeated."""
    if joblib_parallel.DEFAULT_BACKEND == _LOKY:
        BACKENDS[NAME] = DefaultBackend
        joblib_parallel.DEFAULT_BACKEND = NAME


def remove() -> None:
    """Restore joblib's own default. May be repeated."""
    if joblib_parallel.DEFAULT_BACKEND == NAME:
        joblib_parallel.DEFAULT_BACKEND = _LOKY
