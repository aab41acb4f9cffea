"""Dask through joblib's own backend, one worker process per node with a thread per slot; plain and with TLS."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from collections.abc import Iterator

from benchmarks.model import Peer, Setting, Stage

__all__ = ["PEERS"]


@contextlib.contextmanager
def _open(setting: Setting, *, tls: bool) -> Iterator[Stage]:
    from distributed import Client, LocalCluster
    from distributed.security import Security
    from joblib import parallel_config

    secure = {"security": Security.temporary(), "protocol": "tls://"} if tls else {}
    with (
        LocalCluster(
            n_workers=setting.nodes,
            threads_per_worker=setting.slots,
            processes=True,
            dashboard_address=None,
            **secure,
        ) as cluster,
        Client(cluster) as client,
        parallel_config(backend="dask"),
    ):
        stage = Stage(setting, -1, kill_node=lambda: _kill_first(client), replaces=True)
        client.wait_for_workers(setting.nodes)
        yield stage


def _kill_first(client: object) -> None:
    """End a worker process; its nanny starts another."""
    pids = client.run(os.getpid)  # type: ignore[attr-defined] # distributed is not installed where types are checked
    os.kill(next(iter(pids.values())), signal.SIGKILL)


PEERS = (
    Peer(
        "dask",
        "joblib's Dask backend, LocalCluster of processes",
        functools.partial(_open, tls=False),
        packages=("distributed",),
        imports=("distributed", "joblib"),
    ),
    Peer(
        "dask-tls",
        "the same, encrypted",
        functools.partial(_open, tls=True),
        packages=("distributed", "cryptography"),
        imports=("distributed", "joblib"),
    ),
)
