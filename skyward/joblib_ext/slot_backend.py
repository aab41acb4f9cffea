"""joblib inside a task: nested calls use the slot's own cores, also those that name the backend ``"skyward"``."""

from __future__ import annotations

from typing import Any

from joblib.parallel import (
    BACKENDS,
    FallbackToBackend,
    ParallelBackendBase,
    SequentialBackend,
    ThreadingBackend,
    register_parallel_backend,
)

from skyward.joblib_ext import open_pools

__all__ = ["NAME", "PoolBackend", "SlotBackend", "enter_slot", "nested"]

NAME = "skyward"
"""The name of the backend in joblib."""


def nested(level: int) -> Any:
    """Return the backend of ``Parallel`` calls at a nesting level: threads of the process at 1, none below that."""
    return SequentialBackend(nesting_level=level) if level > 1 else ThreadingBackend(nesting_level=level)


class PoolBackend(ParallelBackendBase):  # type: ignore[misc]
    """What a pool's backend in the driver, and the one in its slots, have in common.

    Parameters
    ----------
    nesting_level, inner_max_num_threads, **backend_kwargs
        As given by joblib.
    """

    supports_retrieve_callback = True  # which also enables generators and timeouts
    supports_inner_max_num_threads = True

    def __init__(
        self, nesting_level: int | None = None, inner_max_num_threads: int | None = None, **backend_kwargs: Any
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self.backend_kwargs = backend_kwargs  # joblib before 1.5 does not keep them

    def get_nested_backend(self) -> tuple[Any, int | None]:
        """Return what calls inside a task use: threads of the slot, and none at deeper levels."""
        return nested((self.nesting_level or 0) + 1), None


class SlotBackend(PoolBackend):
    """joblib backend in a slot: stands for the slot's threads, or for a pool that the task itself has opened.

    Only the latter takes `backend_kwargs`.
    """

    def _chosen(self) -> Any:
        """The backend to use instead of this one."""
        of_pool = BACKENDS.get(NAME)
        if of_pool in (None, SlotBackend) or open_pools.find() is None:
            return nested(self.nesting_level or 0)
        return of_pool(
            nesting_level=self.nesting_level,
            inner_max_num_threads=self.inner_max_num_threads,
            **self.backend_kwargs,
        )

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many tasks run at once, by joblib's arithmetic."""
        return int(self._chosen().effective_n_jobs(n_jobs))

    def configure(self, n_jobs: int = 1, parallel: Any = None, **backend_kwargs: Any) -> int:
        """Switch to the backend that is to be used; called by joblib.

        Parameters
        ----------
        n_jobs, parallel, **backend_kwargs
            As given by joblib.
        """
        raise FallbackToBackend(self._chosen())

    def apply_async(self, func: Any, callback: Any = None) -> Any:
        """Never called, since `configure` always refers to another backend; joblib before 1.5 needs it defined."""
        raise NotImplementedError


def enter_slot() -> None:
    """Mark this process as a slot and make the name known to joblib. May be repeated."""
    if not open_pools.on_node():  # it is called for each batch
        open_pools.set_on_node()
        if NAME not in BACKENDS:  # a user may have a factory of that name already
            register_parallel_backend(NAME, SlotBackend)
