"""Bytes shared between processes of one machine without being sent: one process writes, the others map.

From the driver to agents on its machine: a `SharedFile` in memory, opened by its path under ``/proc``. From slots to
the driver: ordinary files in a folder of the node, which the recipient removes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import re
import stat
import sys
import weakref
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

try:
    import ctypes
except ImportError:  # a Python that was built without libffi
    ctypes = None  # type: ignore[assignment]
_CTYPES: Any = ctypes

__all__ = ["CAN_SHARE", "SharedFile", "map_file", "open_shared", "remove", "take_file", "write_all"]

_PIECE = 256 * 1024

_RESULT = re.compile(
    r"result-\d+-\d+", re.ASCII
)  # as `worker/result_files.py` calls them, in a folder of `worker/scratch.py`
_FOLDER = re.compile(r"/.*/skyward-store-\d+-\w+", re.ASCII | re.DOTALL)

CAN_SHARE = sys.platform == "linux"
"""Whether this system has files in memory (Linux)."""


class SharedFile:
    """An immutable copy of a buffer in memory, which other processes may map as long as this object lives.

    Parameters
    ----------
    data
        Its content.
    visit
        Called with all of the copy in pieces, while they are in the processor's cache.

    Raises
    ------
    OSError
        Out of memory, or too many open files.
    """

    open: ClassVar[set[int]] = set()
    """Descriptors of all that exist in this process, for all pools."""

    path: str
    """Where other processes may open it, while this object lives."""

    inode: int
    """Tells it from a later file of the same path."""

    def __init__(self, data: memoryview, visit: Callable[[memoryview], object] = lambda _: None) -> None:
        self._fd = -1
        self._size = len(data)
        self._map: memoryview | None = None
        if sys.platform != "linux":
            raise OSError(errno.ENOSYS, "this system has no files in memory")  # see CAN_SHARE
        self._fd = os.memfd_create("skyward", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self.open.add(self._fd)
        piece = memoryview(bytearray(min(_PIECE, self._size)))
        for start in range(0, self._size, _PIECE):
            part = piece[: self._size - start]
            part[:] = data[start : start + _PIECE]  # read once, so that what is visited is what is written
            visit(part)
            write_all(self._fd, part)
        fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        self.path = f"/proc/{os.getpid()}/fd/{self._fd}"
        self.inode = os.fstat(self._fd).st_ino

    def __repr__(self) -> str:
        return f"<SharedFile {self._fd}, {self._size:,} bytes>"

    def __len__(self) -> int:
        return self._size

    def __del__(self, close: Callable[[int], None] = os.close, suppress: Any = contextlib.suppress) -> None:
        # The arguments outlive this module's names, which are gone at times when the interpreter ends.
        if self._fd >= 0:
            self.open.discard(self._fd)  # first, since the number may be reused immediately
            with suppress(OSError):
                close(self._fd)

    def map(self) -> memoryview:
        """Map its bytes, for those who can't open it."""
        if self._map is None:
            self._map = map_file(self._fd, self._size).toreadonly()
        return self._map


def open_shared(path: str, inode: int, size: int) -> int:
    """Open another process's `SharedFile` and return a file descriptor.

    Parameters
    ----------
    path
        Its path under ``/proc``.
    inode, size
        What it must have: its descriptor's number may belong to another file by now.

    Raises
    ------
    OSError
        The file is gone.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    status = os.fstat(fd)
    if (status.st_ino, status.st_size) != (inode, size):
        os.close(fd)
        raise FileNotFoundError(f"{path} is another file now")
    return fd


def map_file(fd: int, size: int) -> memoryview:
    """Map a file copy-on-write for as long as the returned view, or any view of it, exists.

    The map keeps no descriptor open, of which a process may often have only 1,024; until 3.13, Python's own maps keep
    one each.

    Raises
    ------
    OSError
        Out of memory, or too many maps: a process may have about 65,000.
    """
    if _CTYPES is None:
        return memoryview(mmap.mmap(fd, size, access=mmap.ACCESS_COPY))
    address = _libc().mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE, fd, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        problem = ctypes.get_errno()
        raise OSError(problem, f"can't map a file of {size:,} bytes: {os.strerror(problem)}")
    memory = (ctypes.c_ubyte * size).from_address(address)
    end = weakref.finalize(memory, _libc().munmap, address, size)
    end.atexit = False  # the memory may be in use until the process has ended
    return memoryview(memory).cast("B")


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    size, address, number = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int
    libc.mmap.argtypes = (address, size, number, number, number, ctypes.c_ssize_t)
    libc.munmap.argtypes = (address, size)
    return libc


def take_file(path: str) -> memoryview | bytearray:
    """Map a slot's result copy-on-write, and remove its file.

    Raises
    ------
    OSError
        The file is not a slot's result, in which case it is left alone, or it can't be read.
    """
    if not _is_result(path):
        raise PermissionError(f"{path} is not a result of a slot")
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb", buffering=0) as file:
            try:
                return map_file(file.fileno(), os.fstat(file.fileno()).st_size)
            except OSError:  # the limit of maps is reached
                return bytearray(file.read())
    finally:
        remove([os.fsencode(path)])


def remove(files: Iterable[bytes]) -> None:
    """Remove results that nobody wants, and nothing else: whoever names them may be wrong, or malicious."""
    for path in map(os.fsdecode, files):
        with contextlib.suppress(OSError):
            if _is_result(path):
                Path(path).unlink()


def _is_result(path: str) -> bool:
    """Whether a path is that of a file written by a slot, in an agent's folder that belongs to this user."""
    folder, _, name = path.rpartition("/")
    if os.path.normpath(path) != path or not _RESULT.fullmatch(name) or not _FOLDER.fullmatch(folder):
        return False
    try:
        status = os.lstat(folder)
    except (OSError, ValueError):
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()


def write_all(fd: int, data: memoryview) -> None:
    """Write the whole buffer."""
    done = 0
    while done < len(data):
        done += os.write(fd, data[done:])
