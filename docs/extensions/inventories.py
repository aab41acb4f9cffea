"""Inventories of other projects' documentation, for links to Python, joblib, scikit-learn and numpy.

They are fetched once and stored under build/. Without internet there are none: the site is built all the same, and
names of these projects are plain text.
"""

from __future__ import annotations

import threading
import urllib.request
import zlib
from pathlib import Path

__all__ = ["MODULES", "PROJECTS", "found"]

PROJECTS = {
    "joblib": "https://joblib.readthedocs.io/en/stable/",
    "numpy": "https://numpy.org/doc/stable/",
    "python": "https://docs.python.org/3/",
    "sklearn": "https://scikit-learn.org/stable/",
}

MODULES = ["_pickle", "asyncio", "builtins", "collections", "concurrent", "contextlib", "datetime", "enum", "joblib"]
MODULES += ["mmap", "numpy", "os", "pathlib", "sklearn", "types", "typing"]
"""Modules that signatures refer to; a reference to them that can't be linked is no error."""

_SECONDS = 5  # in which all must have arrived; a host name lookup may take half a minute if no server answers
_HEAD = b"# Sphinx inventory version 2"


def _fetch(address: str, goal: Path) -> None:
    try:
        with urllib.request.urlopen(address, timeout=_SECONDS) as reply:
            content = reply.read()
        zlib.decompress(content.split(b"\n", 4)[4])
    except (OSError, IndexError, zlib.error) as error:
        print(f"no links into {address}: {error}")
        return
    if content.startswith(_HEAD):
        unfinished = goal.with_suffix(".new")
        unfinished.write_bytes(content)
        unfinished.replace(goal)


def found(folder: Path) -> dict[str, tuple[str, str]]:
    """Fetch the inventories that `folder` lacks, and return the projects whose inventory is there."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.inv" for name in PROJECTS}
    threads = [
        threading.Thread(target=_fetch, args=(f"{PROJECTS[name]}objects.inv", path), daemon=True, name=f"fetch-{name}")
        for name, path in paths.items()
        if not path.exists()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_SECONDS)
    return {name: (PROJECTS[name], str(path)) for name, path in paths.items() if path.exists()}
