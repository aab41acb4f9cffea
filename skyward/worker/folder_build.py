"""Builds a folder from its manifest and chunks: next to its final place, and renamed once it is complete."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from skyward.core.protocol.manifest import CHUNK, FolderFile, Manifest, Piece, chunk_size, pieces
from skyward.worker.scratch import remove

try:
    from xxhash import xxh3_128_digest as _digest
except ImportError:  # a node may lack it; then only the length of chunks is checked
    _digest = None  # type: ignore[assignment]
_DIGEST: Callable[[memoryview], bytes] | None = _digest

__all__ = ["build"]

_SHARED = 128 * 1024  # bytes from which the file system is asked to share blocks or to copy by itself


def build(manifest: Manifest, chunk: Callable[[bytes], str], place: str, *, writable: bool) -> list[bytes]:
    """Build a folder.

    Parameters
    ----------
    manifest
        What is in it.
    chunk
        Returns the path of a chunk's file.
    place
        Its path, which must not exist; missing folders above it are made.
    writable
        Whether tasks may change what is in it. All files are copies in any case.

    Returns
    -------
    list of bytes
        Names of chunks that have the wrong content, or are gone; then nothing was built.

    Raises
    ------
    OSError
        It can't be built, and nothing is left of it.
    """
    if os.path.lexists(place):
        raise FileExistsError(errno.EEXIST, "it exists already", place)
    parent, _ = os.path.split(place)
    os.makedirs(parent, exist_ok=True)
    folder = tempfile.mkdtemp(prefix=".skyward-", dir=parent)
    try:
        wrong = _fill(os.fsencode(folder), manifest, chunk, writable)
        if not wrong:
            os.rename(folder, place)
            os.chmod(place, 0o755 if writable else 0o555)
    finally:
        if os.path.lexists(folder):
            remove(folder)
    return wrong


def _fill(root: bytes, manifest: Manifest, chunk: Callable[[bytes], str], writable: bool) -> list[bytes]:
    """Make everything below `root`; returns the chunks that are wrong."""
    for path in manifest.folders:
        os.mkdir(os.path.join(root, path), 0o755)
    wrong = []
    buffer = memoryview(bytearray(CHUNK))
    with _FileWriter(root, manifest.files, writable) as writer:
        for name, parts in zip(manifest.chunks, pieces(manifest.files, map(chunk_size, manifest.chunks)), strict=True):
            data = buffer[: chunk_size(name)]
            with contextlib.ExitStack() as stack:
                fd = _open(chunk(name), stack)
                if fd is None or not _is_right(fd, data, name):
                    wrong.append(name)
                elif not wrong:
                    writer.write(fd, data, parts)
        if not wrong:
            writer.finish()
    for path, target in manifest.links:
        os.symlink(target, os.path.join(root, path))
    if not writable:
        for path in reversed(manifest.folders):
            os.chmod(os.path.join(root, path), 0o555)
    return wrong


def _open(path: str, stack: contextlib.ExitStack) -> int | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    stack.callback(os.close, fd)
    return fd


def _is_right(fd: int, data: memoryview, name: bytes) -> bool:
    """Read a chunk, and whether its content is what its name says."""
    done = 0
    while done < len(data) and (count := os.readv(fd, [data[done:]])):
        done += count
    return done == len(data) and (_DIGEST is None or _DIGEST(data) == name[-16:])


class _FileWriter:
    """Writes the files, one after the other."""

    def __init__(self, root: bytes, files: Sequence[FolderFile], writable: bool) -> None:
        self._root = root
        self._files = files
        self._writable = writable
        self._next = 0  # index of the next file
        self._fd = -1  # of the file before it
        self._shares = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def write(self, fd: int, data: memoryview, parts: Sequence[Piece]) -> None:
        """Write a chunk."""
        at = 0
        for index, offset, size in parts:
            while self._next <= index:
                self._begin()
            if not self._share(fd, at, offset, size):
                done = 0
                while done < size:
                    done += os.pwrite(self._fd, data[at + done : at + size], offset + done)
            at += size

    def _share(self, fd: int, at: int, offset: int, size: int) -> bool:
        """Copy within the kernel, which may only note that blocks are shared."""
        if not self._shares or size < _SHARED or not hasattr(os, "copy_file_range"):
            return False
        done = 0
        try:
            while done < size:
                count = os.copy_file_range(fd, self._fd, size - done, at + done, offset + done)
                if not count:
                    break
                done += count
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG):
                raise
            self._shares = False
        return done == size

    def _begin(self) -> None:
        """Finish a file, and start the next one."""
        self._end()
        path, _, runs, _ = self._files[self._next]
        mode = (0o755 if runs else 0o644) if self._writable else (0o555 if runs else 0o444)
        where = os.path.join(self._root, path)
        self._fd = os.open(where, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        os.fchmod(self._fd, mode)
        self._next += 1

    def _end(self) -> None:
        if self._fd >= 0:
            changed = self._files[self._next - 1].changed
            os.utime(self._fd, ns=(changed, changed))
            os.close(self._fd)
            self._fd = -1

    def finish(self) -> None:
        """Make the last files, which are empty, and end."""
        while self._next < len(self._files):
            self._begin()
        self._end()
