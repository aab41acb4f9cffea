"""Runs programs as on a system without Linux's helpers: no /proc, and none of the calls that only Linux has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

__all__ = ["missing", "run", "start"]

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parents[1]
# A mount namespace of its own, in which /proc is empty, and /dev/shm has only room for semaphores, which the C library
# keeps there. The process keeps its pid, so that tests see it.
_HIDE = 'mount -t tmpfs none /proc && mount -t tmpfs -o size=64k none /dev/shm && exec "$@"'


def missing() -> str | None:
    """Why that can't be had here; None if it can."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return "hiding /proc needs root and unshare"
    return None


def start(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a Python program in that world."""
    variables = {**os.environ, **(env or {})}
    variables["_PYTHON_SYSCONFIGDATA_NAME"] = sysconfig._get_sysconfigdata_name()  # type: ignore[attr-defined]
    variables["PYTHONPATH"] = os.pathsep.join([str(_HERE), str(_ROOT)])
    return subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", _HIDE, "sh", sys.executable, str(_HERE / "programs.py"), *arguments],
        env=variables,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> str:
    """Run a program there to its end; return what it prints."""
    process = start(folder, *arguments, env=env)
    try:
        said, complained = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        said, complained = process.communicate()
        raise AssertionError(f"it hangs; it said:\n{said}\n{complained}") from None
    assert process.returncode == 0, f"exit status {process.returncode}:\n{said}\n{complained}"
    return said
