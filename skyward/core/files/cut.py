"""Decides where to cut the content of a folder into chunks, so that a small change makes few new ones. Pure.

A large file begins a chunk of its own and is cut at fixed offsets. Runs of small files share chunks; where a run ends
depends on the files' paths and sizes only, so a file that is added or removed changes its own run only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import xxhash

from skyward.core.protocol.manifest import CHUNK, FolderFile, Piece

__all__ = ["cut"]

_SMALL = CHUNK // 16  # bytes below which files share chunks
_RUN = CHUNK // 4  # mean bytes of a run


def cut(files: Iterable[FolderFile]) -> Iterator[list[Piece]]:
    """Decide what each chunk holds."""
    run: list[Piece] = []
    filled = 0
    for index, (path, size, _, _) in enumerate(files):
        if size >= _SMALL or filled + size > CHUNK:
            if run:
                yield run
            run, filled = [], 0
        if size >= _SMALL:
            yield from ([Piece(index, at, min(CHUNK, size - at))] for at in range(0, size, CHUNK))
        elif size:
            run.append(Piece(index, 0, size))
            filled += size
            if xxhash.xxh3_64_intdigest(path) % _RUN < size:
                yield run
                run, filled = [], 0
    if run:
        yield run
