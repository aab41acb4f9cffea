"""The machine and the versions, without which a table of figures means nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

__all__ = ["facts", "versions"]

_PACKAGES = (
    "skyward-cloud",
    "joblib",
    "loky",
    "numpy",
    "scikit-learn",
    "asyncssh",
    "distributed",
    "ray",
    "ipyparallel",
    "lithops",
)


def facts() -> dict[str, object]:
    """The machine as it is now; the load says how busy others keep it."""
    memory = {line.split(":")[0]: line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines()}
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(int(memory["MemTotal"]) * 1024 / 1e9, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": [round(value, 2) for value in os.getloadavg()],
    }


def versions() -> dict[str, str]:
    """Versions of what takes part, and the commit of this repository."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return found | ({"commit": commit} if commit else {})


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
