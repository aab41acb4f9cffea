"""Finds the files of tasks that match a pattern."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable, Iterator, Sequence

__all__ = ["find"]


def find(work: bytes, pattern: bytes, without: Sequence[bytes]) -> list[tuple[bytes, bytes, int, int, bool]]:
    """Find files.

    Parameters
    ----------
    work
        The tasks' working directory, in which a relative pattern applies.
    pattern
        As for `glob.glob`; ``**`` matches folders at any depth. A folder that matches stands for all files in it.
    without
        Folders whose files do not count.

    Returns
    -------
    list of tuple
        For each file: its path, in `work` or absolute; its path below what the pattern spells out; its size;
        its modification time; and whether it is executable.
    """
    base = _spelled_out(pattern)
    found: dict[bytes, bytes] = {}
    for match in glob.iglob(pattern, root_dir=work, recursive=True):
        is_folder = os.path.isdir(os.path.join(work, match))
        top = os.path.dirname(base) if os.path.normpath(match) == base and not is_folder else base
        for path in _files(work, match) if is_folder else (match,):
            found.setdefault(os.path.normpath(path), os.path.relpath(path, top or b"."))
    rows = []
    for path, name in sorted(found.items()):
        where = os.path.join(work, path)
        if any(where.startswith(os.path.join(folder, b"")) for folder in without):
            continue
        status = os.stat(where)
        if stat.S_ISREG(status.st_mode):
            rows.append((path, name, status.st_size, status.st_mtime_ns, bool(status.st_mode & stat.S_IXUSR)))
    return rows


def _files(work: bytes, folder: bytes) -> Iterator[bytes]:
    for here, _, names in os.walk(os.path.join(work, folder)):
        for name in names:
            yield os.path.join(folder, os.path.relpath(os.path.join(here, name), os.path.join(work, folder)))


def _spelled_out(pattern: bytes) -> bytes:
    """The path at the beginning of a pattern that has no special characters."""
    parts: list[bytes] = []
    for part in _parts(pattern):
        if glob.has_magic(part):
            break
        parts.append(part)
    return os.path.normpath(b"/".join(parts)) if parts else b""


def _parts(pattern: bytes) -> Iterable[bytes]:
    return pattern.split(b"/")
