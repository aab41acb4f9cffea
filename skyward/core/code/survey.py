"""Finds the local code of this program: which modules are the user's own, where they are, and why they are needed.

A survey continues while the pool is open: modules that are imported later, and those that edited files
import, are added to it.
"""

from __future__ import annotations

import importlib.util
import os
import site
import sys
import sysconfig
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from types import FunctionType, ModuleType

from skyward.core.code.distributions import Editable, editables, metadata_beside, owner_beside
from skyward.core.code.files import FileState, is_excluded
from skyward.core.code.places import ModuleFacts, Places, Whose, is_never_sent, judge
from skyward.core.errors import ConfigError
from skyward.core.packages.imports import imported, imports_of_code

__all__ = ["CodeSurvey", "Program", "Unit", "is_own", "places", "program_imports", "program_state"]


class Program:
    """What is asked of this process, so that a simulation can replace it."""

    @property
    def modules(self) -> Mapping[str, ModuleType]:
        """What is imported."""
        return sys.modules

    @property
    def path(self) -> Sequence[str]:
        """Where imports look."""
        return sys.path

    def clock(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    def cpu(self) -> float:
        """Seconds of a processor that this thread has used."""
        return time.thread_time()


@dataclass(frozen=True, slots=True)
class Unit:
    """A top-level module or package, or a folder of metadata.

    Attributes
    ----------
    name
        What it is called on nodes.
    sources
        Its file, or its folders.
    reason
        Why nodes get it.
    distribution
        The editable distribution that it belongs to; empty for none.
    project
        The folder of its project, which holds what the package may link to.
    is_metadata
        Whether it is the metadata of a distribution and not a module.
    """

    name: str
    sources: tuple[str, ...]
    reason: str
    distribution: str = ""
    project: str = ""
    is_metadata: bool = False


@cache
def places() -> Places:
    """Return this interpreter's folders of modules."""
    python = [sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib")]
    installed = [sysconfig.get_path(kind) for kind in ("purelib", "platlib")]
    installed += [*site.getsitepackages(), site.getusersitepackages()]
    return Places(_both(python), _both(installed))


def _both(folders: Iterable[str]) -> tuple[str, ...]:
    """Each folder, and what it is a link to."""
    return tuple(dict.fromkeys(path for folder in folders for path in (folder, os.path.realpath(folder))))


class CodeSurvey:
    """The local code that was found so far.

    Parameters
    ----------
    wanted
        Modules to find in any case, by name or by the path of a file or folder.
    exclude
        What not to find, by name; see `files.is_excluded`.
    program
        Whose code it is.

    Attributes
    ----------
    units
        What was found, by name.
    problems
        Top-level modules that can't be sent, and why.

    Raises
    ------
    ConfigError
        A module that is wanted can't be found, or two have the same name.
    """

    def __init__(self, wanted: Sequence[str] = (), exclude: Sequence[str] = (), program: Program | None = None) -> None:
        self._program = program or Program()
        self.units: dict[str, Unit] = {}
        self.problems: dict[str, str] = {}
        self._exclude = tuple(exclude)
        self._seen: set[str] = set()
        self._unresolved: dict[str, str] = {}  # name -> why it was looked for
        self._gone: dict[str, Unit] = {}  # whose files are not there, but may be again
        self._editables: list[Editable] | None = None
        self._places = places()
        for item in wanted:
            self._want(item)

    def __repr__(self) -> str:
        return f"<CodeSurvey of {', '.join(sorted(self.units))}>"

    def add_imported(self, modules: Mapping[str, ModuleType]) -> None:
        """Look at what this program has imported since the last call."""
        for name in [name for name in list(modules) if name not in self._seen]:
            self._seen.add(name)
            module = modules.get(name)
            if "." in name:
                continue
            if module is not None and not is_never_sent(name):
                self._unresolved.pop(name, None)
                self._judge(name, _facts(_spec_of(module), module), "your program imports it")

    def add_named(self, names: Iterable[str], where: str) -> None:
        """Look for modules that a file imports.

        Parameters
        ----------
        names
            Top-level modules, of any origin.
        where
            The file, for the reason.
        """
        for name in names:
            if name not in self._seen and name not in self._unresolved and name not in sys.stdlib_module_names:
                self._unresolved[name] = f"{where} imports it"

    def resolve(self) -> None:
        """Look for the modules that were named and not found before, and for files that were gone."""
        for name, unit in list(self._gone.items()):
            if all(map(os.path.exists, unit.sources)):
                del self._gone[name]
                self.problems.pop(name, None)
                self.units[name] = unit
        for name, reason in list(self._unresolved.items()):
            if name in self._program.modules or is_never_sent(name):
                del self._unresolved[name]
                continue
            spec = _find(name)
            if spec is not None:
                del self._unresolved[name]
                self._seen.add(name)
                facts = _facts(spec)
                if facts.file is not None or any(map(_has_code, facts.paths)):
                    self._judge(name, facts, reason)

    def drop(self, name: str) -> None:
        """Drop a module whose files are gone."""
        unit = self._gone[name] = self.units.pop(name)
        self._refuse(name, unit.sources[0])

    def broken(self) -> list[str]:
        """Say which modules that were named are those of an editable distribution that no longer has them."""
        return [
            f"{name} is {gone}, so tasks can't import it ({reason}): install it again"
            for name, reason in self._unresolved.items()
            if (gone := self._gone_from(name))
        ]

    def _gone_from(self, name: str) -> str:
        """Where a module should be that nothing finds, if an editable distribution is about it; otherwise empty."""
        editable = next((each for each in self._all_editables() if each.is_about(name)), None)
        if editable is None:
            return ""
        lack = "has no such module" if os.path.isdir(editable.project) else "does not exist"
        return f"installed in place from {editable.project}, which {lack}"

    # --- one module ---

    def _judge(self, name: str, facts: ModuleFacts, reason: str) -> None:
        whose, sources = judge(facts, self._places)
        if whose is Whose.INSTALLED:
            sources = self._built(name, facts)
        if whose is Whose.MEMORY and not name.startswith(("_cython_", "cython_runtime")):
            self.problems[name] = (
                f"the module {name} was made in the memory of this process, and nodes can't get it as a file: write it "
                f"to one, or call cloudpickle.register_pickle_by_value({name})"
            )
        if not sources or name in self.units or is_excluded(name, self._exclude):
            return
        if missing := next((source for source in sources if not os.path.exists(source)), None):
            self._refuse(name, missing)
            self._gone[name] = Unit(name, sources, reason)
            return
        self._add(name, sources, reason)

    def _built(self, name: str, facts: ModuleFacts) -> tuple[str, ...]:
        """Where an installed module is that an editable distribution has built in place."""
        if not any(name in editable.tops for editable in self._all_editables()):
            return ()
        return facts.paths or ((facts.file,) if facts.file else ())

    def _refuse(self, name: str, missing: str) -> None:
        archive = missing
        while archive not in ("", "/") and not os.path.exists(archive):
            archive = os.path.dirname(archive)
        if os.path.isfile(archive):
            text = f"the module {name} is in the archive {archive}: unpack it, and put the folder on sys.path instead"
        else:
            text = f"the module {name} was imported from {missing}, which is gone, so nodes can't get it"
        self.problems[name] = text

    def _add(self, name: str, sources: tuple[str, ...], reason: str) -> None:
        folders = list(dict.fromkeys(os.path.dirname(source) for source in sources))
        editable = next((each for each in self._all_editables() if name in each.tops or each.holds(sources[0])), None)
        if editable is not None:
            self.units[name] = Unit(name, sources, reason, editable.name, editable.project)
            self._add_metadata(editable.metadata, name)
            return
        if reason and owner_beside(folders[0], name) is not None:
            return  # a distribution after all: `pip install --target`
        self.units[name] = Unit(name, sources, reason)
        for metadata in (found for folder in folders for found in metadata_beside(folder, name)):
            self._add_metadata(metadata, name)

    def _add_metadata(self, place: str, name: str) -> None:
        entry = os.path.basename(place)
        self.units.setdefault(entry, Unit(entry, (place,), f"it describes {name}", is_metadata=True))

    def _all_editables(self) -> list[Editable]:
        if self._editables is None:
            self._editables = editables([entry for entry in self._program.path if entry])
        return self._editables

    # --- what the user names ---

    def _want(self, item: str) -> None:
        if os.sep in item or item.endswith(".py") or (not item.isidentifier() and os.path.exists(item)):
            self._want_path(item)
            return
        spec = _find(item) if item.isidentifier() else None
        loaded = self._program.modules.get(item)
        facts = _facts(spec or _spec_of(loaded), loaded)
        sources = facts.paths or ((facts.file,) if facts.file else ())
        if not sources or not all(os.path.exists(source) for source in sources):
            if gone := self._gone_from(item):
                raise ConfigError(f"Image local={item!r}: it is {gone}: install it again")
            raise ConfigError(
                f"Image local={item!r}: this program has no such module with a file; give the name of a top-level "
                f"module or package, or the path of its file or folder"
            )
        self._seen.add(item)
        self._add(item, tuple(sources), "")

    def _want_path(self, item: str) -> None:
        path = os.path.abspath(item)
        name = os.path.basename(path).partition(".")[0]
        if not os.path.exists(path):
            raise ConfigError(f"Image local={item!r}: there is no such file or folder ({path})")
        if not name.isidentifier():
            raise ConfigError(f"Image local={item!r}: {name!r} can't be imported: it is not a valid module name")
        if name in self.units and self.units[name].sources != (path,):
            raise ConfigError(
                f"Image local={item!r}: {self.units[name].sources[0]} is called {name} too, and nodes can have only one"
            )
        self._seen.add(name)
        self._add(name, (path,), "")


def _find(name: str) -> ModuleSpec | None:
    """Where an import would find a top-level module, without importing it."""
    try:
        return importlib.util.find_spec(name)
    except (ImportError, AttributeError, ValueError, TypeError):  # what finders of others raise
        return None


def _spec_of(module: ModuleType | None) -> ModuleSpec | None:
    spec = getattr(module, "__spec__", None)
    return spec if isinstance(spec, ModuleSpec) else None


def _facts(spec: ModuleSpec | None, module: ModuleType | None = None) -> ModuleFacts:
    """What is known of a module, from itself or from where an import would find it."""
    try:
        if spec is not None and spec.origin in ("built-in", "frozen"):
            return ModuleFacts(is_builtin=True)
        file = spec.origin if spec is not None and spec.has_location else getattr(module, "__file__", None)
        found = getattr(module, "__path__", None) if module is not None else None
        if found is None and spec is not None:
            found = spec.submodule_search_locations
        paths = tuple(os.path.abspath(path) for path in found or () if isinstance(path, str))
        return ModuleFacts(os.path.abspath(file) if isinstance(file, str) else None, paths)
    except Exception:  # a module of others' may answer anything
        return ModuleFacts()


def is_own(module: str) -> bool:
    """Whether a module is the user's own, and so may be edited at any time; imports nothing."""
    root = module.partition(".")[0]
    return not is_never_sent(root) and judge(_facts(_find(root)), places())[0] is Whose.LOCAL


def _has_code(folder: str) -> bool:
    """Whether a folder is a namespace package, rather than one of data that happens to be called like a module."""
    try:
        with os.scandir(folder) as entries:
            return any(
                entry.name.endswith((".py", *EXTENSION_SUFFIXES)) or os.path.exists(f"{entry.path}/__init__.py")
                for entry in entries
            )
    except OSError:
        return False


# --- the program itself ---------------------------------------------------------------------------------------------


def program_imports(main: ModuleType | None) -> frozenset[str]:
    """Return the top-level modules that the program's own text imports, in functions too, which are sent by value.

    Parameters
    ----------
    main
        ``sys.modules["__main__"]``: a script, a notebook, or a prompt.
    """
    if main is None:
        return frozenset()
    cells = vars(main).get("_ih")  # IPython's list of what was entered
    if isinstance(cells, list):
        return imported("\n".join(str(cell) for cell in cells).encode("utf-8", "replace"))
    file = getattr(main, "__file__", None)
    if isinstance(file, str) and file.endswith(".py") and os.path.isfile(file):
        with open(file, "rb") as opened:
            return imported(opened.read())
    codes = [value.__code__ for value in list(vars(main).values()) if isinstance(value, FunctionType)]
    return frozenset(name.partition(".")[0] for code in codes for name in imports_of_code(code)) - {""}


def program_state(main: ModuleType | None) -> tuple[object, ...]:
    """Return what differs when `program_imports` may have changed."""
    if main is None:
        return ()
    cells = vars(main).get("_ih")
    if isinstance(cells, list):
        return ("cells", len(cells))
    file = getattr(main, "__file__", None)
    if isinstance(file, str):
        try:
            return ("file", FileState.of(os.stat(file)))
        except OSError:
            return ("no file",)
    return ("names", len(vars(main)))
