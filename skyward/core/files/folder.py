"""Reads a folder of the driver: what is in it, and the chunks of its content.

Nothing is sent that differs from what was read first: a chunk is read again when a node needs it, and must have the
same digest. What can't be sent as it is (a link out of the folder, a socket, a file without permission) is an error.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from skyward.core.errors import ConfigError, VolumeFailed
from skyward.core.files.cut import cut
from skyward.core.protocol.manifest import FolderFile, FolderLink, Manifest, Piece

__all__ = ["Folder", "scan"]

_MAX_ENTRIES = 1_000_000  # of a folder: a manifest of 100 MB
_LONGEST = 3000  # bytes of a path in the folder, since a node puts its own folder in front


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder as it was found.

    Attributes
    ----------
    name
        The folder as the user wrote it, for messages.
    root
        Its real path.
    folders, files, links
        As in `Manifest`.
    inodes
        Number of each file in its file system: one that has been replaced is another file.
    """

    name: str
    root: bytes
    folders: Sequence[bytes]
    files: Sequence[FolderFile]
    links: Sequence[FolderLink]
    inodes: Sequence[int] = field(repr=False)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def manifest(self, progress: Callable[[int], object] = lambda _: None) -> Manifest:
        """Read all of it, which takes a while.

        Parameters
        ----------
        progress
            Called with the bytes that have been read.

        Raises
        ------
        VolumeFailed
            A file can't be read, or has changed since the folder was scanned.
        """
        names, done = [], 0
        for chunk in cut(self.files):
            data = self.read(chunk)
            names.append(len(data).to_bytes(8, "big") + xxhash.xxh3_128_digest(data))
            done += len(data)
            progress(done)
        return Manifest(self.folders, self.files, self.links, names)

    def read(self, chunk: Sequence[Piece], name: bytes | None = None) -> bytearray:
        """Read a chunk.

        Parameters
        ----------
        chunk
            What it holds.
        name
            The name it had in the manifest; None when that is being made.

        Raises
        ------
        VolumeFailed
            A file can't be read, or has changed since the folder was scanned.
        """
        data = bytearray(sum(piece.size for piece in chunk))
        view, at = memoryview(data), 0
        for piece in chunk:
            self._read(piece, view[at : at + piece.size])
            at += piece.size
        if name is not None and len(data).to_bytes(8, "big") + xxhash.xxh3_128_digest(data) != name:
            raise self._changed(chunk[0].file)
        return data

    def _read(self, piece: Piece, into: memoryview) -> None:
        file = self.files[piece.file]
        try:
            fd = os.open(os.path.join(self.root, file.path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                self._check(piece.file, os.fstat(fd))
                done = 0
                while done < piece.size and (count := os.preadv(fd, [into[done:]], piece.offset + done)):
                    done += count
                self._check(piece.file, os.fstat(fd))
            finally:
                os.close(fd)
        except FileNotFoundError as error:
            raise self._changed(piece.file) from error
        except OSError as error:
            raise VolumeFailed(
                f"volume {self.name!r}: {self.shown(file.path)} can't be read: {error.strerror}", everywhere=True
            ) from error
        if done < piece.size:
            raise self._changed(piece.file)

    def _check(self, index: int, now: os.stat_result) -> None:
        file = self.files[index]
        if (now.st_size, now.st_mtime_ns, now.st_ino) != (file.size, file.changed, self.inodes[index]):
            raise self._changed(index)

    def _changed(self, index: int) -> VolumeFailed:
        return VolumeFailed(
            f"volume {self.name!r}: {self.shown(self.files[index].path)} has changed since the pool began to read the "
            "folder. Nodes must all get the same content: let whatever writes there finish, and start the pool again",
            everywhere=True,
        )

    def shown(self, path: bytes) -> str:
        """Return the path of one of its files for a message."""
        return os.fsdecode(os.path.join(os.fsencode(self.name), path))


class _Scan:
    """The walk through a folder."""

    def __init__(self, name: str, root: bytes) -> None:
        self.name, self.root = name, root
        self.folders: list[bytes] = []
        self.files: list[tuple[FolderFile, int]] = []
        self.links: list[FolderLink] = []

    def shown(self, path: bytes) -> str:
        return os.fsdecode(os.path.join(os.fsencode(self.name), path))

    def refuse(self, path: bytes, why: str) -> ConfigError:
        return ConfigError(f"volume {self.name!r}: {self.shown(path)} {why}")

    def walk(self, path: bytes) -> None:
        """Add what is in one folder; folders in it are returned to by the caller's loop."""
        waiting = [path]
        while waiting:
            path = waiting.pop()
            for entry in self._entries(path):
                place = os.path.join(path, entry.name)
                if len(place) > _LONGEST:
                    raise self.refuse(path, f"is too deep: paths of more than {_LONGEST} bytes can't be sent")
                if len(self.folders) + len(self.files) + len(self.links) >= _MAX_ENTRIES:
                    raise ConfigError(
                        f"volume {self.name!r} has more than {_MAX_ENTRIES:,} entries; put them into archives, or "
                        "mount only the folders that tasks need"
                    )
                if entry.is_symlink():
                    self._link(place)
                elif entry.is_dir(follow_symlinks=False):
                    self.folders.append(place)
                    waiting.append(place)
                else:
                    self._file(place, entry.stat(follow_symlinks=False))

    def _entries(self, path: bytes) -> list[os.DirEntry[bytes]]:
        try:
            with os.scandir(os.path.join(self.root, path)) as entries:
                return list(entries)
        except OSError as error:
            raise self.refuse(path, f"can't be read: {error.strerror}") from error

    def _file(self, path: bytes, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise self.refuse(path, "is neither a file nor a folder nor a link (a socket, a pipe or a device)")
        if not os.access(os.path.join(self.root, path), os.R_OK):
            raise self.refuse(path, "can't be read: Permission denied")
        runs = bool(status.st_mode & stat.S_IXUSR)
        self.files.append((FolderFile(path, status.st_size, runs, status.st_mtime_ns), status.st_ino))

    def _link(self, path: bytes) -> None:
        """Add a link, which must lead to something in the folder, and not in a circle."""
        here = os.path.join(self.root, path)
        target = os.readlink(os.fsdecode(here))
        try:
            real = os.path.realpath(here, strict=True)
        except OSError as error:
            loop = "is a loop of links" if error.errno == errno.ELOOP else "leads nowhere"
            raise self.refuse(path, f"{loop} ({target})") from error
        parent = os.path.dirname(here)
        if parent == real or parent.startswith(os.path.join(real, b"")):
            raise self.refuse(path, f"is a loop: it leads to a folder that it is in ({target})")
        if not real.startswith(os.path.join(self.root, b"")):
            raise self.refuse(path, f"leads out of the folder, to {target}. Copy what tasks need into the folder")
        self.links.append(FolderLink(path, os.path.relpath(real, parent)))


def scan(name: str) -> Folder:
    """Find out what is in a folder, without reading its files.

    Raises
    ------
    ConfigError
        There is no such folder, or something in it can't be sent; the message names it.
    """
    root = os.path.realpath(os.fsencode(name))
    if not Path(os.fsdecode(root)).is_dir():
        raise ConfigError(f"volume {name!r} is not a folder of this machine ({os.fsdecode(root)})")
    found = _Scan(name, root)
    found.walk(b"")
    files = sorted(found.files)
    return Folder(
        name, root, sorted(found.folders), [file for file, _ in files], sorted(found.links), [ino for _, ino in files]
    )
