"""The wheels that are sent to a node: fetched or, if no index can be reached here either, made of installed files."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from pathlib import Path

from packaging import tags
from packaging.utils import canonicalize_name, parse_wheel_filename
from platformdirs import user_cache_path

from skyward.core.errors import ConfigError, PackagesFailed
from skyward.core.packages.closure import Request, close, for_node, parse
from skyward.core.packages.fetch import Target, fetch
from skyward.core.packages.installed import Installed
from skyward.core.packages.rebuild import rebuild

__all__ = ["fetch_or_make", "make_wheels"]


def fetch_or_make(lines: Sequence[str], target: Target, *, resolve: bool) -> list[Path]:
    """Return the wheels of what is to be installed on a node.

    Parameters
    ----------
    lines, target, resolve
        See `fetch`.

    Raises
    ------
    PackagesFailed
        Neither way works; the message gives both reasons.
    """
    try:
        return fetch(lines, target, resolve=resolve)
    except PackagesFailed as error:
        try:
            return make_wheels(lines, target, user_cache_path("skyward") / "rebuilt")
        except PackagesFailed as other:
            raise PackagesFailed(f"{error}\n  The installed ones can't be sent instead: {other}") from error


def make_wheels(lines: Sequence[str], target: Target, folder: Path, installed: Installed | None = None) -> list[Path]:
    """Make a wheel of each distribution that is asked for, and of those that it requires, from their installed files.

    Parameters
    ----------
    lines
        As for `fetch`. Lines with hashes can't be met: what is installed is no longer the file that was downloaded.
    target
        What the wheels are for.
    folder
        Where they are put.
    installed
        The distributions to choose from; None for this environment's.

    Raises
    ------
    PackagesFailed
        One is not installed here as asked for, has no list of its files, or is built for another kind of machine.
    """
    if target.python != ".".join(platform.python_version_tuple()[:2]):
        raise PackagesFailed(f"they are for Python {platform.python_version()}, and the node's is {target.python}")
    installed = Installed() if installed is None else installed
    names = _names(list(_asked(lines)), target, installed)
    fitting = _tags(target)
    return [_make(installed, name, fitting, target, folder) for name in names]


def _asked(lines: Sequence[str]) -> Iterator[str]:
    """The requirements, without options of installers."""
    for line in lines:
        part, _, text = line.partition(" ")
        if part == "hashed" and not text.startswith("-"):
            raise PackagesFailed("their hashes are given, which only the files of an index have")
        if part in ("exact", "plain") and not text.startswith("-"):
            yield text


def _names(lines: list[str], target: Target, installed: Installed) -> list[str]:
    """What is asked for, and what that requires on the node, by normalized names."""
    node = for_node(target.machine)
    asked = []
    for line in lines:
        wanted = parse(line)
        if wanted is None or wanted.url:
            raise PackagesFailed(f"{line} is not a package of an index")
        if wanted.marker is None or wanted.marker.evaluate({**node, "extra": ""}):
            one = installed.get(canonicalize_name(wanted.name))
            if one is None:
                raise PackagesFailed(f"{wanted.name} is not installed")
            if not wanted.specifier.contains(one.version, prereleases=True):
                raise PackagesFailed(f"{line} is needed, and {one.version} installed")
            asked.append(one.key)
    closure = close(Request(needed=asked, lines=lines), installed)
    needed = [parse(line) for line in closure.exact]
    found = {one.name for one in needed if one and (one.marker is None or one.marker.evaluate({**node, "extra": ""}))}
    return sorted(map(canonicalize_name, found | {one.name for one in closure.apart}))


def _tags(target: Target) -> frozenset[tags.Tag]:
    """Those of wheels that the node can use."""
    major, minor = map(int, target.python.split("."))
    of_python = tags.cpython_tags((major, minor), platforms=target.platforms)
    return frozenset((*of_python, *tags.compatible_tags((major, minor), f"cp{major}{minor}", target.platforms)))


def _make(installed: Installed, name: str, fitting: frozenset[tags.Tag], target: Target, folder: Path) -> Path:
    try:
        wheel = Path(rebuild(installed.raw(name), folder).path)
    except ConfigError as error:
        raise PackagesFailed(str(error)) from error
    *_, built_for = parse_wheel_filename(wheel.name)
    if fitting.isdisjoint(built_for):
        kind = f"{target.machine} with glibc 2.{target.glibc}" if target.glibc else f"{target.machine} without glibc"
        raise PackagesFailed(f"{wheel.name} does not fit the node, which is {kind}")
    return wheel
