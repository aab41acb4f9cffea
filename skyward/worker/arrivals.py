"""Packages that arrive while slots live: installed for a task that needed them, see `core/tasks/late_packages.py`.

Each arrives as a folder that is complete when it appears and never changes, and comes last on ``sys.path``. So a slot
never has two versions of anything: what it could import before stays what it was.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

__all__ = ["FOLDER", "Arrivals", "install"]

FOLDER = "SKYWARD_PACKAGES"
"""Variable with the folder in which they appear."""


class Arrivals:
    """The last module finder: it looks for new folders only when nothing else has found a module.

    Parameters
    ----------
    folder
        Where they appear. Names that begin with a dot are not complete yet.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def __repr__(self) -> str:
        return f"<Arrivals in {self._folder}>"

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module that may have arrived since this process last looked.

        Parameters
        ----------
        fullname, path, target
            As for all finders.
        """
        try:
            names = sorted(name for name in os.listdir(self._folder) if not name.startswith("."))  # noqa: PTH208 - quick
        except OSError:
            return None
        new = [place for name in names if (place := os.path.join(self._folder, name)) not in sys.path]
        if not new:
            return None
        sys.path += new
        return PathFinder.find_spec(fullname, path, target)


def install() -> None:
    """Look for arrivals in this process and its forks, if the node's start has made a folder for them."""
    folder = os.environ.get(FOLDER)
    if folder:
        sys.meta_path.append(Arrivals(folder))
