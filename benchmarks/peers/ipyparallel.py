"""ipyparallel through its own joblib backend: an engine process per slot."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from benchmarks.model import Peer, Setting, Stage

__all__ = ["PEERS"]


@contextlib.contextmanager
def _open(setting: Setting) -> Iterator[Stage]:
    import ipyparallel
    from ipyparallel.joblib import register
    from joblib import parallel_config

    register()
    with ipyparallel.Cluster(n=setting.workers, log_level=logging.ERROR) as client:
        client.wait_for_engines(setting.workers, timeout=90, interactive=False)
        with parallel_config(backend="ipyparallel", view=client.load_balanced_view()):
            yield Stage(setting, setting.workers)


PEERS = (
    Peer(
        "ipyparallel",
        "ipyparallel's joblib backend",
        _open,
        packages=("ipyparallel",),
        imports=("ipyparallel", "joblib"),
        skips={
            "fault": "a lost worker ends the call: EngineError",
            "sleep": "100 engines do not all register",
            "sleep_long": "100 engines do not all register",
        },
    ),
)
