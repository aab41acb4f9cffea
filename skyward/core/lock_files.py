"""Reads lock files: ``uv.lock``, ``pylock.toml`` (PEP 751) and conda's ``environment.yml``.

Each becomes lines in pip's format, with the hashes of the lock file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from importlib import metadata
from typing import Any

from packaging.markers import InvalidMarker, Marker, default_environment

from skyward.core.errors import ConfigError

__all__ = ["of_conda", "of_pylock", "of_uv"]

_MACHINES = ("x86_64", "aarch64")
_SPEC = re.compile(r"(?:[\w.-]+::)?([A-Za-z0-9][\w.-]*)\s*(.*)")
_NOT_PACKAGES = ("python", "pip", "setuptools", "wheel")  # a node's Python, and what its installer brings
_CONDA_NAMES = {
    "matplotlib-base": "matplotlib",
    "msgpack-python": "msgpack",
    "opencv": "opencv-python",
    "py-lightgbm": "lightgbm",
    "py-xgboost": "xgboost",
    "python-tzdata": "tzdata",
    "pytorch": "torch",
}


def _node(machine: str) -> dict[str, str]:
    here = {name: str(value) for name, value in default_environment().items()}
    platform = {"os_name": "posix", "sys_platform": "linux", "platform_system": "Linux", "platform_machine": machine}
    return here | platform


# --- uv.lock --------------------------------------------------------------------------------------------------------


def of_uv(lock: Mapping[str, Any], where: str) -> list[str]:
    """Return the lines of a ``uv.lock``: what the project itself depends on, without its groups and extras.

    Parameters
    ----------
    lock
        The parsed file.
    where
        What to call it in errors.

    Raises
    ------
    ConfigError
        It contains no project, or locks a file of this machine.
    """
    packages = lock.get("package", [])
    roots = [one for one in packages if _source(one, "virtual", "editable") is not None]
    if not roots:
        raise ConfigError(f"{where} names no project, so it is unclear whose dependencies to install")
    machines: dict[str, set[str]] = {}
    for machine in _MACHINES:
        for line in _walk(packages, roots, _node(machine), where):
            machines.setdefault(line, set()).add(machine)
    return [_marked(line, on) for line, on in machines.items()]


def _walk(
    packages: Sequence[Mapping[str, Any]], roots: Iterable[Mapping[str, Any]], node: Mapping[str, str], where: str
) -> Iterator[str]:
    seen: set[tuple[str, str, str]] = set()
    todo = [(root, "") for root in roots]
    while todo:
        one, extra = todo.pop()
        key = (one["name"], str(one.get("version")), extra)
        if key in seen:
            continue
        seen.add(key)
        if (line := _uv_line(one, where)) and (*key[:2], "line") not in seen:
            seen.add((*key[:2], "line"))
            yield line
        needs = one.get("optional-dependencies", {}).get(extra, []) if extra else one.get("dependencies", [])
        for need in needs:
            if "marker" in need and not Marker(need["marker"]).evaluate({**node, "extra": ""}):
                continue
            for found in _matching(packages, need, node):
                todo += [(found, ""), *((found, extra) for extra in need.get("extra", ()))]


def _matching(
    packages: Sequence[Mapping[str, Any]], need: Mapping[str, Any], node: Mapping[str, str]
) -> Iterator[Mapping[str, Any]]:
    """The package that a dependency refers to on a node; lock files may have several versions, one per platform."""
    for one in packages:
        if one["name"] == need["name"] and need.get("version", one.get("version")) == one.get("version"):
            forks = one.get("resolution-markers", [])
            if not forks or any(Marker(fork).evaluate({**node, "extra": ""}) for fork in forks):
                yield one


def _source(one: Mapping[str, Any], *kinds: str) -> str | None:
    return next((str(one["source"][kind]) for kind in kinds if kind in one.get("source", {})), None)


def _uv_line(one: Mapping[str, Any], where: str) -> str:
    """The line of a package; empty for the project itself and its parts, which are not installed."""
    if _source(one, "virtual", "editable", "directory") is not None:
        return ""
    if (path := _source(one, "path")) is not None:
        raise ConfigError(f"{where}: {one['name']} is the file {path}, which nodes do not have. Put it on an index")
    if (git := _source(one, "git")) is not None:
        address, _, commit = git.partition("#")
        return f"{one['name']} @ git+{address.partition('?')[0]}@{commit}"
    files = [*one.get("wheels", []), *([one["sdist"]] if "sdist" in one else [])]
    hashes = [str(file["hash"]) for file in files if "hash" in file]
    url = _source(one, "url")
    return _line(f"{one['name']} @ {url}" if url else f"{one['name']}=={one['version']}", hashes)


def _line(what: str, hashes: Iterable[str]) -> str:
    return " ".join([what, *(f"--hash={digest}" for digest in dict.fromkeys(hashes))])


def _marked(line: str, machines: Collection[str]) -> str:
    if len(machines) == len(_MACHINES):
        return line
    what, dash, hashes = line.partition(" --hash")
    return f'{what} ; platform_machine == "{min(machines)}"{dash}{hashes}'


# --- pylock.toml ----------------------------------------------------------------------------------------------------


def of_pylock(lock: Mapping[str, Any], where: str) -> list[str]:
    """Return the lines of a ``pylock.toml``, without extras and with its default groups.

    Parameters
    ----------
    lock
        The parsed file.
    where
        What to call it in errors.

    Raises
    ------
    ConfigError
        It has another format, or locks a file of this machine.
    """
    if not str(lock.get("lock-version", "")).startswith("1."):
        raise ConfigError(f"{where} is not a lock file of version 1 (PEP 751)")
    chosen = {"extras": frozenset[str](), "dependency_groups": frozenset(lock.get("default-groups", ()))}
    return [line for one in lock.get("packages", []) for line in _pylock_lines(one, chosen, where)]


def _pylock_lines(one: Mapping[str, Any], chosen: Mapping[str, AbstractSet[str]], where: str) -> Iterator[str]:
    on: Collection[str] = _MACHINES
    if marker := one.get("marker", ""):
        try:
            asked = Marker(marker)
        except InvalidMarker as error:
            raise ConfigError(f"{where}: {one['name']} has a marker that can't be read: {error}") from error
        on = [machine for machine in _MACHINES if asked.evaluate({**_node(machine), **chosen}, "lock_file")]
    if not on or "directory" in one:
        return
    if "vcs" in one:
        vcs = one["vcs"]
        yield f"{one['name']} @ {vcs['type']}+{vcs['url']}@{vcs['commit-id']}"
        return
    files = [*one.get("wheels", []), *(one[kind] for kind in ("sdist", "archive") if kind in one)]
    if any("path" in file for file in files):
        raise ConfigError(f"{where}: {one['name']} is a file of this machine, which nodes do not have")
    hashes = [f"sha256:{file['hashes']['sha256']}" for file in files if "sha256" in file.get("hashes", {})]
    what = f"{one['name']} @ {one['archive']['url']}" if "archive" in one else f"{one['name']}=={one['version']}"
    yield _marked(_line(what, hashes), on)


# --- environment.yml ------------------------------------------------------------------------------------------------


def of_conda(text: str, where: str) -> list[str]:
    """Return the lines of a conda environment: its pip section, and its conda packages, by their names on an index.

    Parameters
    ----------
    text
        The file.
    where
        What to call it in errors.

    Raises
    ------
    ConfigError
        It names something that is not a Python package of this environment. Nodes install from package indexes, which
        have nothing else.
    """
    lines: list[str] = []
    for in_pip, item in _conda_items(text):
        if in_pip:
            lines.append(item)
            continue
        found = _SPEC.fullmatch(item)
        if found is None:
            raise ConfigError(f"{where}: {item!r} is not a requirement")
        name = _CONDA_NAMES.get(found[1].lower(), found[1].lower())
        if name in _NOT_PACKAGES:
            continue
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            raise ConfigError(
                f"{where}: {found[1]} is not a Python package in this environment, and nodes install from package "
                "indexes. Remove it from the file, or list it in the pip section under its name on an index"
            ) from None
        lines.append(name + _versions(found[2]))
    return lines


def _conda_items(text: str) -> Iterator[tuple[bool, str]]:
    """The items of ``dependencies``, and whether each is in its pip section. Reads as much YAML as these files use."""
    inside, pip_at = False, -1
    for line in text.splitlines():
        bare = re.sub(r"(^|\s)#.*$", "", line).rstrip()
        if not bare.strip():
            continue
        if not bare.startswith((" ", "-")):
            inside, pip_at = bare.replace(" ", "") == "dependencies:", -1
            continue
        stripped = bare.lstrip()
        depth = len(bare) - len(stripped)
        if not inside or not stripped.startswith("-"):
            continue
        item = stripped[1:].strip().strip("'\"")
        if item == "pip:":
            pip_at = depth
        elif item:
            if depth <= pip_at:
                pip_at = -1
            yield pip_at >= 0, item


def _versions(spec: str) -> str:
    """A conda version in pip's words: ``=1.26`` is ``==1.26.*``, and builds are left out."""
    spec = spec.strip().partition(" ")[0] if not spec.strip().startswith((">", "<", "!")) else spec.replace(" ", "")
    if not spec or spec == "*":
        return ""
    if spec.startswith((">", "<", "!", "~")):
        return spec
    version = spec.lstrip("=").partition("=")[0]
    if spec.startswith("==") or spec.lstrip("=").count("=") or version.endswith("*"):
        return f"=={version}"
    return f"=={version}.*"
