"""Who has files open for writing, as far as this user can see: on Linux, by leases and /proc."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
from collections.abc import Collection, Iterator
from typing import NamedTuple, TypeAlias

__all__ = ["Identity", "Writer", "find_writers", "has_writers"]

Identity: TypeAlias = tuple[int, int]
"""Device and inode of a file."""

_SETLEASE, _SETSIG = 1024, 10  # Linux's numbers; which of them Python names depends on how it was built


class Writer(NamedTuple):
    """A process that has a file open for writing.

    Attributes
    ----------
    group
        Its process group.
    is_new
        Whether it writes only, and does not append: it has created or truncated the file.
    """

    group: int
    is_new: bool


def has_writers(path: str) -> bool | None:
    """Whether a file is open or mapped for writing anywhere; None if its file system can't say.

    Raises
    ------
    OSError
        It can't be opened.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        # A lease is for files that nobody writes. Whoever opens it meanwhile waits until the lease is returned, and we
        # are sent a signal, which must be one that does nothing.
        fcntl.fcntl(fd, _SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, _SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, _SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    else:
        return False
    finally:
        os.close(fd)


def find_writers(files: Collection[Identity]) -> dict[Identity, list[Writer]]:
    """Find the processes that have files open for writing; those of other users and mappings are not found."""
    found: dict[Identity, list[Writer]] = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208 - names, of which there are many
        with contextlib.suppress(OSError):  # another user's, or it has ended
            for identity, writer in _written_by(pid, files):
                found.setdefault(identity, []).append(writer)
    return found


def _written_by(pid: str, files: Collection[Identity]) -> Iterator[tuple[Identity, Writer]]:
    for fd in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208 - as above
        with contextlib.suppress(OSError):
            status = os.stat(f"/proc/{pid}/fd/{fd}")  # noqa: PTH116 - as above
            if (identity := (status.st_dev, status.st_ino)) in files:
                flags = _flags(pid, fd)
                if flags & os.O_ACCMODE != os.O_RDONLY:
                    is_new = flags & os.O_ACCMODE == os.O_WRONLY and not flags & os.O_APPEND
                    yield identity, Writer(os.getpgid(int(pid)), is_new)


def _flags(pid: str, fd: str) -> int:
    with open(f"/proc/{pid}/fdinfo/{fd}", "rb") as file:  # noqa: PTH123 - as above
        for line in file:
            if line.startswith(b"flags:"):
                return int(line.split()[1], 8)
    return 0
