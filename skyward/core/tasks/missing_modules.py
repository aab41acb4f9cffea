"""Advice about a module that is missing on a node.

It is given here, where the user's environment is: a package index may have a stranger's package of any name, so only
packages that the user has installed are recommended.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import sys
import sysconfig
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import Distribution

__all__ = ["advice"]

_MEMORY = "in this process's memory"


@functools.lru_cache(maxsize=64)  # searching all packages takes a while, and a call may fail thousands of times
def advice(module: str, here: bool) -> str:
    """Return a sentence that tells what to do.

    Parameters
    ----------
    module
        What the node says it could not import: a top-level module, or a submodule that its package lacks.
    here
        Whether the node uses this program's environment.
    """
    root = module.partition(".")[0]
    if not all(part.isidentifier() for part in module.split(".")):
        return "The node reports an invalid module name"
    if root in sys.stdlib_module_names:
        return f"{root} is a part of Python that the node's Python lacks; install it there, or use another Python"
    place = _place(root)
    if place is not None and not _has(module):
        return f"The {root} of this program, {place}, has no such submodule either: check its name and the version"
    if here:
        return _advice_here(place)
    package = _package(root)
    if package is not None:
        wanted = f'sky.Image(pip=["{package}"])'
        if "." in module:
            return f"The node's {root} differs from the one here: ask for the same, {wanted}"
        return f"Here it comes from {package}; add that to the image: {wanted}"
    if place is not None:
        if place == _MEMORY:
            return (
                f"It is {place}, not in a file: write it to one, or call cloudpickle.register_pickle_by_value({root})"
            )
        if compiled := _compiled(module):
            return (
                f"Here it is {compiled}, compiled for {sysconfig.get_platform()}, which a node of another platform "
                "can't load: install a wheel by sky.Image(pip=[...]), or run this program on such a platform"
            )
        return (
            f"It is one of your own modules, {place}, and nodes get only what your program or its files import by "
            f"name, without what sky.Image(exclude=[...]) leaves out: name it, sky.Image(local=[{root!r}])"
        )
    return (
        "This program has no such module either, so it can't tell which package contains it: find out, and add the "
        "package to sky.Image(pip=[...])"
    )


def _compiled(module: str) -> str | None:
    """Return the file of a compiled module that this program has imported."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return file if isinstance(file, str) and file.endswith(tuple(EXTENSION_SUFFIXES)) else None


def _advice_here(place: str | None) -> str:
    if place is None:
        return (
            "Nodes on this machine use your program's environment, which has no such module: install its package here"
        )
    return (
        f"Your program finds it at {place}; nodes on this machine find what is on sys.path when a task is submitted: "
        "put the module's folder there"
    )


def _place(root: str) -> str | None:
    """Return where this program finds a module: its file or folder, or a description."""
    spec = _spec(root)
    if spec is None:
        return _MEMORY if root in sys.modules else None
    if spec.submodule_search_locations:
        return next(iter(spec.submodule_search_locations), None)
    return spec.origin


def _spec(root: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(root)
    except (ValueError, ImportError):  # a module that was put into sys.modules by hand
        return None


def _has(module: str) -> bool:
    """Whether a package that this program finds has a submodule; does not import anything."""
    if module in sys.modules:
        return True
    name, *parts = module.split(".")
    spec = _spec(name)
    for part in parts:
        if spec is None or not spec.submodule_search_locations:
            return False
        name = f"{name}.{part}"
        found = [finder.find_spec(name, spec.submodule_search_locations) for finder in sys.meta_path]
        spec = next(filter(None, found), None)
    return not parts or spec is not None


def _package(root: str) -> str | None:
    """Return the package that contains the module here, as ``name==version``; None if it is not from an index."""
    from importlib import metadata  # noqa: PLC0415 - 3 MB, which a pool without such an error does not need

    for name in [found.name for found in metadata.distributions() if _contains(found, root)]:
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # a metadata folder with a wrong name
            continue
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        if not str(origin.get("url", "")).startswith("file:"):
            return f"{name}=={distribution.version}"
    return None


def _contains(distribution: Distribution, root: str) -> bool:
    """Whether a distribution has a top-level module: `packages_distributions` would take apart each one's list."""
    declared = (distribution.read_text("top_level.txt") or "").split()
    if declared:
        return root in declared
    record = distribution.read_text("RECORD")
    if record is None:
        return any(str(file).startswith((f"{root}/", f"{root}.py")) for file in distribution.files or ())
    return re.search(rf"^(?:{re.escape(root)})(?:/|\.[^/\n]*,)", record, re.MULTILINE) is not None
