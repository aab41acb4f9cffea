"""The folders of a node for its tasks: the one they run in, the mounted ones beside it, and the cache of chunks."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from skyward.worker import scratch

__all__ = ["OwnFolders", "own_folders"]

_KIND = "work"


@dataclass(frozen=True, slots=True)
class OwnFolders:
    """Where a node keeps files for its tasks.

    Attributes
    ----------
    base
        All but the cache. To be removed when the agent ends.
    work
        In it: the tasks' working directory.
    mounts
        In it: the folders that absolute mounts lead to.
    chunks
        The cache of chunks.
    kept
        Not made yet: for what several tasks need.
    lock
        Descriptor of the lock of `base`, or None if others know by other means when it is abandoned.
    """

    base: str
    work: str
    mounts: str
    chunks: str
    kept: str
    lock: int | None

    def close(self) -> None:
        """Remove all but the cache."""
        scratch.remove(self.base)
        if self.lock is not None:
            os.close(self.lock)


def own_folders(run: str, cache: str, folder: str) -> OwnFolders:
    """Make the folders of a node.

    Parameters
    ----------
    run
        A private folder of this agent's with room for data; empty: one is made in `cache`.
    cache
        Folder of what is kept between pools; empty, or unusable: none is kept.
    folder
        A private folder of this agent's, for want of anything better.

    Raises
    ------
    OSError
        The tasks' folder can't be made.
    """
    lock: int | None = None
    base = f"{run or folder}/files"
    if not run and cache:
        with contextlib.suppress(OSError):
            Path(cache).mkdir(mode=0o700, parents=True, exist_ok=True)
            base, lock = scratch.make(cache, _KIND)
    work = f"{base}/work"
    os.makedirs(work, exist_ok=True)
    usable = cache and os.access(cache, os.W_OK | os.X_OK)
    return OwnFolders(base, work, f"{base}/mounts", f"{cache if usable else base}/chunks", f"{base}/kept", lock)
