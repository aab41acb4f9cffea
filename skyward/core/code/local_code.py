"""The local code of one pool: looks for changes when tasks are submitted, and makes versions of it for nodes."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import EXTENSION_SUFFIXES

from skyward.core.blobs.snapshots import Snapshot, Snapshots, digest
from skyward.core.code.bundles import Bundles
from skyward.core.code.files import FileState, Listing, SourceFile, check_size, list_files, read
from skyward.core.code.references import refers
from skyward.core.code.survey import CodeSurvey, Program, Unit, program_imports, program_state
from skyward.core.errors import ConfigError, PayloadError
from skyward.core.packages.imports import imported

__all__ = ["CodeSettings", "CodeVersion", "LocalCode"]

_PAUSE = 50  # times what a check takes: until the next one while tasks are submitted one after another
_LONGEST_PAUSE = 0.2  # seconds: within it such tasks do not see an edit
_SHORTEST_PAUSE = 0.01  # seconds: a check of little is still a tenth of what it takes to send a small task
_RACY = 30_000_000  # ns; a file that was changed so shortly before it was read may change again within one tick
_CODE = (".py", ".so", ".pyd")  # endings of the files that nodes on this machine depend on

_imports: dict[bytes, frozenset[str]] = {}  # what a content imports, by digest: all pools look at the same files


class CodeVersion:
    """One state of the local code.

    Parameters
    ----------
    number
        From 1; what a pool sends with each task.
    manifest
        Which files it has: see `Bundles.manifest`. None if nodes use this machine's files.
    since
        The first version to which later ones, up to this one, have only added modules: what has seen that may go on.
    bundles
        Digests of the bundles, in the order that the manifest means.
    blobs
        The bundles by digest. They are released with this object.
    tops
        The top-level modules in it.
    """

    __slots__ = ("__weakref__", "blobs", "bundles", "manifest", "number", "since", "tops")

    def __init__(
        self,
        number: int,
        manifest: bytes | None = None,
        bundles: Sequence[bytes] = (),
        blobs: Mapping[bytes, Snapshot] | None = None,
        since: int = 0,
        tops: frozenset[str] = frozenset(),
    ) -> None:
        self.number = number
        self.tops = tops
        self.since = since or number
        self.manifest = manifest
        self.bundles = list(bundles)
        self.blobs = blobs or {}

    def __repr__(self) -> str:
        return f"<CodeVersion {self.number}, {len(self.bundles)} bundles>"


@dataclass(frozen=True, slots=True)
class CodeSettings:
    """How the user's own code gets to the nodes of a pool.

    Attributes
    ----------
    sent
        Whether nodes get the code; otherwise they use this machine's files, and a version is only a number.
    wanted, exclude
        See `Image.local` and `Image.exclude`.
    program
        Whose code it is.
    """

    sent: bool
    wanted: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    program: Program = field(default_factory=Program)


class LocalCode:
    """Looks for local code and its changes. Thread-safe.

    Parameters
    ----------
    snapshots
        Where bundles are kept.
    settings
        What is to be sent.
    """

    def __init__(self, snapshots: Snapshots, settings: CodeSettings) -> None:
        self.sent = settings.sent
        self._snapshots = snapshots
        self._wanted, self._exclude, self._program = settings.wanted, settings.exclude, settings.program
        self._lock = threading.Lock()  # guards what follows
        self._survey: CodeSurvey | None = None
        self._main: tuple[object, ...] = ()
        self._modules = -1  # how many were imported at the last check
        self._next = 0.0  # when to check again while tasks are submitted
        self._listings: dict[str, Listing] = {}
        self._read: dict[str, tuple[SourceFile, bytes]] = {}  # by path on nodes: what was read, and its digest
        self._current: dict[str, tuple[bytes, bool]] = {}  # the files of the latest version
        self._bundles = Bundles()
        self._names: dict[int, bytes] = {}  # digests of bundles
        self.version: CodeVersion | None = None
        """The latest version that was made; `now` looks whether it still is."""

    def __repr__(self) -> str:
        return f"<LocalCode {self.version}>"

    def now(self, *, look: bool = False) -> CodeVersion | None:
        """Return the latest version; None if there is no local code. From any thread.

        Parameters
        ----------
        look
            Whether to look at all files, as when a call of many tasks begins, or a task is submitted while no other
            is under way: it must run what has just been written. Otherwise one of many tasks is submitted.

        Raises
        ------
        ConfigError
            Something can't be sent to nodes, or is too large.
        """
        if not look and len(self._program.modules) == self._modules and self._program.clock() < self._next:
            return self.version
        with self._lock:
            cost = self._check()
            self._next = self._program.clock() + min(max(_PAUSE * cost, _SHORTEST_PAUSE), _LONGEST_PAUSE)
            return self.version

    def of_job(self, pinned: CodeVersion | None, pickle: bytes) -> CodeVersion | None:
        """Return the version with which a task runs. From any thread.

        Parameters
        ----------
        pinned
            That of the call which the task belongs to. It counts, with modules that were added since; what was edited
            since counts only for a task that refers to an added module.
        pickle
            The task, pickled.

        Raises
        ------
        ConfigError
            Something can't be sent to nodes, or is too large.
        PayloadError
            The pickle refers to a module that nodes can't get.
        """
        version = self.version if pinned is not None and len(self._program.modules) == self._modules else self.now()
        if pinned is not None and version is not None and version.since > pinned.number:
            added = version.tops - pinned.tops
            version = version if added and refers(pickle, added) else pinned
        survey = self._survey
        if self.sent and survey is not None and survey.problems and (name := refers(pickle, survey.problems)):
            raise PayloadError(survey.problems[name])
        return version

    @property
    def summary(self) -> str:
        """What is sent, in words; empty if nothing is."""
        survey = self._survey
        if survey is None or not self._current:
            return ""
        editable = {unit.distribution for unit in survey.units.values() if unit.distribution}
        plain = [unit for unit in survey.units.values() if not unit.distribution and not unit.is_metadata]
        counts = [_count(len(plain), "module"), _count(len(editable), "editable package")]
        size = sum(listing.size for listing in self._listings.values())
        amount = f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{max(size, 1000) / 1e3:.0f} kB"
        return ", ".join([*filter(None, counts), amount])

    @property
    def warnings(self) -> list[str]:
        """What tasks may miss on nodes, in words."""
        return self._survey.broken() if self._survey is not None else []

    def reasons(self) -> list[tuple[str, str, int, str]]:
        """Return a line for each module or package: its name, where it is, its size in bytes, and why it is sent."""
        survey = self._survey
        return [
            (unit.name, unit.sources[0], self._listings[unit.name].size, unit.reason or "Image(local=...) names it")
            for unit in (survey.units.values() if survey is not None else ())
            if unit.name in self._listings
        ]

    def compiled(self) -> list[str]:
        """Return the names of modules that exist in compiled form only, and so work on machines like this one only."""
        found: set[str] = set()
        for listing in list(self._listings.values()):
            stems = {path.removesuffix(".py") for path in listing.files if path.endswith(".py")}
            for path in listing.files:
                ending = next((ending for ending in EXTENSION_SUFFIXES if path.endswith(ending)), None)
                if ending is not None and (stem := path.removesuffix(ending)) not in stems:
                    found.add(stem.replace("/", "."))
        return sorted(found)

    # --- a check ---

    def _check(self) -> float:
        """Make a new version if a file differs; return the seconds of CPU that a check takes if there is nothing new.

        Not those of a clock: on a busy machine edits would go unseen for longer.
        """
        began = self._program.cpu()
        survey = self._survey
        if survey is None:
            survey = self._survey = CodeSurvey(self._wanted, self._exclude if self.sent else (), self._program)
        contents: dict[bytes, bytes] = {}
        stale = [name for name, listing in self._listings.items() if _has_changed(listing)]
        if len(self._program.modules) != self._modules:
            self._modules = -1  # until the check has succeeded
            count = len(self._program.modules)
            survey.add_imported(self._program.modules)
        else:
            count = self._modules
        self._look_at_program(survey)
        cost = self._program.cpu() - began if self._modules >= 0 else 0.0  # looking at imports takes longer
        stale += [name for name in survey.units if name not in self._listings]
        while stale:
            self._list(survey, stale, contents)
            survey.resolve()
            stale = [name for name in survey.units if name not in self._listings]
        if self.sent:
            check_size(list(self._listings.values()))
        self._settle(contents)
        self._modules = count
        return cost

    def _look_at_program(self, survey: CodeSurvey) -> None:
        main = self._program.modules.get("__main__")
        if (state := program_state(main)) != self._main:
            survey.add_named(program_imports(main), "your program")
            self._main = state
        survey.resolve()

    def _list(self, survey: CodeSurvey, names: Iterable[str], contents: dict[bytes, bytes]) -> None:
        """List modules again, and read what is new or differs."""
        for name in names:
            unit = survey.units[name]
            try:
                listing = self._listings[name] = self._list_unit(unit)
            except FileNotFoundError:
                survey.drop(name)
                self._listings.pop(name, None)
                continue
            for path, file in list(listing.files.items()):
                self._look_at_file(survey, listing, path, file, contents)

    def _list_unit(self, unit: Unit) -> Listing:
        if self.sent:
            return list_files(unit.name, unit.sources, self._exclude, project=unit.project)
        return list_files(unit.name, unit.sources, (), lambda file: file.endswith(_CODE), strict=False)

    def _look_at_file(
        self, survey: CodeSurvey, listing: Listing, path: str, file: SourceFile, contents: dict[bytes, bytes]
    ) -> None:
        known = self._read.get(path)
        if known is not None and known[0] == file:
            return
        try:
            data, state = read(path, file)
        except FileNotFoundError:
            del listing.files[path]
            return
        except ConfigError:
            if self.sent:
                raise
            del listing.files[path]
            return
        name = digest(memoryview(data))
        if time.time_ns() - state.changed < _RACY:
            state = FileState(state.size, -1, state.inode, state.executable)  # differs from any: it is read again
        listing.files[path] = read_file = SourceFile(file.source, state)
        self._read[path] = read_file, name
        if self.sent:
            contents[name] = data
        if path.endswith(".py"):
            survey.add_named(_imports_of(name, data), path)

    def _settle(self, contents: Mapping[bytes, bytes]) -> None:
        """Make a version if the files are not those of the last one."""
        files = {
            path: (self._read[path][1], file.state.executable)
            for listing in self._listings.values()
            for path, file in listing.files.items()
        }
        old, self._current = self._current, files
        if files == old:
            return
        number = self.version.number + 1 if self.version is not None else 1
        if self.sent:
            since = self.version.since if self.version is not None and _only_adds(old, files) else number
            self.version = self._bundled(number, since, files, contents)
        elif self.version is None or any(files.get(path) != content for path, content in old.items()):
            self.version = CodeVersion(number)  # new files alone change nothing for slots

    def _bundled(
        self, number: int, since: int, files: Mapping[str, tuple[bytes, bool]], contents: Mapping[bytes, bytes]
    ) -> CodeVersion:
        needed = [name for name, _ in files.values()]
        blobs: dict[bytes, Snapshot] = {}
        if missing := self._bundles.missing(needed):
            parts = {name: self._content(name, contents) for name in missing}
            bundle = self._bundles.add({name: len(data) for name, data in parts.items()})
            # An empty blob would have no last piece, with which it has arrived.
            name, data = self._snapshots.take(memoryview(b"".join(parts.values()) or b"\0"))
            self._names[bundle] = name
            blobs[name] = data
        kept = self._bundles.keep(needed)
        self._names = {bundle: self._names[bundle] for bundle in kept}
        for name in self._names.values():
            if name not in blobs and (held := self._snapshots.hold(name)) is not None:
                blobs[name] = held
        names = list(self._names.values())
        tops = frozenset(map(_top, files))
        version = CodeVersion(number, self._bundles.manifest(files, kept), names, blobs, since, tops)
        weakref.finalize(version, self._snapshots.drop, list(blobs)).atexit = False
        return version

    def _content(self, name: bytes, contents: Mapping[bytes, bytes]) -> bytes:
        """The content of that digest, which is read again if an earlier version had it and this one has it again."""
        if (data := contents.get(name)) is not None:
            return data
        path, (file, _) = next((path, known) for path, known in self._read.items() if known[1] == name)
        return read(path, file)[0]


def _imports_of(name: bytes, data: bytes) -> frozenset[str]:
    """What a file of that digest imports."""
    found = _imports.get(name)
    if found is None:
        found = _imports[name] = imported(data)
    return found


def _only_adds(old: Mapping[str, tuple[bytes, bool]], new: Mapping[str, tuple[bytes, bool]]) -> bool:
    """Whether files differ by further modules only; a package that is loaded does not find parts added elsewhere."""
    if any(new.get(path) != content for path, content in old.items()):
        return False
    return {_top(path) for path in new.keys() - old.keys()}.isdisjoint(map(_top, old))


def _top(path: str) -> str:
    return path.partition("/")[0].partition(".")[0]


def _has_changed(listing: Listing) -> bool:
    """Whether a file or a folder is not as it was listed."""
    try:
        for folder, changed in listing.folders.items():
            if os.stat(folder).st_mtime_ns != changed:
                return True
        return any(FileState.of(os.stat(file.source)) != file.state for file in listing.files.values())
    except OSError:
        return True


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}" if number else ""
