"""Lists the files of local modules and packages that nodes get.

Left out automatically: hidden files and folders (``.git``, ``.env``, caches), ``__pycache__`` and compiled files of
Python's, ``node_modules``, and virtual environments, whatever they are called. A link is followed if it stays inside of
its package.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from importlib.machinery import BYTECODE_SUFFIXES, EXTENSION_SUFFIXES, SOURCE_SUFFIXES

from skyward.core.errors import ConfigError
from skyward.core.visible import shown

__all__ = [
    "MAX_BYTES",
    "MAX_FILES",
    "FileState",
    "Listing",
    "SourceFile",
    "check_size",
    "is_excluded",
    "list_files",
    "read",
]

MAX_BYTES = 50_000_000
"""Limit on the size of all local code: anything larger must contain something other than code."""

MAX_FILES = 20_000
"""The same for its number of files."""

_FOLDERS = frozenset(("__pycache__", "node_modules"))
_ENDINGS = (".pyc", ".pyo", "~")
_MODULES = (*EXTENSION_SUFFIXES, *BYTECODE_SUFFIXES, *SOURCE_SUFFIXES)
_ENVIRONMENTS = ("pyvenv.cfg", "conda-meta")  # are in the root of each environment
_SHOWN = 4  # folders in an error


@dataclass(frozen=True, slots=True)
class FileState:
    """What `stat` says of a file: if nothing of it differs, neither does the content."""

    size: int
    changed: int  # ns
    inode: int
    executable: bool

    @classmethod
    def of(cls, status: os.stat_result) -> FileState:
        """Take it from a status."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ino, bool(status.st_mode & stat.S_IXUSR))


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file here, and its state when it was listed."""

    source: str
    state: FileState


@dataclass(slots=True)
class Listing:
    """The files of one module or package.

    Attributes
    ----------
    files
        By path on nodes, relative to an entry of ``sys.path`` there.
    folders
        By path here, when something was last added or removed.
    """

    files: dict[str, SourceFile] = field(default_factory=dict)
    folders: dict[str, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.state.size for file in self.files.values())


def list_files(
    name: str,
    sources: Sequence[str],
    exclude: Sequence[str] = (),
    keep: Callable[[str], bool] | None = None,
    *,
    strict: bool = True,
    project: str = "",
) -> Listing:
    """List the files of a module, a package, or a folder of metadata.

    Parameters
    ----------
    name
        What it is called on nodes: ``churn``, or ``churn-1.0.dist-info``.
    sources
        Its file, or its folders; where several have a file of the same name, the first one's counts, as for imports.
    exclude
        Patterns of `is_excluded`.
    keep
        Whether a file of this name counts; None if all do.
    strict
        Whether what can't be sent is an error; otherwise it is left out.
    project
        A folder into which links may lead, in addition to the package itself; empty for none.

    Raises
    ------
    ConfigError
        Only if `strict`: a link leads out of the package or into itself, a file can't be read, or there are too many.
    FileNotFoundError
        The module is gone.
    """
    listing = Listing()
    for source in sources:
        status = os.stat(source)
        if stat.S_ISDIR(status.st_mode):
            root = os.path.realpath(source)
            inside = (f"{root}/", os.path.join(os.path.realpath(project), "")) if project else (f"{root}/",)
            _list_folder(listing, name, root, _Walk(inside, tuple(exclude), keep, strict, (root,)))
        elif not is_excluded(path := _file_name(name, source), exclude):
            listing.files.setdefault(path, SourceFile(source, FileState.of(status)))
    return listing


@dataclass(frozen=True, slots=True)
class _Walk:
    """Where a walk through folders is."""

    inside: tuple[str, ...]  # where links may lead
    exclude: tuple[str, ...]
    keep: Callable[[str], bool] | None
    strict: bool
    above: tuple[str, ...]  # the real paths of the folders around this one, itself included


def _file_name(name: str, source: str) -> str:
    """What a file is called on nodes: a module's name, with an ending such as ``.cpython-311-x86_64-linux-gnu.so``."""
    if os.path.basename(source) == name:
        return name
    return name + next((ending for ending in _MODULES if source.endswith(ending)), ".py")


def _list_folder(listing: Listing, name: str, folder: str, walk: _Walk) -> None:
    try:
        listing.folders[folder] = os.stat(folder).st_mtime_ns
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except PermissionError as error:
        if walk.strict:
            raise ConfigError(_unreadable(name, folder)) from error
        return
    for entry in found:
        if len(listing.files) > MAX_FILES:
            break
        path = f"{name}/{entry.name}"
        if not _is_ignored(entry) and not is_excluded(path, walk.exclude):
            _list_entry(listing, path, entry, walk)


def _list_entry(listing: Listing, path: str, entry: os.DirEntry[str], walk: _Walk) -> None:
    target = entry.path
    if entry.is_symlink():
        target, problem = _target(path, entry, walk)
        if problem and walk.strict:
            raise ConfigError(problem)
        if problem:
            return
    if entry.is_dir():
        if not any(os.path.lexists(f"{target}/{mark}") for mark in _ENVIRONMENTS):
            inner = replace(walk, above=(*walk.above, target))
            _list_folder(listing, path, target, inner)
    elif entry.is_file() and (walk.keep is None or walk.keep(entry.name)):
        listing.files.setdefault(path, SourceFile(target, FileState.of(entry.stat())))


def _is_ignored(entry: os.DirEntry[str]) -> bool:
    return entry.name.startswith(".") or entry.name in _FOLDERS or entry.name.endswith(_ENDINGS)


def _target(path: str, entry: os.DirEntry[str], walk: _Walk) -> tuple[str, str]:
    """Where a link leads, and what is wrong with that: it must stay in its package, and not lead to a folder above."""
    target = os.path.realpath(entry.path)
    here = f"{_name(path)} ({_name(entry.path)}) is a link"
    problem = ""
    if not os.path.exists(target):
        problem = f"{here} that leads nowhere, or to itself; remove it, or {_leave_out(path)}"
    elif target in walk.above:
        problem = f"{here} to a folder that contains it; remove it, or {_leave_out(path)}"
    elif not target.startswith(walk.inside):
        problem = (
            f"{here} to {_name(target)}, outside of its package, and nodes would get files from there. Put a copy in "
            f"its place, or {_leave_out(path)}"
        )
    return target, problem


def is_excluded(path: str, patterns: Sequence[str]) -> bool:
    """Whether a path on nodes, or a folder around it, matches one of the patterns.

    A pattern without a slash also matches the last part alone: ``*.csv`` leaves out such files in all folders.

    Parameters
    ----------
    path
        Relative to an entry of ``sys.path``.
    patterns
        As for `fnmatch`; a star also matches slashes.
    """
    last = path.rpartition("/")[2]
    for pattern in patterns:
        wanted = pattern.rstrip("/")
        if fnmatchcase(path, wanted) or ("/" not in wanted and fnmatchcase(last, wanted)):
            return True
    return False


def check_size(listings: Sequence[Listing]) -> None:
    """Raise `ConfigError` if all of it together is too much to be code, naming the largest folders."""
    if sum(listing.size for listing in listings) > MAX_BYTES or sum(len(each.files) for each in listings) > MAX_FILES:
        raise ConfigError(_too_many(*listings))


def _too_many(*listings: Listing) -> str:
    sizes: dict[str, int] = {}
    counts: dict[str, int] = {}
    for path, file in ((path, file) for listing in listings for path, file in listing.files.items()):
        folder = path.rpartition("/")[0] or path
        sizes[folder] = sizes.get(folder, 0) + file.state.size
        counts[folder] = counts.get(folder, 0) + 1
    total, count = sum(sizes.values()), sum(counts.values())
    order = sizes if total > MAX_BYTES else counts
    largest = sorted(order, key=lambda folder: -order[folder])[:_SHOWN]
    lines = "".join(f"\n  {_name(each)}: {sizes[each] / 1e6:,.1f} MB in {counts[each]:,} files" for each in largest)
    return (
        f"your own code would take {total / 1e6:,.0f} MB in {count:,} files to each node, which may be at most "
        f"{MAX_BYTES / 1e6:g} MB in {MAX_FILES:,} files; {_leave_out(largest[0])}, say. The largest folders:{lines}"
    )


def _name(path: str) -> str:
    return shown(path, lines=False)


def _leave_out(path: str) -> str:
    return f"leave it out: sky.Image(exclude=[{path!r}])"


def _unreadable(name: str, path: str) -> str:
    return f"{_name(name)} ({_name(path)}) can't be read, to send it to nodes; allow that, or {_leave_out(name)}"


def read(path: str, file: SourceFile) -> tuple[bytes, FileState]:
    """Read a file that was listed; return its content, and its state just before.

    Parameters
    ----------
    path, file
        Its path on nodes, for an error, and where it is here.

    Raises
    ------
    ConfigError
        It can't be read.
    FileNotFoundError
        It is gone.
    """
    try:
        with open(file.source, "rb") as opened:
            state = FileState.of(os.fstat(opened.fileno()))
            return opened.read(), state
    except PermissionError as error:
        raise ConfigError(_unreadable(path, file.source)) from error
