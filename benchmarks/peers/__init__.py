"""The libraries that are measured, a module for each. None imports its library before it is opened."""

from __future__ import annotations

from benchmarks.model import Peer
from benchmarks.peers import (
    dask,
    dask_ssh,
    ipyparallel,
    limits,
    lithops,
    loky,
    nothing,
    ray,
    skyward_local,
    skyward_ssh,
)

__all__ = ["PEERS", "missing"]

PEERS: dict[str, Peer] = {
    peer.name: peer
    for module in (skyward_local, skyward_ssh, loky, dask, dask_ssh, ray, ipyparallel, lithops, nothing, limits)
    for peer in module.PEERS
}


def missing(peer: Peer) -> str | None:
    """Why it can't take part on this machine; None if it can."""
    absent = [package for package in peer.packages if not _installed(package)]
    if absent:
        return f"not installed: {', '.join(absent)} (benchmarks/requirements.txt)"
    if peer.place == "lab":
        from tests.lab import missing as no_lab

        return no_lab()
    return None


def _installed(package: str) -> bool:
    from importlib import metadata  # 3 MB, which would count as every peer's in benchmarks.alone

    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
