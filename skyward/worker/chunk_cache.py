"""Chunks of mounted folders on a node's disk: each a file named by its content, kept from pool to pool.

A chunk that no start has used for two months is removed, once a day, and earlier if the disk has no room for a new one.
Several agents of a host may use the same cache at once: files appear whole, by renaming.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from skyward.core.protocol.manifest import chunk_size

__all__ = ["ChunkCache"]

_UNUSED = 60 * 86400.0  # seconds until a chunk is removed
_DAY = 86400.0  # seconds between two sweeps, and until an unfinished file counts as left over
_RECENT = 3600.0  # seconds for which a chunk that was used is not removed to make room
_PART = ".part"


class ChunkCache:
    """The chunks in one folder.

    Parameters
    ----------
    folder
        Where they are; it is made when the first one comes.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __repr__(self) -> str:
        return f"<ChunkCache {self.folder}>"

    def path(self, name: bytes) -> str:
        """Return where a chunk is, or will be."""
        text = name.hex()
        return f"{self.folder}/{text[16:18]}/{text}"

    def find(self, names: Iterable[bytes]) -> set[bytes]:
        """Return those of these chunks that are here, and keep them for another two months."""
        found = set()
        for name in names:
            path = self.path(name)
            with contextlib.suppress(OSError):
                if os.stat(path).st_size == chunk_size(name):
                    os.utime(path)
                    found.add(name)
        return found

    def open(self, name: bytes) -> tuple[int, str]:
        """Make a file for a chunk that is beginning to arrive; to be renamed to its `path` once it is whole.

        Raises
        ------
        OSError
            The file can't be made.
        """
        path = self.path(name)
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        part = f"{path}.{os.getpid()}{_PART}"
        return os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), part

    def drop(self, name: bytes) -> None:
        """Remove a chunk whose content is wrong."""
        with contextlib.suppress(OSError):
            Path(self.path(name)).unlink()

    def make_room(self, size: int) -> int:
        """Remove chunks that were not used for a while, the oldest first, if fewer bytes than this are free.

        Returns
        -------
        int
            How many bytes are free now.
        """
        free = self._free()
        if free < size:
            old = sorted(entry for entry in self._entries() if entry[0] < time.time() - _RECENT)
            for _, path in old:
                with contextlib.suppress(OSError):
                    Path(path).unlink()
                if (free := self._free()) >= size:
                    break
        return free

    def _free(self) -> int:
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        room = os.statvfs(self.folder)
        return room.f_bavail * room.f_frsize

    def sweep(self) -> None:
        """Remove what nobody has used for two months; does nothing if that was done within a day."""
        with contextlib.suppress(OSError):
            mark, now = Path(self.folder, ".swept"), time.time()
            if not Path(self.folder).is_dir() or (mark.exists() and mark.stat().st_mtime > now - _DAY):
                return
            mark.touch()
            for changed, path in self._entries():
                if changed < now - (_DAY if path.endswith(_PART) else _UNUSED):
                    Path(path).unlink()

    def _entries(self) -> Iterator[tuple[float, str]]:
        """When each file was last used, and its path."""
        with contextlib.suppress(OSError), os.scandir(self.folder) as folders:
            for folder in folders:
                if folder.is_dir(follow_symlinks=False):
                    with os.scandir(folder.path) as files:
                        yield from ((file.stat(follow_symlinks=False).st_mtime, file.path) for file in files)
