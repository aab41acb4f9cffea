"""A limit: joblib over a backend that only calls the batch, in one thread, which leaves joblib's own cost."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from benchmarks.model import Peer, Setting, Stage

if TYPE_CHECKING:
    from joblib.parallel import ParallelBackendBase

__all__ = ["PEERS"]


def _backend(workers: int) -> ParallelBackendBase:
    from joblib.parallel import AutoBatchingMixin, ParallelBackendBase

    class Nothing(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc] # joblib has no annotations
        """Batches go through a queue, since a callback that submits the next batch would recurse without end."""

        supports_retrieve_callback = True

        def effective_n_jobs(self, n_jobs: int | None) -> int:
            return workers

        def configure(self, n_jobs: int = 1, parallel: Any = None, **_: Any) -> int:
            self.parallel = parallel
            self._batches: queue.SimpleQueue[Any] = queue.SimpleQueue()
            threading.Thread(target=self._work, name="benchmarks-nothing", daemon=True).start()
            return workers

        def _work(self) -> None:
            while (item := self._batches.get()) is not None:
                batch, callback = item
                callback(batch())

        def submit(self, func: Any, callback: Any = None) -> None:
            self._batches.put((func, callback))

        def retrieve_result_callback(self, out: Any) -> Any:
            return out

        def terminate(self) -> None:
            self._batches.put(None)
            self.reset_batch_stats()

        def abort_everything(self, ensure_ready: bool = True) -> None:
            self._batches.put(None)

    return Nothing()


@contextlib.contextmanager
def _open(setting: Setting) -> Iterator[Stage]:
    from joblib import parallel_config

    with parallel_config(backend=_backend(setting.workers)):
        yield Stage(setting, setting.workers)


PEERS = (
    Peer(
        "nothing",
        "limit: joblib over a backend that does nothing",
        _open,
        only=frozenset({"noop_single", "noop", "call"}),
    ),
)
