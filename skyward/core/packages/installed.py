"""The distributions of the driver's environment, and which of them a module belongs to."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

from packaging.utils import canonicalize_name

__all__ = ["Distribution", "Installed", "spec_of"]

_SITES = ("site-packages", "dist-packages")


@dataclass(frozen=True, slots=True)
class Distribution:
    """An installed distribution.

    Attributes
    ----------
    name
        As it calls itself.
    version
        As its metadata has it.
    requires
        Its ``Requires-Dist``.
    url
        Where it was installed from, unless that was an index.
    editable
        The folder of its project, if this is an editable install; otherwise empty.
    """

    name: str
    version: str
    requires: tuple[str, ...] = ()
    url: str = ""
    editable: str = ""

    @property
    def key(self) -> str:
        """Its name in the normalized spelling."""
        return canonicalize_name(self.name)


class Installed(Mapping[str, Distribution]):
    """The distributions by their normalized names, read when this is made.

    Parameters
    ----------
    path
        Folders to search; None for ``sys.path``. Of two distributions of one name the first counts, as for imports.
    """

    def __init__(self, path: Sequence[str] | None = None) -> None:
        self._all: dict[str, Distribution] = {}
        self._raw: dict[str, metadata.Distribution] = {}
        found = metadata.distributions() if path is None else metadata.distributions(path=list(path))
        for raw in found:
            if (one := _read(raw)) is not None and one.key not in self._all:
                self._all[one.key], self._raw[one.key] = one, raw
        self._owners: dict[str, list[str]] | None = None
        places = (str(raw.locate_file("")) for name, raw in self._raw.items() if not _is_project(raw))
        self._places = {os.path.join(os.path.realpath(place), "") for place in places}

    def __repr__(self) -> str:
        return f"<Installed, {len(self)} distributions>"

    def __getitem__(self, name: str) -> Distribution:
        return self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def raw(self, name: str) -> metadata.Distribution:
        """Its metadata and files."""
        return self._raw[name]

    def owners(self, module: str) -> list[str]:
        """Names of the distributions that a module belongs to; several for the root of a namespace package.

        Empty for Python's own modules, and for those that belong to none. Nothing is imported.
        """
        root, *rest = module.split(".")
        if root in sys.stdlib_module_names:
            return []
        if self._owners is None:
            self._owners = {}
            for name, raw in self._raw.items():
                for top in _tops(raw):
                    self._owners.setdefault(top, []).append(name)
        found = self._owners.get(root, [])
        if len(found) < 2:
            return found if found and self.is_installed(root) else []
        for length in range(len(rest), 0, -1):
            prefix = "/".join([root, *rest[:length]])
            if exact := [name for name in found if _holds(self._raw[name], prefix)]:
                return exact
        return found

    def is_installed(self, root: str) -> bool:
        """Whether Python finds this top-level module where distributions are, and not beside the program."""
        spec = spec_of(root)
        if spec is None:
            return True  # it can't be found now, but a distribution lists it
        places = [spec.origin] if spec.origin and spec.has_location else [*(spec.submodule_search_locations or ())]
        return all(os.path.realpath(place).startswith(tuple(self._places)) for place in places if place)

    def loaded(self) -> list[str]:
        """Files of the modules of distributions that this process has loaded, relative to where they are installed."""
        files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
        places = [place for place in self._places if os.path.basename(place.rstrip("/")) in _SITES]
        return [
            file[len(place) :]
            for file in files
            if isinstance(file, str) and file.endswith(".py")
            for place in places
            if file.startswith(place) and "\n" not in file
        ]

    def editable_owner(self, file: str) -> str | None:
        """Name of the editable distribution in whose project a file lies, the innermost; None if there is none."""
        held = [
            one
            for one in self._all.values()
            if one.editable and os.path.realpath(file).startswith(os.path.join(os.path.realpath(one.editable), ""))
        ]
        return max(held, key=lambda one: len(one.editable)).key if held else None

    def is_local(self, file: str) -> bool:
        """Whether a file or folder is neither Python's nor a distribution's nor ours: the user's own."""
        return not os.path.join(os.path.realpath(file), "").startswith((*self._places, *_NOT_THEIRS))


_NOT_THEIRS = tuple(
    os.path.join(os.path.realpath(place), "")
    for place in (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), Path(__file__).parents[2])
)


def spec_of(module: str) -> importlib.machinery.ModuleSpec | None:
    """The spec of a top-level module, or of one that is imported already; None if there is none."""
    loaded = sys.modules.get(module)
    if loaded is not None and (spec := getattr(loaded, "__spec__", None)) is not None:
        return spec  # type: ignore[no-any-return]
    try:
        return importlib.util.find_spec(module) if "." not in module else None
    except (ImportError, ValueError):  # a module that was put into sys.modules by hand
        return None


def _read(raw: metadata.Distribution) -> Distribution | None:
    """What we need of it; None for leftovers of an uninstallation, which have no metadata."""
    try:
        name, version, requires = _headers(raw)
    except (KeyError, TypeError, ValueError, OSError):
        return None
    if not name or not version:
        return None
    url, editable = "", ""
    try:
        origin = json.loads(raw.read_text("direct_url.json") or "{}")
        url = str(origin.get("url", ""))
        if origin.get("dir_info", {}).get("editable"):
            editable = unquote(urlsplit(url).path)
    except (ValueError, AttributeError):  # a broken file says no more than none
        pass
    if _is_project(raw):
        editable = str(raw.locate_file(""))
    return Distribution(name, version, requires, url, editable)


def _headers(raw: metadata.Distribution) -> tuple[str, str, tuple[str, ...]]:
    """Name, version and requirements. The parser of the standard library takes ten times as long, once for each."""
    text = raw.read_text("METADATA")
    if text is None:
        return raw.metadata["Name"], raw.version, tuple(raw.requires or ())
    headers: dict[str, list[str]] = {}
    for line in text.partition("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        headers.setdefault(name.lower(), []).append(value.strip())
    return headers["name"][0], headers["version"][0], tuple(headers.get("requires-dist", ()))


def _is_project(raw: metadata.Distribution) -> bool:
    """Whether its metadata lies in its project's folder, as ``setup.py develop`` and the like leave it."""
    place = os.path.basename(os.path.normpath(str(raw.locate_file(""))))
    return place not in _SITES and raw.read_text("RECORD") is None


def _tops(raw: metadata.Distribution) -> set[str]:
    """Top-level modules, from the list of its files or, where that is missing, from what it declares."""
    record = raw.read_text("RECORD")
    if record is None:
        return set((raw.read_text("top_level.txt") or "").split())
    tops: set[str] = set()
    for line in record.splitlines():
        first, slash, _ = line.strip('"').partition("/")
        if slash:
            if first.isidentifier():
                tops.add(first)
        elif name := inspect.getmodulename(line.split(",", 1)[0]):
            tops.add(name)
    tops.discard("__pycache__")
    return tops


def _holds(raw: metadata.Distribution, prefix: str) -> bool:
    """Whether one of its files is this module, or is in this package."""
    record = raw.read_text("RECORD") or ""
    return any(line.startswith((f"{prefix}/", f"{prefix}.")) for line in record.splitlines())
