"""Vendors' own clients, each in a virtual environment of its own, as some pin what we have in other versions.

Made once by uv, from wherever it is configured to install; afterwards the tests need no network.
"""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

import uv

__all__ = ["PINS", "client_python"]

PINS = {"vastai": ("vastai==1.9.1",)}
"""What is installed in the environment of each client."""

_BUILD = Path(__file__).resolve().parents[1] / "build" / "clients"


def client_python(name: str) -> Path:
    """The interpreter of the environment that has this client, which is made now if need be."""
    folder = _BUILD / f"{sys.version_info.major}.{sys.version_info.minor}-{name}"
    _BUILD.mkdir(parents=True, exist_ok=True)
    python, done, pins = folder / "bin" / "python", folder / "pins.txt", "\n".join(PINS[name])
    with (_BUILD / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs at a time
        if not done.exists() or done.read_text() != pins:
            program = uv.find_uv_bin()
            subprocess.run([program, "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True)
            command = [program, "pip", "install", "--quiet", "--python", python, *PINS[name]]
            subprocess.run(command, check=True, timeout=600)
            done.write_text(pins)
    return python
