"""Generates the pages of the API: one for each public name, and one for each module that other packages may use.

They are written to docs/generated, which is not in git, and only if they differ, so that a second build is quick.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

from sphinx.application import Sphinx

import skyward
from skyward.core import errors

__all__ = ["ALIASES", "is_internal", "setup"]

MODULES = {
    "skyward.core.interfaces": "the contracts of providers, transports, plugins and listeners",
    "skyward.core.spec": "the values that a pool and its providers exchange",
    "skyward.core.events": "what happens in a pool",
    "skyward.core.status": "the state of a pool",
    "skyward.core.facts": "running totals of a pool's events",
    "skyward.core.visible": "makes foreign text safe to show",
    "skyward.providers.base": "the base class of cloud providers",
    "skyward.providers.first_boot": "the script that a machine runs at its first boot",
    "skyward.providers.libcloud": "profiles for Apache Libcloud's drivers",
    "skyward.testing.provider": "the suites that every provider passes",
    "skyward.testing.transport": "the suite that every transport passes",
    "skyward.integrations": "joblib and scikit-learn on a pool",
}

GROUPS = {
    "Pools and functions": ["Compute", "compute", "gather", "explain", "last_failure", "current_worker", "plugins"],
    "Providers": ["AWS", "Libcloud", "Local", "SSH", "VastAI", "Verda"],
    "Values": ["Worker", "Image", "LocalVolume", "S3Volume", "Volume", "Plugin", "OpenPool"],
    "Errors": errors.__all__,
}
PACKAGES = "For packages"
ELSEWHERE = {"ComputePool", "integrations", "__version__"}  # another name for Compute, a module, a text

_BARE = {*GROUPS["Providers"]}  # pools call their methods, which the contracts describe


def _aliases() -> dict[str, str]:
    """Public names by the place where their objects are defined."""
    found = {}
    for name in skyward.__all__:
        value = getattr(skyward, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            found.setdefault(f"{value.__module__}.{value.__qualname__}", f"skyward.{value.__name__}")
    return found


ALIASES = _aliases()


def is_internal(target: str) -> bool:
    """Tell whether a name in an annotation has no page: that of a type that users need not know, or an alias."""
    return target.startswith("skyward.") or "." not in target or "[" in target


def _heading(text: str) -> str:
    return f"{text}\n{'=' * len(text)}\n\n"


def _name(name: str) -> str:
    value: Any = getattr(skyward, name)
    head = _heading(f"sky.{name}") + ".. currentmodule:: skyward\n\n"
    if inspect.ismodule(value):
        return head + f".. automodule:: skyward.{name}\n   :members:\n   :imported-members:\n"
    if inspect.isclass(value):
        members = "" if name in _BARE else "   :members:\n"
        inherited = "   :inherited-members: Executor\n" if name == "Compute" else ""
        bases = "   :show-inheritance:\n" if name in errors.__all__ else ""
        return head + f".. autoclass:: {name}\n{members}{inherited}{bases}"
    if inspect.isroutine(value):
        return head + f".. autofunction:: {name}\n"
    kind = type(value)
    return head + (
        f".. autodata:: {name}\n   :no-value:\n\n.. autoclass:: {kind.__module__}.{kind.__qualname__}\n   :members:\n"
    )


def _module(name: str, what: str) -> str:
    module: ModuleType = importlib.import_module(name)
    lines = [_heading(name), f"{what[0].upper()}{what[1:]}.\n\n", f".. currentmodule:: {name}\n"]
    for each in module.__all__:
        if f"{name}.{each}" in ALIASES and ALIASES[f"{name}.{each}"] != f"{name}.{each}":
            continue  # has a page of its own
        value = getattr(module, each)
        if inspect.isclass(value):
            lines.append(f"\n.. autoclass:: {each}\n   :members:\n")
        elif inspect.isroutine(value):
            lines.append(f"\n.. autofunction:: {each}\n")
        else:
            lines.append(f"\n.. autodata:: {each}\n")
    return "".join(lines)


def _group(group: str, names: list[str]) -> str:
    """Links to its pages; the tables of api.md say what each name is for."""
    tree = ".. toctree::\n   :titlesonly:\n\n" + "".join(f"   skyward.{name}\n" for name in names)
    return f"{_heading(group)}:doc:`The overview </api>` describes each of these names in a line.\n\n{tree}"


def _packages() -> str:
    """A table of the modules that other packages may use."""
    rows = ".. list-table::\n   :widths: auto\n\n"
    for name, what in MODULES.items():
        rows += f"   * - :doc:`{name} <{name}>`\n     - {what[0].upper()}{what[1:]}.\n"
    tree = "\n.. toctree::\n   :hidden:\n\n" + "".join(f"   {name}\n" for name in MODULES)
    return f"{_heading(PACKAGES)}Modules that other packages may use.\n\n{rows}{tree}"


def pages() -> dict[str, str]:
    """Return each page's text under its name."""
    listed = [name for names in GROUPS.values() for name in names]
    if missing := {*skyward.__all__} - ELSEWHERE - {*listed}:
        raise ValueError(f"add to GROUPS in docs/extensions/reference.py: {', '.join(sorted(missing))}")
    made = {f"skyward.{name}": _name(name) for name in listed}
    made |= {name: _module(name, what) for name, what in MODULES.items()}
    texts = {group: _group(group, names) for group, names in GROUPS.items()} | {PACKAGES: _packages()}
    return made | {group.lower().replace(" ", "-"): text for group, text in texts.items()}


def write(app: Sphinx) -> None:
    """Write the pages that differ, and remove those that are no longer generated."""
    folder = Path(app.srcdir) / "generated"
    folder.mkdir(exist_ok=True)
    texts = pages()
    for path in folder.glob("*.rst"):
        if path.stem not in texts:
            path.unlink()
    for name, text in texts.items():
        path = folder / f"{name}.rst"
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register it."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
