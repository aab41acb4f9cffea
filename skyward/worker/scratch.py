"""Private folders of a process, which others can recognize as abandoned once it has died, however it died."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

from skyward.worker.mounts import unmount_below

__all__ = ["make", "remove", "sweep"]

_YOUNG = 3600.0  # seconds for which a folder may lack a lock, as it is being made


def make(parent: str, kind: str) -> tuple[str, int]:
    """Make a folder that only this user can enter; returns it and the descriptor of its lock, to be held while in use.

    Abandoned folders of the same kind are removed.

    Raises
    ------
    OSError
        No folder can be made there.
    """
    sweep(parent, kind)
    while True:
        folder = tempfile.mkdtemp(prefix=_prefix(kind), dir=parent)  # mode 0700
        try:
            fd = os.open(f"{folder}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            remove(folder)
            raise
        if _holds(fd, folder):
            return folder, fd
        os.close(fd)  # another process removed it before it was locked


def _holds(fd: int, folder: str) -> bool:
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(fd), os.stat(f"{folder}/lock"))  # noqa: PTH116
    return False


def sweep(parent: str, kind: str) -> None:
    """Remove the folders of processes that have died."""
    with contextlib.suppress(OSError):
        for folder in Path(parent).glob(f"{_prefix(kind)}*"):
            status = folder.lstat()
            if status.st_uid == os.getuid():
                _remove_if_free(folder, status.st_mtime)


def _remove_if_free(folder: Path, changed: float) -> None:
    try:
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        if changed < time.time() - _YOUNG:
            remove(folder)
        return
    except OSError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove(folder)
    except OSError:
        pass  # it is in use
    finally:
        os.close(fd)


def remove(folder: str | os.PathLike[str]) -> None:
    """Remove a folder with everything in it, read-only folders included; what can't be removed stays.

    What is mounted there is not part of it, and is unmounted first.
    """
    unmount_below(folder)
    shutil.rmtree(folder, ignore_errors=True)
    if os.path.lexists(folder):
        for here, _, _ in os.walk(folder):
            with contextlib.suppress(OSError):
                Path(here).chmod(0o700)
        shutil.rmtree(folder, ignore_errors=True)


def _prefix(kind: str) -> str:
    return f"skyward-{kind}-{os.getuid()}-"
