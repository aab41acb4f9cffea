"""Bytes that pass between processes of one machine without being sent: one process writes, the others map.

From the driver to agents on its machine: a `SharedFile` in memory, opened by its path under ``/proc``. From slots to
the driver: ordinary files in a folder of the node, which whoever takes them removes.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from collections.abc import Callable, Iterable
from pathlib import Path

__all__ = ["CAN_SHARE", "SharedFile", "open_shared", "remove", "take_file", "write_all"]

_PIECE = 256 * 1024

CAN_SHARE = hasattr(os, "memfd_create")
"""Whether this system has files in memory (Linux)."""


class SharedFile:
    """A copy of a buffer in memory, which others may map as long as this object lives. Nobody can change it.

    Parameters
    ----------
    data
        What it holds.
    see
        Is given all of the copy in pieces, while they are in the processor's cache.

    Raises
    ------
    OSError
        No memory, or too many open files.
    """

    def __init__(self, data: memoryview, see: Callable[[memoryview], object] = lambda _: None) -> None:
        self._fd = -1
        self._size = len(data)
        self._map: mmap.mmap | None = None
        self._fd = os.memfd_create("skyward", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        piece = memoryview(bytearray(min(_PIECE, self._size)))
        for start in range(0, self._size, _PIECE):
            part = piece[: self._size - start]
            part[:] = data[start : start + _PIECE]  # once, so that what is seen and what is written are the same
            see(part)
            write_all(self._fd, part)
        fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        self.path = f"/proc/{os.getpid()}/fd/{self._fd}"
        self.inode = os.fstat(self._fd).st_ino

    def __repr__(self) -> str:
        return f"<SharedFile {self._fd}, {self._size:,} bytes>"

    def __len__(self) -> int:
        return self._size

    def __del__(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)

    def map(self) -> mmap.mmap:
        """Its bytes, for those who can't open it."""
        if self._map is None:
            self._map = mmap.mmap(self._fd, self._size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
        return self._map


def open_shared(path: str, inode: int, size: int) -> int:
    """Open another process's `SharedFile`; a file descriptor.

    Raises
    ------
    OSError
        It is gone. Its number may be another file's by now, hence the check.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    status = os.fstat(fd)
    if (status.st_ino, status.st_size) != (inode, size):
        os.close(fd)
        raise FileNotFoundError(f"{path} is another file by now")
    return fd


def take_file(path: str) -> mmap.mmap | bytearray:
    """The bytes of a file, which is removed. They may be written, which costs a copy of each page that is."""
    try:
        with Path(path).open("rb") as file:
            try:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            except OSError:  # a process may have some 65,000 maps
                return bytearray(file.read())
    finally:
        with contextlib.suppress(OSError):
            Path(path).unlink()


def remove(files: Iterable[bytes]) -> None:
    """Remove files that nobody wants."""
    for path in files:
        with contextlib.suppress(OSError):
            Path(os.fsdecode(path)).unlink()


def write_all(fd: int, data: memoryview) -> None:
    """Write the whole buffer."""
    done = 0
    while done < len(data):
        done += os.write(fd, data[done:])
