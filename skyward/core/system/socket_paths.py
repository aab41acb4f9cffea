"""Paths of Unix sockets, also longer ones than a socket's address can hold (107 bytes)."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["LONGEST", "socket_path"]

LONGEST = 103
"""Length in bytes of the longest path that every system accepts: Linux 107, macOS and the BSDs 103."""


@contextlib.contextmanager
def socket_path(path: str) -> Iterator[str]:
    """Yield a name by which this process can bind or connect the socket at `path`, however long the path is.

    The name is valid within the block. A short path is its own name; for a long one, the folder is opened and named as
    an open file of this process. Other processes reach the socket by `path` in the same way.

    Raises
    ------
    OSError
        There is no such folder, or this system has no short name for a long path.
    """
    if len(os.fsencode(path)) <= LONGEST:
        yield path
        return
    folder, name = os.path.split(path)
    opened = os.open(folder, getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        short = f"/proc/self/fd/{opened}/{name}"
        if len(os.fsencode(short)) > LONGEST or not Path(f"/proc/self/fd/{opened}").exists():
            raise OSError(
                errno.ENAMETOOLONG,
                f"the path of a socket has at most {LONGEST} bytes on this system; "
                "set TMPDIR to a folder with a shorter path",
                path,
            )
        yield short
    finally:
        os.close(opened)
