"""Results that are too large for the database: one file each, in a folder beside it.

A file is written under another name, synced, and renamed; then the folder is synced. Only after that its row is
written. So a row's file is there and whole, also after a power failure; a file without a row is one whose row was
never written, or was removed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Sequence
from typing import Any

__all__ = ["LargeFiles"]

_PART = ".part"


class LargeFiles:
    """The files of one database.

    Parameters
    ----------
    database
        Absolute path of the database; the folder has its name with ``-files``.
    """

    def __init__(self, database: str) -> None:
        self.folder = f"{database}-files"

    def __repr__(self) -> str:
        return f"<LargeFiles {self.folder}>"

    def path(self, key: bytes) -> str:
        """Where the result of that key is."""
        return os.path.join(self.folder, key.hex())

    def write(self, key: bytes, pieces: Sequence[Any]) -> None:
        """Write a result; it is complete but not yet safe until `sync`. Raises OSError."""
        path = self.path(key)
        try:
            fd = self._create(path + _PART)
            try:
                for piece in pieces:
                    _write_all(fd, memoryview(piece).cast("B"))
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(path + _PART, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(path + _PART)
            raise

    def _create(self, path: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(path, flags, 0o600)
        except FileNotFoundError:
            os.mkdir(self.folder, 0o700)
            sync_folder(os.path.dirname(self.folder))
            return os.open(path, flags, 0o600)

    def sync(self) -> None:
        """Make the names of the files that were written safe. Raises OSError."""
        sync_folder(self.folder)

    def read(self, key: bytes) -> bytearray:
        """Return the bytes of a result. Raises OSError."""
        with open(self.path(key), "rb") as opened:
            data = bytearray(os.fstat(opened.fileno()).st_size)
            size = opened.readinto(data)
        if size != len(data):
            raise OSError(f"{self.path(key)} became shorter while it was read")
        return data

    def remove(self, keys: Collection[bytes]) -> None:
        """Remove results whose rows are gone."""
        for key in keys:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path(key))

    def sweep(self, known: Collection[bytes]) -> int:
        """Remove files without a row, given the keys of all rows with a file; return how many there were."""
        names = {key.hex() for key in known}
        removed = 0
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self.folder):
                bare = name.removesuffix(_PART)
                if name not in names and len(bare) == 32 and not set(bare) - set("0123456789abcdef"):
                    os.unlink(os.path.join(self.folder, name))
                    removed += 1
            with contextlib.suppress(OSError):
                os.rmdir(self.folder)
        return removed


def sync_folder(folder: str) -> None:
    """Make the names in a folder safe against power failures."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]
