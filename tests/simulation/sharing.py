"""Files that driver, agents and slots of one machine open, under names of a fixed length.

The real ones contain numbers of processes, descriptors and inodes. How long a message is decides how it is cut, so a
seed would not replay in another process.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar
from weakref import WeakValueDictionary

from skyward.core.payload.shared_file import SharedFile

__all__ = ["RESULTS", "NumberedFile", "open_file", "private_folder", "results_in"]

RESULTS = 30_000
"""Bytes of a result that is left in a file."""
_DIGITS = 6
_NUMBERS = itertools.count(1 << 20)  # all of the same length in a message


class NumberedFile(SharedFile):
    """A `SharedFile`, known by a number."""

    known: ClassVar[WeakValueDictionary[int, NumberedFile]] = WeakValueDictionary()

    def __init__(self, data: memoryview, visit: Callable[[memoryview], object] = lambda _: None) -> None:
        super().__init__(data, visit)
        self.path, self.inode = _path(self._fd), next(_NUMBERS)
        self.known[self.inode] = self

    def opened(self) -> int:
        """Return another descriptor of it."""
        return os.dup(self._fd)


def _path(fd: int) -> str:
    return "/proc/self/fd".ljust(13 + _DIGITS - len(str(fd)), "/") + str(fd)


def open_file(_: str, number: int, size: int) -> tuple[int, str]:
    """Open one of them, as `Store` wants it."""
    file = NumberedFile.known.get(number)
    if file is None or len(file) != size:
        raise FileNotFoundError(errno.ENOENT, "it is another file now")
    fd = file.opened()
    return fd, _path(fd)


def private_folder(parent: str, kind: str) -> tuple[str, int]:
    """Make a folder in which nobody else has any; see `scratch.make`."""
    folder = Path(parent, f"skyward-{kind}-1-private")
    folder.mkdir(0o700)
    return str(folder), os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def results_in(parent: str) -> list[str]:
    """Names of the files in a parent of such folders in which slots have left results."""
    return sorted(file.name for file in Path(parent).glob("skyward-*/result-*"))
