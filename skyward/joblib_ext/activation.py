"""Makes an open pool joblib's backend: for the plugins' block, and for the pools of `skyward.integrations.joblib`."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from joblib import parallel_config
from joblib.parallel import get_active_backend

from skyward.core.pool import Compute
from skyward.joblib_ext import active_pool
from skyward.joblib_ext.backend import SkywardBackend

__all__ = ["activated"]


@contextlib.contextmanager
def activated(pool: Compute) -> Iterator[SkywardBackend]:
    """Make an open pool joblib's backend in this thread, and restore the previous backend afterwards.

    ``n_jobs`` is left alone, so that None still means 1.
    """
    SkywardBackend.unwind()
    thread, before = threading.current_thread(), get_active_backend()[0]
    backend = SkywardBackend(pool)
    with active_pool.entered(pool, plugged=True):
        config = parallel_config(backend=backend)
        try:
            yield backend
        finally:
            if threading.current_thread() is thread and get_active_backend()[0] is backend:
                config.unregister()
                SkywardBackend.unwind()
            else:
                # joblib's configuration is a stack for each thread. From another thread, or out of order, it can't be
                # reverted yet; but the backend that is left in it can refer to the previous one.
                backend.retire(before, config.unregister)
