"""What to do about a module that a node lacks.

It is decided here, where the user's environment is: an index may hold a stranger's package of any name, so none is
named but what the user has installed.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from importlib.machinery import ModuleSpec

__all__ = ["advice"]


@functools.lru_cache(maxsize=64)  # to look through all packages takes a while, and a call may fail thousands of times
def advice(module: str, here: bool) -> str:
    """What to do; a sentence.

    Parameters
    ----------
    module
        What the node could not import: a top-level module, or the part that its package there lacks. The node says so.
    here
        Whether the node uses this program's environment.
    """
    root = module.partition(".")[0]
    if not all(part.isidentifier() for part in module.split(".")):
        return "The node names no module that could be"
    if root in sys.stdlib_module_names:
        return f"{root} is a part of Python that the node's Python comes without; install it there, or use another one"
    place = _place(root)
    if place is not None and not _has(module):
        return (
            f"The {root} of this program, {place}, has no such part either: look for the part's right name, or version"
        )
    if here:
        return _advice_here(place)
    package = _package(root)
    if package is not None:
        wanted = f'sky.Image(pip=["{package}"])'
        if "." in module:
            return f"The node's {root} is another one than here: ask for the same, {wanted}"
        return f"Here it comes from {package}; add that to the image: {wanted}"
    if place is not None:
        return (
            f"It is a module of your own, {place}, and nodes get no files of yours. Import it at the top of your "
            f"program and call cloudpickle.register_pickle_by_value({root}) before the task is submitted: then what a "
            "task uses of it is sent along"
        )
    return (
        "This program has no such module either, so it can't tell which package holds it: find that out, and name it "
        "in sky.Image(pip=[...])"
    )


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
    """Where this program finds a module: its file or folder, or a word."""
    spec = _spec(root)
    if spec is None:
        return "in this process's memory" if root in sys.modules else None
    if spec.submodule_search_locations:
        return next(iter(spec.submodule_search_locations), None)
    return spec.origin


def _spec(root: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(root)
    except (ValueError, ImportError):  # one that was put among the modules by hand
        return None


def _has(module: str) -> bool:
    """Whether a package that this program finds has a part. Nothing of it is imported for that."""
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
    """The package that the module came with here, as ``name==version``; None where it is none of an index."""
    from importlib import metadata  # noqa: PLC0415 - 3 MB, of which a pool without such a fault has no use

    for name in metadata.packages_distributions().get(root, ()):
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # a folder that is not called as it should
            continue
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        if not str(origin.get("url", "")).startswith("file:"):
            return f"{name}=={distribution.version}"
    return None
