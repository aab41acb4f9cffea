"""Decides whose a module is by where its file is: Python's, an installed distribution's, or the user's own."""

from __future__ import annotations

import enum
import posixpath
from dataclasses import dataclass

__all__ = ["ModuleFacts", "Places", "Whose", "is_never_sent", "judge", "tops_of"]

_SITES = frozenset(("site-packages", "dist-packages"))
_NEVER = frozenset(("__main__", "__mp_main__", "sitecustomize", "usercustomize", "skyward"))
_HOOKS = ("__editable__", "_editable_impl_", "__pycache__", "_editable", "_editable_loader")  # find editable modules
_DEBUGGERS = ("pydev", "_pydev", "debugpy")  # they come from an editor, and trace this process only


class Whose(enum.Enum):
    """Who a module comes from."""

    PYTHON = "Python"
    INSTALLED = "an installed distribution"
    LOCAL = "the user"
    MEMORY = "this process's memory"  # it has no file, and no folder


@dataclass(frozen=True, slots=True)
class Places:
    """Folders of modules, absolute; those of Python may contain those of distributions.

    Attributes
    ----------
    python
        Folders of the standard library.
    installed
        Folders where distributions are installed, in addition to all that are called ``site-packages``.
    """

    python: tuple[str, ...]
    installed: tuple[str, ...]

    def whose(self, path: str) -> Whose:
        """Return who a file or folder comes from."""
        if _within(path, self.installed) or not _SITES.isdisjoint(path.split("/")):
            return Whose.INSTALLED
        return Whose.PYTHON if _within(path, self.python) else Whose.LOCAL


@dataclass(frozen=True, slots=True)
class ModuleFacts:
    """What is known of a module.

    Attributes
    ----------
    file
        Absolute path of its file; None if it has none, as namespace packages.
    paths
        Folders of a package, in order; empty for a plain module.
    is_builtin
        Whether it is a part of the interpreter itself.
    """

    file: str | None = None
    paths: tuple[str, ...] = ()
    is_builtin: bool = False


def judge(facts: ModuleFacts, places: Places) -> tuple[Whose, tuple[str, ...]]:
    """Return who a module comes from and, if it is the user's own, the file or the folders that hold it.

    A namespace package may have folders of several origins: it is the user's if one of them is.
    """
    if facts.is_builtin:
        return Whose.PYTHON, ()
    own = tuple(path for path in facts.paths if places.whose(path) is Whose.LOCAL)
    if facts.file is not None:
        if (whose := places.whose(facts.file)) is not Whose.LOCAL:
            return whose, ()
        return whose, (own or (posixpath.dirname(facts.file),)) if facts.paths else (facts.file,)
    if own:
        return Whose.LOCAL, own
    return (Whose.INSTALLED if facts.paths else Whose.MEMORY), ()


def is_never_sent(name: str) -> bool:
    """Whether a top-level module is not for nodes, wherever it comes from: they have their own, or no use for it."""
    return name in _NEVER or name.startswith(_DEBUGGERS)


def tops_of(record: str) -> set[str]:
    """Return the top-level modules that a distribution's ``RECORD`` names.

    Parameters
    ----------
    record
        The text of the file: a path, a hash and a size on each line.
    """
    tops = set()
    for line in record.splitlines():
        path = line.partition(",")[0].strip('"')
        top, _, rest = path.partition("/")
        if not rest:
            top = top.partition(".")[0] if top.endswith((".py", ".so")) else ""
        if top.isidentifier() and not top.startswith(_HOOKS) and not top.endswith(_HOOKS):
            tops.add(top)
    return tops


def _within(path: str, folders: tuple[str, ...]) -> bool:
    return any(path == folder or path.startswith(posixpath.join(folder, "")) for folder in folders)
