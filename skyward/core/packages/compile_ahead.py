"""Compiles modules on a node right after their installation, on all cores. Runs on the host.

``python compile_ahead.py FOLDER [ARCHIVE ...] < PATHS``: paths of modules relative to the folder, one a line, and the
parts of an archive of `compiled_modules`. Slots would compile each module when they import it, one after another, and
all slots at the same time. What the driver has compiled of the very same source is taken from the archive. This imports
nothing of skyward, and only the standard library. What can't be compiled is left to whoever imports it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import py_compile
import struct
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]

_LIMIT = 20.0  # seconds; after that slots compile the rest
_HASH = 8  # bytes


def main(folder: str, lines: list[str], archive: Sequence[str] = ()) -> None:
    """Compile them, in as many processes as there are cores.

    Parameters
    ----------
    folder
        Where the modules are.
    lines
        Their paths in it.
    archive
        Parts of an archive, in order.
    """
    given = _read(archive)
    paths = [line for line in lines if Path(folder, line).is_file()]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    end = time.monotonic() + _LIMIT
    children = []
    for part in range(min(cores, len(paths))):
        if (child := os.fork()) == 0:
            try:
                _compile(folder, paths[part::cores], given, end)
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


def _read(archive: Sequence[str]) -> zipfile.ZipFile | None:
    """The archive, in memory; None if there is none, or if it is of another Python."""
    try:
        found = zipfile.ZipFile(io.BytesIO(b"".join(Path(part).read_bytes() for part in archive)))
    except (OSError, zipfile.BadZipFile):
        return None
    return found if found.comment == importlib.util.MAGIC_NUMBER else None


def _compile(folder: str, paths: list[str], given: zipfile.ZipFile | None, end: float) -> None:
    for path in paths:
        if time.monotonic() > end:
            return
        with contextlib.suppress(Exception):  # its source may be anything
            if given is None or not _take(given, path, Path(folder, path)):
                py_compile.compile(str(Path(folder, path)), doraise=True)


def _take(given: zipfile.ZipFile, name: str, file: Path) -> bool:
    """Take what was compiled of this very source; False if there is no such."""
    try:
        data = given.read(name)
    except KeyError:
        return False
    state = file.stat()
    if importlib.util.source_hash(file.read_bytes()) != data[:_HASH]:
        return False
    target = Path(importlib.util.cache_from_source(str(file)))
    target.parent.mkdir(exist_ok=True)
    draft = target.with_suffix(f".{os.getpid()}")
    numbers = 0, int(state.st_mtime) & 0xFFFFFFFF, state.st_size & 0xFFFFFFFF
    draft.write_bytes(importlib.util.MAGIC_NUMBER + struct.pack("<III", *numbers) + data[_HASH:])
    draft.replace(target)
    return True


if __name__ == "__main__":
    main(sys.argv[1], sys.stdin.read().splitlines(), sys.argv[2:])
