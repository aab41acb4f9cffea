"""joblib's default backend while a pool is open: for calls that nothing sends to a pool, of which the user should know.

joblib's configuration is each thread's own, so a ``Parallel`` in another thread than the block's, or in the block of a
pool without the plugin, uses joblib's default: processes on this machine, while nodes idle. That is told here, once for
a pool. Only ``asyncio.to_thread``, which takes the context of its caller along, takes the block along too.
"""

from __future__ import annotations

import threading
import warnings
from typing import Any

from joblib import parallel as joblib_parallel
from joblib.parallel import BACKENDS, FallbackToBackend, LokyBackend

from skyward.joblib_ext import active_pool
from skyward.joblib_ext.backend import SkywardBackend

__all__ = ["NAME", "DefaultBackend", "install", "remove"]

NAME = "skyward-default"
_LOKY = "loky"


class DefaultBackend(LokyBackend):  # type: ignore[misc]
    """joblib's own default, and a word that it does not use the pool; or the pool, in a thread that has its context."""

    def _pool_backend(self) -> SkywardBackend | None:
        pool = active_pool.inherited()
        return None if pool is None else SkywardBackend(pool, nesting_level=self.nesting_level)

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """As the backend counts that will be used."""
        backend = self._pool_backend()
        return int(super().effective_n_jobs(n_jobs) if backend is None else backend.effective_n_jobs(n_jobs))

    def configure(self, n_jobs: int = 1, parallel: Any = None, **backend_kwargs: Any) -> int:
        """Let the backend that is meant take this one's place."""
        backend = self._pool_backend()
        if backend is None:
            if super().effective_n_jobs(n_jobs) != 1:
                _tell()
            backend = LokyBackend(nesting_level=self.nesting_level)
        raise FallbackToBackend(backend)


def _tell() -> None:
    entry = active_pool.meant()
    if entry is None or entry.told:
        return
    entry.told = True
    where, why = "", "it has no joblib plugin. To use the pool, open it with plugins=[sky.plugins.joblib()]"
    if entry.plugged:
        where = f" in thread {threading.current_thread().name!r}"
        why = "joblib's configuration is each thread's own. To use the pool, put "
        why += 'joblib.parallel_config(backend="skyward") around the call in this thread too'
    warnings.warn(
        f"joblib's Parallel runs on this machine{where}, not on the nodes of the skyward pool that is open: {why}. "
        'If this machine is meant, joblib.parallel_config(backend="loky") says so',
        UserWarning,
        stacklevel=5,
    )


def install() -> None:
    """Be joblib's default, unless the user has chosen another. May be repeated."""
    if joblib_parallel.DEFAULT_BACKEND == _LOKY:
        BACKENDS[NAME] = DefaultBackend
        joblib_parallel.DEFAULT_BACKEND = NAME


def remove() -> None:
    """Put back what was there. May be repeated."""
    if joblib_parallel.DEFAULT_BACKEND == NAME:
        joblib_parallel.DEFAULT_BACKEND = _LOKY
