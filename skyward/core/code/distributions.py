"""What installed distributions say of local code: which are editable, what they built, and where their metadata is."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from skyward.core.code.places import tops_of

__all__ = ["Editable", "editables", "metadata_beside", "owner_beside"]


@dataclass(frozen=True, slots=True)
class Editable:
    """A distribution that is installed in place.

    Attributes
    ----------
    name
        As in the name of its metadata.
    project
        Folder of the project.
    metadata
        Folder of its metadata.
    tops
        Top-level modules that were copied or built into the environment nevertheless, as maturin does.
    """

    name: str
    project: str
    metadata: str
    tops: frozenset[str]

    def is_about(self, module: str) -> bool:
        """Whether a top-level module is the distribution's, as far as its metadata says."""
        declared = _text(f"{self.metadata}/top_level.txt").split()
        return module in declared or module == self.name.replace("-", "_").lower()

    def holds(self, source: str) -> bool:
        """Whether a file or folder is in the project."""
        return os.path.realpath(source).startswith(os.path.join(os.path.realpath(self.project), ""))


def editables(path: Sequence[str]) -> list[Editable]:
    """Find the editable distributions on a path; the deepest project first, as projects may be nested."""
    found = [each for folder in dict.fromkeys(path) if os.path.isdir(folder) for each in _in_folder(folder)]
    return sorted(found, key=lambda each: -len(each.project))


def _in_folder(folder: str) -> Iterator[Editable]:
    for entry in os.listdir(folder):
        place = os.path.join(folder, entry)
        if entry.endswith(".dist-info"):
            project = _direct_url(f"{place}/direct_url.json")
            if project is not None:
                yield Editable(_distribution(entry), project, place, frozenset(_tops(place)))
        elif entry.endswith(".egg-link"):
            lines = _text(place).splitlines() or [""]
            below = os.path.normpath(os.path.join(lines[0], lines[1] if len(lines) > 1 else "."))
            for metadata in metadata_beside(lines[0], _distribution(entry)):
                yield Editable(_distribution(entry), below, metadata, frozenset())


def _direct_url(file: str) -> str | None:
    """The project's folder, if the distribution is editable."""
    with contextlib.suppress(ValueError, AttributeError, KeyError, TypeError):
        origin = json.loads(_text(file) or "{}")
        if origin.get("dir_info", {}).get("editable"):
            return unquote(urlsplit(origin["url"]).path)
    return None


def _distribution(entry: str) -> str:
    """The name of a distribution, from that of its metadata."""
    return entry.rpartition(".")[0].partition("-")[0]


def _tops(metadata: str) -> set[str]:
    return tops_of(_text(f"{metadata}/RECORD"))


def _text(file: str) -> str:
    try:
        return Path(file).read_text("utf-8", "replace")
    except OSError:
        return ""


def metadata_beside(folder: str, name: str) -> list[str]:
    """Return the metadata in a folder of modules that says it is of the distribution or the module of this name.

    Parameters
    ----------
    folder
        An entry of ``sys.path``.
    name
        The distribution or the module.
    """
    wanted, found = name.replace("-", "_").lower(), []
    with contextlib.suppress(OSError):
        for entry in os.listdir(folder):
            place = os.path.join(folder, entry)
            is_dist = entry.endswith(".dist-info")
            if not is_dist and not entry.endswith(".egg-info"):
                continue
            tops = _text(f"{place}/top_level.txt").split()
            if _distribution(entry).lower() == wanted or name in tops or (is_dist and name in _tops(place)):
                found.append(place)
    return found


def owner_beside(folder: str, name: str) -> str | None:
    """Return the distribution that installed a module into a folder other than ``site-packages``, by its RECORD.

    Parameters
    ----------
    folder
        The folder that holds the module's file or folder.
    name
        The top-level module.
    """
    with contextlib.suppress(OSError):
        for entry in os.listdir(folder):
            if entry.endswith(".dist-info") and name in _tops(os.path.join(folder, entry)):
                return _distribution(entry)
    return None
