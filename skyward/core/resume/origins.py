"""Digests of what a module's name refers to: the user's own code by its content, everything else by its version.

A function of a module of the user's own may call whatever that module imports, so the digest of a module covers all of
the user's own modules that it imports, also inside functions, with their packages. What belongs to a distribution
counts by its version. Comments and layout don't count. Files that functions read are not looked at, and neither are
names that are put together at run time, except that a module which imports by name counts with its whole package.

The files are looked at again from time to time. Each change that is found is a new generation.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.machinery import EXTENSION_SUFFIXES

from skyward.core.code.files import FileState
from skyward.core.code.survey import is_own

__all__ = ["ModuleOrigins"]

_PAUSE = 50  # times what a look at the files takes: until the next one
_MIN_PAUSE = 0.05  # seconds
_BY_NAME = frozenset(("import_module", "__import__", "iter_modules", "walk_packages"))
_PYTHON = b"Python %d.%d" % sys.version_info[:2]


@dataclass(frozen=True, slots=True)
class _Source:
    """What a file contains.

    Attributes
    ----------
    imports
        Modules that it imports, and whether each is bound to a name, through which its parts can be reached.
    by_name
        Whether it imports modules whose names are not in its text.
    """

    digest: bytes
    imports: tuple[tuple[str, bool], ...] = ()
    by_name: bool = False


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a module is: its file, if it has one, and the folders of a package."""

    file: str | None
    folders: tuple[str, ...] = ()


_sources: dict[str, tuple[FileState, _Source]] = {}  # for all pools of the process, as parsing takes milliseconds


class ModuleOrigins:
    """Digests of modules. For one thread at a time.

    Attributes
    ----------
    generation
        Counts the changes of files that were found.
    newest
        The latest change of a file (ctime, since mtime can be set), in ns since the epoch.
    """

    def __init__(self) -> None:
        self.generation = self.newest = 0
        self._own: dict[str, bool] = {}
        self._versions: dict[str, bytes] = {}
        self._digests: dict[tuple[str, bool], bytes] = {}
        self._states: dict[str, FileState | None] = {}
        self._next = 0.0

    def __repr__(self) -> str:
        return f"<ModuleOrigins, {len(self._states)} files>"

    def __call__(self, module: str, /, *, whole: bool = False) -> bytes:
        """See `Origins`."""
        known = self._digests.get((module, whole))
        if known is None:
            known = self._digests[module, whole] = self._make(module, whole)
        return known

    def refresh(self, *, now: bool = False) -> None:
        """Look at the files again if it is time, or `now`; forget all digests if one has changed."""
        if not now and time.monotonic() < self._next:
            return
        began = time.monotonic()
        if self.has_changed():
            self.generation += 1
            self._digests.clear()
            self._states.clear()
            self.newest = 0
        ended = time.monotonic()
        self._next = ended + max(_PAUSE * (ended - began), _MIN_PAUSE)

    def has_changed(self) -> bool:
        """Whether a file differs from when it was last looked at. From any thread."""
        return any(_state(file) != state for file, state in list(self._states.items()))

    def copy(self) -> ModuleOrigins:
        """Return another object that knows what this one knows now, and does not change with the files."""
        other = ModuleOrigins()
        other._own, other._versions = self._own, self._versions
        other._digests, other._states, other.newest = dict(self._digests), dict(self._states), self.newest
        return other

    # --- one module ---

    def _make(self, module: str, whole: bool) -> bytes:
        root = module.partition(".")[0]
        if not self._is_own(root):
            return self._version(root)
        seen: dict[str, bytes] = {}
        others: set[str] = set()
        todo = [(module, whole)]
        done: set[tuple[str, bool]] = set()
        while todo:
            name, all_of_it = todo.pop()
            if (name, all_of_it) in done:
                continue
            done.add((name, all_of_it))
            if not self._is_own(top := name.partition(".")[0]):
                others.add(top)
                continue
            todo += self._visit(name, all_of_it, seen)
        state = hashlib.blake2b(_PYTHON, digest_size=16)
        for file, digest in sorted(seen.items()):
            state.update(file.encode("utf-8", "surrogateescape") + b"\0" + digest)
        for other in sorted(others):
            state.update(other.encode() + b"\0" + self._version(other))
        return state.digest()

    def _visit(self, name: str, whole: bool, seen: dict[str, bytes]) -> list[tuple[str, bool]]:
        """Add the files of a module to those seen; return the modules that they import."""
        found: list[tuple[str, bool]] = []
        for package, place in _path_to(name):
            files = {package: place.file} if place.file is not None else {}
            if whole and package == name:
                for folder in place.folders:
                    for file in _all_files(folder):
                        files.setdefault(f"{package}/{os.path.relpath(file, folder)}", file)
            for key, file in files.items():
                source = self._read(file, _package_of(file, package, place))
                if source is None:
                    continue
                seen[key] = source.digest
                found += source.imports
                if source.by_name:
                    found.append((name.partition(".")[0], True))
        return found

    def _read(self, file: str, package: str) -> _Source | None:
        """What a file contains; None if it is gone."""
        self._states[file] = state = _state(file)
        if state is None:
            return None
        self.newest = max(self.newest, os.stat(file).st_ctime_ns)
        known = _sources.get(file)
        if known is None or known[0] != state:
            try:
                with open(file, "rb") as opened:
                    data = opened.read()
            except OSError:
                self._states[file] = None
                return None
            known = _sources[file] = state, _source(data, file, package)
        return known[1]

    def _is_own(self, root: str) -> bool:
        known = self._own.get(root)
        if known is None:
            known = self._own[root] = root not in sys.stdlib_module_names and root != "__main__" and is_own(root)
        return known

    def _version(self, root: str) -> bytes:
        """The version of what a module is installed with; that of Python for its own."""
        known = self._versions.get(root)
        if known is None:
            known = self._versions[root] = _PYTHON if root in sys.stdlib_module_names else _version_of(root)
        return known


def _version_of(root: str) -> bytes:
    version = getattr(sys.modules.get(root), "__dict__", {}).get("__version__")  # a module's __getattr__ may warn
    if not isinstance(version, str):
        try:
            version = metadata.version(root)
        except (metadata.PackageNotFoundError, ValueError):
            names = _owners().get(root, [])
            version = ",".join(metadata.version(name) for name in sorted(set(names)))
    return _PYTHON + f" {root} {version}".encode()


@functools.cache
def _owners() -> Mapping[str, Sequence[str]]:
    """Distributions by their top-level modules; reading this takes a tenth of a second."""
    return metadata.packages_distributions()


def _state(file: str) -> FileState | None:
    try:
        return FileState.of(os.stat(file))
    except OSError:
        return None


# --- where modules are, without importing them ----------------------------------------------------------------------


def _path_to(name: str) -> Iterator[tuple[str, _Place]]:
    """Yield the packages around a module, the outermost first, and the module itself, as far as they have places."""
    root, *rest = name.split(".")
    place = _top(root)
    full = root
    while place is not None:
        yield full, place
        if not rest:
            return
        full = f"{full}.{rest[0]}"
        place = _inside(place.folders, rest.pop(0))


def _top(root: str) -> _Place | None:
    try:
        spec = getattr(sys.modules.get(root), "__spec__", None) or importlib.util.find_spec(root)
    except (ImportError, ValueError, AttributeError):
        spec = None
    if spec is None:
        file = getattr(sys.modules.get(root), "__file__", None)
        return _Place(file) if isinstance(file, str) else None
    return _Place(spec.origin if spec.has_location else None, tuple(spec.submodule_search_locations or ()))


def _inside(folders: Iterable[str], name: str) -> _Place | None:
    for folder in folders:
        path = os.path.join(folder, name)
        if os.path.isfile(init := os.path.join(path, "__init__.py")):
            return _Place(init, (path,))
        for ending in (".py", *EXTENSION_SUFFIXES):
            if os.path.isfile(path + ending):
                return _Place(path + ending)
        if os.path.isdir(path):
            return _Place(None, (path,))
    return None  # no module, but something that a module contains


def _all_files(folder: str) -> Iterator[str]:
    """All modules below a folder, in order."""
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name.isidentifier() and name != "__pycache__")
        yield from (os.path.join(root, name) for name in sorted(files) if name.endswith((".py", *EXTENSION_SUFFIXES)))


def _package_of(file: str, name: str, place: _Place) -> str:
    """The package that relative imports in a file of a module start from."""
    folder = os.path.dirname(file)
    for base in place.folders:
        if folder == base or folder.startswith(os.path.join(base, "")):
            below = os.path.relpath(folder, base)
            return name if below == "." else f"{name}.{below.replace(os.sep, '.')}"
    return name.rpartition(".")[0]


# --- what a file contains -------------------------------------------------------------------------------------------


def _source(data: bytes, file: str, package: str) -> _Source:
    tree: ast.Module | None = None
    if file.endswith(".py"):
        try:
            tree = ast.parse(data)
            text = ast.dump(tree).encode("utf-8", "surrogatepass")
        except (SyntaxError, ValueError, RecursionError):
            tree = None
    if tree is None:
        return _Source(hashlib.blake2b(data, digest_size=16).digest())
    imports: set[tuple[str, bool]] = set()
    by_name = False
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports |= {(alias.name, False) for alias in node.names}
            imports |= {(alias.name if alias.asname else alias.name.partition(".")[0], True) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imports |= _from(node, package)
        elif isinstance(node, (ast.Name, ast.Attribute)):
            by_name = by_name or (node.id if isinstance(node, ast.Name) else node.attr) in _BY_NAME
    return _Source(hashlib.blake2b(text, digest_size=16).digest(), tuple(sorted(imports)), by_name)


def _from(node: ast.ImportFrom, package: str) -> set[tuple[str, bool]]:
    base = node.module or ""
    if node.level:
        parts = package.split(".") if package else []
        above = parts[: len(parts) - node.level + 1]
        base = ".".join([*above, base] if base else above)
    if not base:
        return set()
    return {(base, False)} | {(f"{base}.{alias.name}", True) for alias in node.names if alias.name != "*"}
