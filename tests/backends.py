"""A folder of wheels of build backends, to make editable installs as users do. Downloaded once, like wheels.py's."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

__all__ = ["backends"]

_PINS = (
    "editables==0.6",
    "flit-core==4.2.0",
    "hatchling==1.33.0",
    "poetry-core==2.5.0",
    "setuptools==84.2.1",
    "wheel==0.48.0",
)
_BUILD = Path(__file__).resolve().parents[1] / "build" / "wheels"


@pytest.fixture(scope="session")
def backends() -> Path:
    """The folder, for ``uv --no-index --find-links``."""
    folder = _BUILD / "backends"
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "pins.txt"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs at a time
        if not done.exists() or done.read_text().split() != list(_PINS):
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "-d", str(folder)]
            subprocess.run([*command, *_PINS], check=True, timeout=600)
            done.write_text("\n".join(_PINS))
    return folder
