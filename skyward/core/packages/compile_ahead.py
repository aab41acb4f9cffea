"""Compiles modules on a node right after their installation, on all cores. Runs on the host.

``python compile_ahead.py FOLDER < PATHS``: paths of modules relative to the folder, one a line. Slots would compile
each when they import it, one module after another, and all slots at the same time. This imports nothing of skyward, and
only the standard library. What can't be compiled is left to whoever imports it.
"""

from __future__ import annotations

import contextlib
import os
import py_compile
import sys
import time
from pathlib import Path

__all__ = ["main"]

_LIMIT = 20.0  # seconds; after that slots compile the rest


def main(folder: str, lines: list[str]) -> None:
    """Compile them, in as many processes as there are cores."""
    paths = [path for line in lines if (path := Path(folder, line)).is_file()]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    end = time.monotonic() + _LIMIT
    children = []
    for part in range(min(cores, len(paths))):
        if (child := os.fork()) == 0:
            try:
                _compile(paths[part::cores], end)
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


def _compile(paths: list[Path], end: float) -> None:
    for path in paths:
        if time.monotonic() > end:
            return
        with contextlib.suppress(Exception):  # its source may be anything
            py_compile.compile(str(path), doraise=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.stdin.read().splitlines())
