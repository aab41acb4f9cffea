"""Names to classes: providers, transports, listeners and front ends, ours and third parties', imported on first use.

Ours are in a table (`core.builtins_table`), so that finding them does not require a scan of the installed packages.
Third parties' are found by entry points, in groups of the same names. Both are loaded the same way.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import shlex
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skyward.core.builtins_table import OURS
from skyward.core.errors import ConfigError, PluginNotFound, SkywardError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from skyward.core.interfaces import Provider

__all__ = [
    "DASHBOARDS",
    "FRONTENDS",
    "LISTENERS",
    "PLUGINS",
    "PROVIDERS",
    "STORES",
    "TRANSPORTS",
    "is_ours",
    "load",
    "names",
    "provider",
    "rival",
]

PROVIDERS = "skyward.providers"
TRANSPORTS = "skyward.transports"
LISTENERS = "skyward.listeners"
PLUGINS = "skyward.plugins"
FRONTENDS = "skyward.frontends"
STORES = "skyward.stores"
DASHBOARDS = "skyward.dashboards"

_US = "skyward-cloud"


@cache
def _theirs(group: str) -> dict[str, list[EntryPoint]]:
    found: dict[str, list[EntryPoint]] = {}
    if not _is_mentioned(group):
        return found
    from importlib.metadata import entry_points  # noqa: PLC0415 - 3 MB and 30 ms, which ours don't need

    for entry in entry_points(group=group):
        if entry.dist is None or entry.dist.name != _US:
            found.setdefault(entry.name, []).append(entry)
    return found


def _is_mentioned(group: str) -> bool:
    """Whether a package other than ours may have an entry point in a group; cheap, since every pool calls it."""
    if any(finder is not PathFinder and hasattr(finder, "find_distributions") for finder in sys.meta_path):
        return True
    wanted = f"[{group}]".encode()
    for folder in map(Path, sys.path):
        if folder.is_file():  # a zip
            return True
        for entry in (*folder.glob("*.dist-info/entry_points.txt"), *folder.glob("*.egg-info/entry_points.txt")):
            try:
                if wanted in entry.read_bytes() and not entry.parent.name.startswith(_US.replace("-", "_")):
                    return True
            except OSError:  # unreadable: leave the error to importlib
                return True
    return False


def is_ours(group: str, name: str) -> bool:
    """Whether the name belongs to one of ours."""
    return name in OURS[group]


def names(group: str) -> list[str]:
    """All names of a group, sorted."""
    return sorted({*OURS[group], *_theirs(group)})


@cache
def load(group: str, name: str) -> Any:
    """Load the class with that name.

    Raises
    ------
    PluginNotFound
        Nothing has that name (the message lists what is installed), two packages claim it, or it can't be imported.
    """
    kind = group.removeprefix("skyward.").removesuffix("s")
    if name in OURS[group]:
        module, _, attribute = OURS[group][name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    entries = _theirs(group).get(name, [])
    if not entries:
        close = difflib.get_close_matches(name.lower(), names(group), 1)
        advice = f"did you mean {close[0]!r}?" if close else "is its package installed?"
        raise PluginNotFound(f"no {kind} is named {name!r}; {advice} Available: {', '.join(names(group))}")
    if len(entries) > 1:
        claims = " and ".join(sorted(_package(entry) for entry in entries))
        raise PluginNotFound(f"{claims} both provide a {kind} named {name!r}; uninstall one of them")
    try:
        return entries[0].load()
    except Exception as error:
        raise PluginNotFound(
            f"the {kind} {name!r} of {_package(entries[0])} can't be loaded: {type(error).__name__}: {error}. "
            f"Reinstall or upgrade {_package(entries[0])}"
        ) from error


def rival(group: str, name: str) -> str | None:
    """The package that claims the name of one of ours, and is ignored for that reason; None if there is none."""
    rivals = _theirs(group).get(name)
    return _package(rivals[0]) if rivals and name in OURS[group] else None


def provider(name: str, settings: Mapping[str, object] | None = None) -> Provider:
    """Make a provider from its name and its `Rental.settings`, which may have been through JSON.

    Parameters
    ----------
    name
        Its name; may be followed by its first argument, as in ``"libcloud:digitalocean"``.
    settings
        Its arguments. Secrets are not among them: they are looked up as the vendor's own tools do.

    Raises
    ------
    PluginNotFound
        As for `load`.
    ConfigError
        The arguments are wrong.
    """
    name, _, first = name.partition(":")
    if package := rival(PROVIDERS, name):
        raise PluginNotFound(
            f"{package} provides a provider named {name!r}, which is the name of a built-in one; uninstall {package}, "
            "or give an object instead of a name"
        )
    kind = load(PROVIDERS, name)
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in (settings or {}).items()}
    signature = inspect.signature(kind)
    if first:
        values = {next(iter(signature.parameters), ""): first, **values}
    try:
        signature.bind(**values)
    except TypeError:
        raise ConfigError(_misfit(name, kind, values)) from None
    try:
        made: Provider = kind(**values)
    except SkywardError:
        raise
    except Exception as error:  # usually a value of the wrong type
        raise ConfigError(f"{name}: {type(error).__name__}: {error}") from error
    return made


def _misfit(name: str, kind: Callable[..., object], values: Mapping[str, object]) -> str:
    """Explain which settings a provider does not have, or else which one is missing."""
    given = inspect.signature(kind).parameters
    known = {each: given[each] for each in given if given[each].kind is not inspect.Parameter.VAR_KEYWORD}
    fields: Mapping[str, Any] = getattr(kind, "__dataclass_fields__", {})
    notes = {each: fields[each].metadata if each in fields else {} for each in known}
    if unknown := [repr(each) for each in values if each not in known]:
        has = [each for each in known if not notes[each].get("secret")]  # secrets are not settings
        return f"{name} has no setting {', '.join(unknown)}; it has {', '.join(has) or 'none'}"
    missing = next(each for each in known if known[each].default is inspect.Parameter.empty and each not in values)
    example = notes[missing].get("example", f"{missing}=...")
    written = shlex.quote(f"{name}:{example}")
    return f"{name} needs {missing}: on the command line {written}, in a program {kind.__name__}(...)"


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.value
