"""Paths of Unix sockets: an address holds 107 bytes, and a folder for temporary files may be deeper than that."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["LONGEST", "socket_path"]

LONGEST = 103
"""Bytes of the longest path that every system takes: Linux 107, macOS and the BSDs 103."""


@contextlib.contextmanager
def socket_path(path: str) -> Iterator[str]:
    """A name by which this process can bind or connect the socket at `path`, however long that is.

    It holds while the block lasts. A short path is its own name; the folder of a long one is opened, and named as this
    process's open file. Others may use the socket by `path` in the same way.

    Raises
    ------
    OSError
        There is no such folder, or a long path can't be named on this system.
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
                f"too long for a socket's path, which has at most {LONGEST} bytes here; "
                "let TMPDIR name a folder with a shorter path",
                path,
            )
        yield short
    finally:
        os.close(opened)
