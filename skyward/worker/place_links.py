"""Links from absolute mounts to the folders that the agent keeps for them, also where only root may make one."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import subprocess
from pathlib import Path

__all__ = ["link", "unlink"]

_PATIENCE = 10.0  # seconds
_numbers = itertools.count(1)


def link(place: str, target: str) -> None:
    """Make a link from a place to a folder; it appears at once, instead of a link that is there.

    Parameters
    ----------
    place
        An absolute path. If its folder belongs to others, sudo is used, provided that it asks for no password.
    target
        The folder.

    Raises
    ------
    OSError
        That is not possible.
    """
    parent = Path(place).parent
    new = parent / f".skyward-{os.getpid()}-{next(_numbers)}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        new.symlink_to(target)
        new.replace(place)
    except PermissionError as error:
        if not (_as_root("mkdir", "-p", str(parent)) and _as_root("ln", "-sfnT", target, place)):
            raise PermissionError(
                errno.EACCES,
                "this user can't create it, and has no passwordless sudo; mount at a relative path, which "
                "is in the tasks' working directory",
                place,
            ) from error


def unlink(place: str, target: str) -> None:
    """Remove a link, if it still leads to that folder."""
    with contextlib.suppress(OSError):
        if str(Path(place).readlink()) != target:
            return
        try:
            Path(place).unlink()
        except PermissionError:
            _as_root("rm", "-f", place)


def _as_root(*command: str) -> bool:
    if (sudo := shutil.which("sudo")) is None:
        return False
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            [sudo, "-n", "--", *command],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE,
        )
        return done.returncode == 0
    return False
