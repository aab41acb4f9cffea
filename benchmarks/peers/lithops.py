"""Lithops through its own joblib backend, on its localhost runtime."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from benchmarks.model import Peer, Setting, Stage

__all__ = ["PEERS"]

_SLOW = "a Python process for each task, some 3 tasks/s"
_LARGE = "it refuses more than 4 MiB of arguments"


@contextlib.contextmanager
def _open(setting: Setting) -> Iterator[Stage]:
    from joblib import parallel_config
    from lithops.util.joblib import register_lithops

    register_lithops()
    here = {"backend": "localhost", "storage": "localhost", "log_level": "ERROR"}
    config = {"lithops": here, "localhost": {"runtime": sys.executable, "worker_processes": setting.workers}}
    with parallel_config(backend="lithops", n_jobs=setting.workers, lithops_args={"config": config}):
        yield Stage(setting, setting.workers)


PEERS = (
    Peer(
        "lithops",
        "Lithops' joblib backend on localhost",
        _open,
        packages=("lithops",),
        imports=("lithops", "joblib"),
        skips={
            **dict.fromkeys(("noop_single", "noop", "call", "sleep", "sleep_long", "fault", "memory"), _SLOW),
            **dict.fromkeys(("payload_in", "shared", "gridsearch_big"), _LARGE),
        },
    ),
)
