"""Removes from the user's cache what no pool has used for long."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

__all__ = ["remove_unused"]

_KEPT = 60 * 86400.0  # seconds for which what nobody uses is kept


def remove_unused(cache: Path, mark: str = "") -> None:
    """Remove the folders of a cache that nobody has touched for 60 days.

    With a `mark`, the file of that name in a folder is what counts; a folder without it is being filled, and stays.
    """
    for folder in cache.glob("*"):
        with contextlib.suppress(OSError):  # another program is at it
            if time.time() - (folder / mark).stat().st_mtime > _KEPT:
                shutil.rmtree(folder)
