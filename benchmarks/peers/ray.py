"""Ray through its own joblib backend: a head without cores, and a raylet per node."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

from benchmarks.model import Peer, Setting, Stage

__all__ = ["PEERS"]

_STORE = 2 << 30  # bytes of each node's object store; all arrays of a workload fit


@contextlib.contextmanager
def _open(setting: Setting) -> Iterator[Stage]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from joblib import parallel_config
    from ray.cluster_utils import Cluster
    from ray.util.joblib import register_ray

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": _STORE})
    try:
        for _ in range(setting.nodes):
            cluster.add_node(num_cpus=setting.slots, object_store_memory=_STORE)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False)
        register_ray()
        with parallel_config(backend="ray"):
            yield Stage(setting, setting.workers)
    finally:
        ray.shutdown()
        cluster.shutdown()


PEERS = (
    Peer(
        "ray",
        "Ray's joblib backend, a cluster on this machine",
        _open,
        packages=("ray",),
        imports=("ray", "joblib"),
        skips={
            "fault": "a lost worker ends the call: ActorDiedError",
            "sleep_long": "its 100 processes take a minute to start in each call",
        },
    ),
)
