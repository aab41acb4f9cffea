"""skyward on this machine: each node is an agent with slot processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import processes
from benchmarks.model import Peer, Setting, Stage

if TYPE_CHECKING:
    import skyward as sky

__all__ = ["PEERS", "plugin"]


def plugin(setting: Setting) -> sky.Plugin:
    """What makes joblib use the pool; scikit-learn comes along only where a workload needs it."""
    import skyward as sky

    return sky.plugins.sklearn() if "scikit-learn" in setting.packages else sky.plugins.joblib()


@contextlib.contextmanager
def _open(setting: Setting) -> Iterator[Stage]:
    import skyward as sky

    with sky.Compute(
        nodes=setting.nodes,
        worker=sky.Worker(concurrency=setting.slots),
        plugins=[plugin(setting)],
        console=False,
    ) as pool:
        yield Stage(setting, -1, kill_node=lambda: _kill_first(pool), replaces=True)


def _kill_first(pool: sky.Compute) -> None:
    """End the agent of the first node and all that it started, as if its machine had lost its power."""
    import os

    agents = [pid for pid in processes.descendants(os.getpid()) if _is_agent(pid)]
    first = min(agents)
    others = [pid for pid in agents if pid != first]  # which may be forks of it
    spared = {*others, *(below for pid in others for below in processes.descendants(pid))}
    processes.kill({first, *processes.descendants(first)} - spared)


def _is_agent(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text() == "skyward-agent\n"
    except OSError:
        return False


PEERS = (
    Peer(
        "skyward-local",
        "skyward, nodes on this machine",
        _open,
        packages=("skyward-cloud",),
        imports=("skyward", "joblib"),
    ),
)
