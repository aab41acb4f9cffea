"""One program at a time uses a resume file.

The lock is one of an open file (``F_OFD_SETLK``) on a file beside it. It ends with its process, however that ends, and
not before: a record lock of POSIX, which stands in where there is none of this kind, would end as soon as the process
closes any descriptor of the file, such as that of a copy of the folder. Children that were forked let go of it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import threading

from skyward.core.errors import ResumeFileError

__all__ = ["FileLock"]

_ours: dict[str, int] = {}  # real paths of the files locked by this process -> descriptors of the locks
_table = threading.Lock()  # guards _ours
_SETLK: int | None = getattr(fcntl, "F_OFD_SETLK", None)


def _let_go() -> None:
    """In a fork, whose descriptors would keep the locks after the process that took them has ended."""
    for fd in _ours.values():
        with contextlib.suppress(OSError):
            os.close(fd)
    _ours.clear()


os.register_at_fork(before=_table.acquire, after_in_parent=_table.release, after_in_child=_table.release)
os.register_at_fork(after_in_child=_let_go)


def _lock(fd: int) -> None:
    if _SETLK is None:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        fcntl.fcntl(fd, _SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))


class FileLock:
    """Holds a file for this pool.

    Parameters
    ----------
    path
        Absolute path of the file, which need not exist.

    Raises
    ------
    ResumeFileError
        Another pool or program holds it.
    OSError
        The folder can't be written to.
    """

    def __init__(self, path: str) -> None:
        self._file = os.path.realpath(path)
        self.path = f"{self._file}-lock"
        with _table:
            if self._file in _ours:
                raise ResumeFileError(f"resume={path!r} is in use by another pool of this program; give each its own")
            self._fd = self._take(path)
            _ours[self._file] = self._fd
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"<FileLock {self.path}>"

    def _take(self, path: str) -> int:
        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                _lock(fd)
                if self._is_there(fd):  # its last holder may have removed it meanwhile
                    os.truncate(fd, 0)
                    os.pwrite(fd, f"{socket.gethostname()} process {os.getpid()}".encode(), 0)
                    return fd
            except OSError as error:
                holder = os.pread(fd, 200, 0).decode("utf-8", "replace") or "another program"
                os.close(fd)
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise
                raise ResumeFileError(
                    f"resume={path!r} is in use by {holder}; wait until that has ended, or give this program another"
                ) from None
            os.close(fd)

    def _is_there(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(fd))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Give it up; in a fork of the process, do nothing."""
        if self._fd < 0 or self._pid != os.getpid():
            return
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        with _table:
            os.close(self._fd)
            self._fd = -1
            _ours.pop(self._file, None)
