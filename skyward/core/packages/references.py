"""Which modules the driver's program refers to.

Those in the globals of ``__main__``, and those that are imported anywhere in the user's own source, also inside
functions. Nothing is imported or run for that. What else is loaded in the process does not count: a notebook server has
hundreds of modules that no task needs.
"""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Iterator
from pathlib import Path

from skyward.core.packages.imports import imports_of, imports_of_code
from skyward.core.packages.installed import spec_of

__all__ = ["References", "find_references"]

_MAX_FILES = 5000  # of the user's own; a larger project has its requirements written down


class References:
    """What was found.

    Attributes
    ----------
    modules
        Full names of modules that are not the user's own. Some are not modules but what is in them.
    files
        The user's own source files that were read.
    """

    def __init__(self) -> None:
        self.modules: set[str] = set()
        self.files: set[str] = set()

    def __repr__(self) -> str:
        return f"<References to {len(self.modules)} modules from {len(self.files)} files>"


def find_references(main: types.ModuleType, is_local: Callable[[str], bool]) -> References:
    """Find what a program refers to.

    Parameters
    ----------
    main
        Its ``__main__``.
    is_local
        Whether a file is the user's own.
    """
    found = References()
    todo = list(_of_main(main))
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        local, file = _locate(name, is_local)
        if not local:
            found.modules.add(name)
        elif file is not None and file not in found.files and len(found.files) < _MAX_FILES:
            found.files.add(file)
            todo += _of_file(file, name, is_package=file.endswith("__init__.py"))
        # A package's own __init__ runs before any of its modules.
        if local and "." in name:
            todo.append(name.rpartition(".")[0])
    return found


def _of_main(main: types.ModuleType) -> Iterator[str]:
    for value in list(vars(main).values()):
        if isinstance(value, types.ModuleType):
            yield value.__name__
        else:
            module = getattr(value, "__module__", None)
            module = module if isinstance(module, str) else type(value).__module__
            if module == "__main__":
                yield from _of_value(value)
            else:
                yield module
    file = getattr(main, "__file__", None)
    if isinstance(file, str) and file.endswith(".py"):
        spec = getattr(main, "__spec__", None)
        yield from _of_file(file, "__main__" if spec is None else spec.name, is_package=False)


def _of_value(value: object) -> Iterator[str]:
    """What a function or class of ``__main__`` imports; at a prompt and in notebooks there is no file to read."""
    for part in [value, *vars(value).values()] if isinstance(value, type) else [value]:
        function = getattr(part, "__func__", part)
        if isinstance(function, types.FunctionType):
            yield from imports_of_code(function.__code__)


def _of_file(file: str, name: str, *, is_package: bool) -> list[str]:
    try:
        return list(imports_of(Path(file).read_bytes(), name, is_package=is_package))
    except (OSError, SyntaxError, ValueError):  # a task that needs it says what is wrong with it
        return []


def _locate(name: str, is_local: Callable[[str], bool]) -> tuple[bool, str | None]:
    """Whether a module is the user's own, and its source file, if it has one."""
    root, *rest = name.split(".")
    spec = spec_of(root)
    if spec is None:
        return False, None
    folders = list(spec.submodule_search_locations or ())
    file = spec.origin if spec.has_location else None
    local = [place for place in (file, *folders) if place is not None and is_local(place)]
    if not local or spec.origin in ("built-in", "frozen"):
        return False, None
    for part in rest:
        bases = [os.path.join(folder, part) for folder in folders]
        folders = [base for base in bases if os.path.isdir(base)]  # noqa: PTH112 - many small questions
        files = [f"{base}.py" for base in bases] + [os.path.join(base, "__init__.py") for base in folders]
        file = next((place for place in reversed(files) if os.path.isfile(place)), None)  # noqa: PTH113
        if file is None and not folders:
            return True, None  # a name in its package, which is read anyway
    return True, file if file is not None and file.endswith(".py") else None
