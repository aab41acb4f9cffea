"""Large results left in files for an owner on the same machine, who maps them instead of receiving a copy.

A slot writes them (`ResultFiles`), the owner removes those it takes, and the agent removes those that the owner will
never take (`UnclaimedFiles`).
"""

from __future__ import annotations

import errno
import itertools
import os
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

from skyward.core.payload.shared_file import remove, write_all

__all__ = ["ResultFiles", "UnclaimedFiles"]

_MARGIN = 64 * 1024 * 1024


class ResultFiles:
    """Writes large results of a slot to files.

    Parameters
    ----------
    folder
        A folder of the agent's, which removes it at its end.
    pid
        The slot's process; None for this one.
    margin
        Bytes of the file system to leave free for others.
    """

    def __init__(self, folder: str, pid: int | None = None, margin: int = _MARGIN) -> None:
        self._folder, self._pid, self._margin = folder, pid, margin
        self._numbers = itertools.count()

    def __repr__(self) -> str:
        return f"<ResultFiles {self._folder}>"

    def put(self, buffers: Sequence[memoryview], large: int) -> tuple[dict[int, bytes], list[memoryview]]:
        """Write buffers of at least `large` bytes; returns their files by index, and the buffers still to be sent."""
        files: dict[int, bytes] = {}
        rest: list[memoryview] = []
        for index, buffer in enumerate(buffers):
            path = self._write(buffer) if len(buffer) >= large else None
            if path is None:
                rest.append(buffer)
            else:
                files[index] = os.fsencode(path)
        return files, rest

    def _write(self, buffer: memoryview) -> str | None:
        """Write a file and return its path; None if there is no room, and the buffer is sent instead."""
        path = f"{self._folder}/{_prefix(os.getpid() if self._pid is None else self._pid)}{next(self._numbers)}"
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError:
            return None
        try:
            room = os.fstatvfs(fd)
            if room.f_bavail * room.f_frsize < len(buffer) + self._margin:
                raise OSError(errno.ENOSPC, "no room in", self._folder)
            write_all(fd, buffer)
        except OSError:
            remove([os.fsencode(path)])
            return None
        finally:
            os.close(fd)
        return path


def _prefix(pid: int) -> str:
    return f"result-{pid}-"


class UnclaimedFiles:
    """The agent's view of the folder: which files have been reported to the owner.

    Parameters
    ----------
    folder
        The folder in which slots leave results; None if they send them.
    """

    def __init__(self, folder: str | None) -> None:
        self._folder = folder
        self._sent: deque[tuple[int, set[bytes]]] = deque()  # number of the message, and the files in it
        self._kept: set[bytes] = set()  # those of messages that are still to be sent

    def __repr__(self) -> str:
        return f"<UnclaimedFiles in {self._folder}, {len(self._sent)} messages not acknowledged>"

    def keep(self, files: Iterable[bytes]) -> None:
        """Record that a message will name these files: either `sent` follows, or `drop`."""
        self._kept.update(files)

    def drop(self, files: Iterable[bytes]) -> None:
        """Remove files that the owner will never be told about."""
        self._kept.difference_update(files)
        remove(files)

    def sent(self, number: int, files: Iterable[bytes]) -> None:
        """Record that the message with this number names these files: the owner takes them when it arrives."""
        self._kept.difference_update(files)
        self._sent.append((number, set(files)))

    def acknowledge(self, received: int) -> None:
        """Forget the files of messages up to this number, which the owner has received."""
        while self._sent and self._sent[0][0] <= received:
            self._sent.popleft()

    def clear(self, pid: int) -> None:
        """Remove the files of a dead slot, complete or not, that no message names."""
        if self._folder is None:
            return
        sent = self._kept.union(*(files for _, files in self._sent))
        left = map(os.fsencode, Path(self._folder).glob(f"{_prefix(pid)}*"))
        remove(path for path in left if path not in sent)
