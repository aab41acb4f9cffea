"""Mounted buckets of this user on this machine: whether mounting is possible, and how mounts end."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from pathlib import Path

__all__ = ["hindrance", "mounted_below", "unmount", "unmount_below"]

_DEVICE = "/dev/fuse"
_PROGRAM = "fusermount3"
_KIND = "fuse.rclone"
_PATIENCE = 10.0  # seconds


def hindrance() -> str | None:
    """Return why nothing can be mounted here; None if mounting may work."""
    if not os.access(_DEVICE, os.R_OK | os.W_OK):
        return f"no {_DEVICE}"
    return None if shutil.which(_PROGRAM) else f"no {_PROGRAM}"


def mounted_below(folder: str | os.PathLike[str]) -> list[str]:
    """Return where buckets are mounted in a folder, or at it."""
    try:
        lines = Path("/proc/self/mounts").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []
    top = os.path.realpath(folder)
    places = [_plain(place) for _, place, kind, *_ in map(str.split, lines) if kind == _KIND]
    return [place for place in places if place == top or place.startswith(f"{top}/")]


def _plain(place: str) -> str:
    """Undo the escaping of spaces and the like in the kernel's list."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), place)


def unmount(place: str) -> None:
    """Unmount a folder, even if its server is dead, or files in it are open."""
    if (program := shutil.which(_PROGRAM)) is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run([program, "-u", "-z", "-q", place], check=False, capture_output=True, timeout=_PATIENCE)


def unmount_below(folder: str | os.PathLike[str]) -> None:
    """Unmount everything in a folder."""
    for place in mounted_below(folder):
        unmount(place)
