"""Large results of the driver's caches on a node: each is fetched once for all tasks there, and kept in a file.

The driver says which file a result is at each lookup (its inode, time and size), so a copy of what was cleared or
replaced meanwhile is never found. Copies are in a folder that the agent removes. The oldest go if the disk gets full;
one that is being read stays.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from skyward.core.whoami import KEPT

__all__ = ["fetched"]

_MARGIN = 1 << 30  # bytes of the disk to leave free for others


@contextlib.contextmanager
def fetched(
    which: tuple[str, ...], size: int, fetch: Callable[[IO[bytes]], str | None], version: str
) -> Iterator[IO[bytes] | None]:
    """Yield the file of a result, which stays there for the time being; None if there is no result or no room.

    Parameters
    ----------
    which
        The cache and the call.
    size
        Bytes of the result.
    fetch
        Writes a result into a file; returns its version, or None if it is gone.
    version
        The version that is wanted. If `fetch` returns another one, that is yielded.
    """
    folder = os.environ.get(KEPT)
    if not folder:
        yield None
        return
    with contextlib.ExitStack() as stack:
        try:
            found = _found(Path(folder), which, size, fetch, version)
        except OSError:  # no folder can be made there, or the disk is full after all
            found = None
        yield None if found is None else stack.enter_context(found)


def _found(
    folder: Path, which: tuple[str, ...], size: int, fetch: Callable[[IO[bytes]], str | None], version: str
) -> IO[bytes] | None:
    folder.mkdir(mode=0o700, exist_ok=True)
    call = hashlib.blake2b(repr(which).encode(), digest_size=16).hexdigest()
    path = folder / f"{call}-{version}"
    if (file := _opened(path)) is not None:
        return file
    with (folder / f"{call}.lock").open("wb") as lock:  # one slot fetches, the others wait
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (file := _opened(path)) is not None:
            return file
        if not _has_room(folder, size):
            return None
        part = folder / f"{call}.part"
        try:
            with part.open("wb") as target:
                had = fetch(target)
            if had is None:
                return None
            for old in folder.glob(f"{call}-*"):  # was replaced
                old.unlink()
            path = folder / f"{call}-{had}"
            part.rename(path)
        finally:
            part.unlink(missing_ok=True)
        return _opened(path)


def _opened(path: Path) -> IO[bytes] | None:
    """Open a copy and mark it as being read; None if it is not there, or about to be removed."""
    file: Any = None
    with contextlib.suppress(OSError):
        file = path.open("rb")
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if os.fstat(file.fileno()).st_nlink:
            os.utime(path, ns=(time.time_ns(), time.time_ns()))  # the kernel's own is that of the last tick
            return file  # type: ignore[no-any-return]
    if file is not None:
        file.close()
    return None


def _has_room(folder: Path, size: int) -> bool:
    """Whether a result fits; if necessary, copies that nobody reads are removed, the longest unused first."""
    copies = sorted(folder.glob("*-*"), key=lambda path: path.stat().st_mtime)
    while shutil.disk_usage(folder).free < size + _MARGIN:
        if not copies:
            return False
        _remove_if_unused(copies.pop(0))
    return True


def _remove_if_unused(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
