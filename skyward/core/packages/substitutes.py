"""Wheels of what is installed here, in place of what a node's installer could not get.

An index may lack what the driver has: it came from another index, from a folder of wheels or from a build, or the index
has removed it since. What an installer says is searched for exact versions only: if a sentence is misread, a wheel is
sent that an index has, too.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from packaging.utils import canonicalize_name
from platformdirs import user_cache_path

from skyward.core.errors import ConfigError
from skyward.core.packages.lists import PackageLists, Wheel
from skyward.core.packages.rebuild import rebuild
from skyward.core.requirements import has_hash

__all__ = ["substitute", "unavailable"]

_turn = threading.Lock()  # guards the making of wheels: several nodes may lack the same at a time
_UNAVAILABLE = "not available: "  # as the scripts that install print it
_PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==(\d[A-Za-z0-9.!+_-]*)")


def substitute(packages: PackageLists, said: str, *, compiled: bool, folder: Path | None = None) -> PackageLists | None:
    """Replace what could not be installed by wheels of the driver's own distributions.

    Parameters
    ----------
    packages
        What was to be installed.
    said
        The installer's output, which names what it could not get.
    compiled
        Whether the node can use what is compiled for the driver.
    folder
        Where wheels are put; None for the user's cache.

    Returns
    -------
    PackageLists or None
        The same with more wheels; None if nothing can be replaced.
    """
    folder = user_cache_path("skyward") / "rebuilt" if folder is None else folder
    # A hash is of the wheel that an index has.
    lines = [line for line in (*packages.exact, *packages.resolved) if " @ " not in line and not has_hash(line)]
    pins = {name: version for line in lines for name, version in _pins(line)}
    done = {canonicalize_name(wheel.name) for wheel in packages.wheels}
    failed = pins.items() & {*_pins(said)}
    with _turn:
        own = [wheel for name, version in sorted(failed) if name not in done and (wheel := _own(name, version, folder))]
    own = [wheel for wheel in own if wheel.pure or compiled]
    return replace(packages, wheels=(*packages.wheels, *own)) if own else None


def unavailable(said: str) -> tuple[str, ...]:
    """Return the requirements that a node's index can't serve, from what the script that installs has printed."""
    return tuple(line[len(_UNAVAILABLE) :] for line in said.splitlines() if line.startswith(_UNAVAILABLE))


def _pins(text: str) -> Iterator[tuple[str, str]]:
    """Names and versions; a sentence may end right after one."""
    for name, version in _PIN.findall(text):
        yield canonicalize_name(name), version.rstrip(".")


@functools.lru_cache(maxsize=512)  # for all nodes; the largest take a minute
def _own(name: str, version: str, folder: Path) -> Wheel | None:
    """The wheel of what is installed here, if it is that version, or a build of it."""
    try:
        found = metadata.distribution(name)
        same = version in (found.version, found.version.partition("+")[0])
        return rebuild(found, folder) if same else None
    except (metadata.PackageNotFoundError, ConfigError):  # of Debian's packages there is no list of files
        return None
