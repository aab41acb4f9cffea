"""What a folder holds, and in which chunks its content travels: all that a node needs to build the folder. Pure.

The contents of a folder's files, in the order of their paths, form one long stream, which is cut into chunks. Each is
named by its size and the hash of its content, like any blob. Where to cut is the driver's business (`core.files.cut`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgpack

__all__ = ["CHUNK", "FolderFile", "FolderLink", "Manifest", "Piece", "chunk_size", "pieces"]

CHUNK = 4 * 2**20
"""Maximum bytes of a chunk: small beside a machine's memory, large beside what a message costs."""

_SIZE = 8  # bytes of a chunk's name that hold its size
_NAME = _SIZE + 16
_FORMAT = 1
_MAX_PATH = 4096 - 256  # bytes: what Linux allows, less what a node puts in front


class FolderFile(NamedTuple):
    """A regular file: its path in the folder, bytes, whether it is executable, and its modification time (ns)."""

    path: bytes
    size: int
    runs: bool
    changed: int


class FolderLink(NamedTuple):
    """A symbolic link: its path in the folder, and where it points, relative to the folder that it is in."""

    path: bytes
    target: bytes


class Piece(NamedTuple):
    """A part of a chunk: `size` bytes of the file with this index, from `offset` on."""

    file: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of a folder.

    Attributes
    ----------
    folders
        Paths of all folders in it, each after the one that it is in.
    files
        In the order of their paths.
    links
        Symbolic links, which all lead to something in the folder.
    chunks
        Names of the chunks, in order.
    """

    folders: Sequence[bytes]
    files: Sequence[FolderFile]
    links: Sequence[FolderLink]
    chunks: Sequence[bytes]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def pack(self) -> bytes:
        """Return it as bytes."""
        packed: bytes = msgpack.packb([_FORMAT, self.folders, self.files, self.links, b"".join(self.chunks)])
        return packed

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> Manifest:
        """Read what `pack` returned.

        Raises
        ------
        ValueError
            These are not the bytes of a manifest, or it would write outside its folder.
        """
        try:
            kind, folders, files, links, names = msgpack.unpackb(data)
            if kind != _FORMAT or len(names) % _NAME:
                raise ValueError("of another version")
            manifest = cls(
                folders,
                [FolderFile(*file) for file in files],
                [FolderLink(*link) for link in links],
                [names[at : at + _NAME] for at in range(0, len(names), _NAME)],
            )
            _check(manifest)
        except (TypeError, ValueError, msgpack.UnpackException) as error:
            raise ValueError(f"not a manifest: {error}") from error
        return manifest


def chunk_size(name: bytes) -> int:
    """Return the bytes of a chunk."""
    return int.from_bytes(name[:_SIZE], "big")


def pieces(files: Sequence[FolderFile], sizes: Iterable[int]) -> Iterator[list[Piece]]:
    """Return what each chunk holds, given their sizes.

    Raises
    ------
    ValueError
        The sizes don't add up to those of the files.
    """
    index, offset = 0, 0
    for size in sizes:
        chunk: list[Piece] = []
        left = size
        while left:
            while index < len(files) and offset == files[index].size:
                index, offset = index + 1, 0
            if index == len(files):
                raise ValueError("more content than files")
            count = min(left, files[index].size - offset)
            chunk.append(Piece(index, offset, count))
            offset, left = offset + count, left - count
        yield chunk
    while index < len(files) and offset == files[index].size:
        index, offset = index + 1, 0
    if index < len(files):
        raise ValueError("more files than content")


def _check(manifest: Manifest) -> None:
    """Check that a manifest describes one folder, and nothing outside it."""
    for file in manifest.files:
        if type(file.size) is not int or file.size < 0 or type(file.changed) is not int:
            raise ValueError("a file without a size")
    if any(not 0 < chunk_size(name) <= CHUNK for name in manifest.chunks):
        raise ValueError("a chunk of an impossible size")
    for _ in pieces(manifest.files, map(chunk_size, manifest.chunks)):
        pass
    folders = {b""}
    seen: set[bytes] = set()
    for path in manifest.folders:
        _check_path(path, folders, seen)
        folders.add(path)
    for file in manifest.files:
        _check_path(file.path, folders, seen)
    for link in manifest.links:
        _check_path(link.path, folders, seen)
        _check_target(link)


def _check_path(path: Any, folders: set[bytes], seen: set[bytes]) -> None:
    if type(path) is not bytes or not 0 < len(path) <= _MAX_PATH or b"\0" in path:
        raise ValueError(f"an impossible path: {path!r:.100}")
    parent, _, name = path.rpartition(b"/")
    if path.startswith(b"/") or parent not in folders or name in (b"", b".", b"..") or path in seen:
        raise ValueError(f"a path that is not in its folder: {path!r:.100}")
    seen.add(path)


def _check_target(link: FolderLink) -> None:
    depth = link.path.count(b"/")
    if type(link.target) is not bytes or not link.target or link.target.startswith(b"/") or b"\0" in link.target:
        raise ValueError(f"a link to an impossible place: {link.path!r:.100}")
    for part in link.target.split(b"/"):
        depth += -1 if part == b".." else part not in (b"", b".")
        if depth < 0:
            raise ValueError(f"a link out of the folder: {link.path!r:.100}")
