"""joblib's own processes, on this machine only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from benchmarks.model import Peer, Setting, Stage

__all__ = ["PEERS"]


@contextlib.contextmanager
def _open(setting: Setting) -> Iterator[Stage]:
    from joblib import parallel_config
    from joblib.externals.loky import get_reusable_executor

    with parallel_config(backend="loky", n_jobs=setting.workers):
        try:
            yield Stage(setting, setting.workers)
        finally:
            get_reusable_executor().shutdown(kill_workers=True)


PEERS = (Peer("loky", "joblib's loky", _open, skips={"fault": "a lost worker ends the call: TerminatedWorkerError"}),)
