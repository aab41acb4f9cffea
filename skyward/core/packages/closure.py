"""Decides what a node's environment contains, from what the driver has and what its tasks need. Pure.

Nodes get the driver's versions, with the dependencies that the driver's distributions have on a node's platform. Where
the user asks for something else, that counts, and the installer finds out its dependencies.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from packaging.markers import Marker, default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from skyward.core.packages.installed import Distribution
from skyward.core.packages.lists import MACHINES
from skyward.core.requirements import has_hash

__all__ = [
    "INSTALLERS",
    "OPTIONS",
    "OWN",
    "TOOLS",
    "Apart",
    "Closure",
    "Request",
    "close",
    "for_node",
    "parse",
]

OWN = "skyward-cloud"  # nodes get our code in another way

INSTALLERS = frozenset(("pip", "setuptools", "wheel", "uv"))

TOOLS = INSTALLERS | frozenset(
    (
        "coverage",
        "debugpy",
        "execnet",
        "ipykernel",
        "ipython",
        "jupyter",
        "jupyter-client",
        "jupyter-core",
        "jupyterlab",
        "marimo",
        "nbclient",
        "notebook",
        "papermill",
        "pytest",
        "pytest-xdist",
    )
)
"""Programs that run the user's code, and which that code does not use in tasks."""

OPTIONS: Mapping[str, tuple[str, ...]] = {"scikit-learn": ("rich",)}
"""What features of a package need that its metadata calls optional: rich is for scikit-learn's ProgressBar."""

_OPTION = re.compile(r"\s--[a-z]")
_FOR_DEVELOPERS = re.compile(r"(dev|test|doc|lint|typ|check|bench|build|cover)", re.IGNORECASE)
_EXTRA = re.compile(r"""extra\s*==\s*["']([^"']+)""")


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of an environment.

    Attributes
    ----------
    names
        Normalized names of distributions that tasks need.
    lines
        Requirements that the user or a plugin has given.
    constraints
        Further limits on versions.
    needed
        What nodes need in exactly the driver's version.
    used
        Names of distributions that are loaded in the driver: of optional dependencies, only these are of use.
    """

    names: Sequence[str] = ()
    lines: Sequence[str] = ()
    constraints: Sequence[str] = ()
    needed: Sequence[str] = ()
    used: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Apart:
    """A distribution that no index is known to have in the driver's form.

    Attributes
    ----------
    name, version
        As its metadata has them.
    why
        "editable", "url" or "build" (its version has a local label, such as 2.5.1+cpu).
    url
        Where it was installed from.
    """

    name: str
    version: str
    why: str
    url: str = ""


@dataclass(frozen=True, slots=True)
class Closure:
    """What an environment contains.

    Attributes
    ----------
    exact
        Lines with exact versions; all they depend on is among them, so nothing has to be resolved.
    resolved
        Lines whose versions, or whose dependencies, are for the installer to find.
    apart
        What the driver has in a form of its own.
    """

    exact: tuple[str, ...] = ()
    resolved: tuple[str, ...] = ()
    apart: tuple[Apart, ...] = ()


@functools.cache
def for_node(machine: str) -> dict[str, str]:
    """The marker environment of a node: this Python, on Linux, on a machine of that architecture."""
    return _here() | {
        "os_name": "posix",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": machine,
        "platform_release": "",
        "platform_version": "",
    }


def close(request: Request, installed: Mapping[str, Distribution], driver: Mapping[str, str] | None = None) -> Closure:
    """Decide what nodes need.

    Parameters
    ----------
    request
        What is asked for.
    installed
        The driver's distributions, by normalized names.
    driver
        The driver's marker environment; None for this process's.
    """
    return _Closing(request, installed, driver or _here()).run()


def _here() -> dict[str, str]:
    return {name: str(value) for name, value in default_environment().items()}


class _Need(NamedTuple):
    name: str
    extras: frozenset[str] = frozenset()
    machines: frozenset[str] = frozenset(MACHINES)


@dataclass(slots=True)
class _Closing:
    request: Request
    installed: Mapping[str, Distribution]
    driver: Mapping[str, str]
    where: dict[str, set[str]] = field(default_factory=dict)  # distribution -> machines that need it
    theirs: set[str] = field(default_factory=set)  # distributions for which the user's lines count
    resolved: dict[str, set[str]] = field(default_factory=dict)  # line -> machines
    visited: set[tuple[str, str, str]] = field(default_factory=set)  # distribution, extra, machine

    def run(self) -> Closure:
        needed = frozenset(map(_key, self.request.needed))
        todo = [_Need(name) for name in needed]
        todo += self._of_lines()
        todo += [_Need(_key(name)) for name in self.request.names]
        while todo:
            need = todo.pop()
            name, one = need.name, self.installed.get(need.name)
            if one is None or name == OWN or (name in self.theirs and name not in needed):
                continue
            if not self._allowed(name):
                self._resolve(one.name, need.machines)
                continue
            self.where.setdefault(name, set()).update(need.machines)
            for machine in need.machines:
                todo += self._dependencies(one, need.extras, machine)
        exact, apart = [], []
        for name, machines in sorted(self.where.items()):
            one = self.installed[name]
            why = "" if name in needed else _why_apart(one)
            if why:
                apart.append(Apart(one.name, one.version, why, one.url))
            if why == "build":
                self._resolve(f"{one.name}=={one.version.partition('+')[0]}", machines)
            elif not why:
                exact.append(_on(_pin(one), machines))
        resolved = [_on(line, machines) for line, machines in self.resolved.items()]
        return Closure(tuple(exact), tuple(resolved), tuple(apart))

    def _resolve(self, line: str, machines: Iterable[str] = MACHINES) -> None:
        self.resolved.setdefault(line, set()).update(machines)

    def _of_lines(self) -> Iterator[_Need]:
        """What to pin because of the user's lines; what is not pinned is left to the installer."""
        asked = [(line, parse(line)) for line in self.request.lines]
        self.theirs.update(_key(one.name) for line, one in asked if one is not None and not self._is_met(one, line))
        for line, one in asked:
            if one is None or _key(one.name) in self.theirs:
                self._resolve(line)
            else:
                yield _Need(_key(one.name), frozenset(one.extras))

    def _is_met(self, asked: Requirement, line: str) -> bool:
        """Whether the driver's distribution is just what a line asks for, with nothing more to it."""
        one = self.installed.get(_key(asked.name))
        if one is None or has_hash(line) or _OPTION.search(line):
            return False
        if asked.url:
            return bool(one.url) and not one.editable and asked.url.removeprefix("git+").startswith(one.url)
        if "+" in one.version and asked.specifier:  # only the user knows an index that has this build
            return False
        on_all = all(_holds(asked.marker, for_node(machine), "") for machine in MACHINES)
        return on_all and _admits(asked.specifier, one.version) and self._allowed(one.key)

    def _allowed(self, name: str) -> bool:
        """Whether the user's constraints allow the driver's version."""
        limits = [limit for line in self.request.constraints if (limit := parse(line)) and _key(limit.name) == name]
        return all(_admits(limit.specifier, self.installed[name].version) for limit in limits)

    def _dependencies(self, one: Distribution, extras: Iterable[str], machine: str) -> Iterator[_Need]:
        """What a distribution needs on a machine, the first time that this is asked."""
        new = [extra for extra in ("", *extras) if (one.key, extra, machine) not in self.visited]
        self.visited.update((one.key, extra, machine) for extra in new)
        for extra, needs in itertools.product(new, filter(None, map(parse, one.requires))):
            name, node = _key(needs.name), for_node(machine)
            need = _Need(name, frozenset(needs.extras), frozenset((machine,)))
            if not _holds(needs.marker, node, extra):
                if not extra and self._is_of_use(name, needs.marker, node):
                    yield _Need(name, machines=need.machines)
            elif name in self.installed or name in self.theirs:
                yield need
            elif not _holds(needs.marker, self.driver, extra):
                # Here it is not needed, there it is. What is needed here and missing is not missed there either.
                self._resolve(f"{needs.name}{_extras(needs)}{needs.specifier}", (machine,))
        if "" in new:
            yield from (_Need(name, machines=frozenset((machine,))) for name in OPTIONS.get(one.key, ()))

    def _is_of_use(self, name: str, marker: Marker | None, node: Mapping[str, str]) -> bool:
        """Whether this driver uses something that is optional."""
        if name not in self.request.used or name not in self.installed or name in TOOLS:
            return False
        extras = [extra for extra in _EXTRA.findall(str(marker)) if not _FOR_DEVELOPERS.match(extra)]
        return any(_holds(marker, node, extra) for extra in extras)


def _key(name: str) -> str:
    return canonicalize_name(name)


@functools.lru_cache(maxsize=4096)  # each is evaluated for each machine and extra
def parse(text: str) -> Requirement | None:
    """A requirement without its options; None for what only installers understand."""
    found = _OPTION.search(text)
    try:
        return Requirement(text[: found.start()] if found else text)
    except InvalidRequirement:
        return None


def _holds(marker: Marker | None, environment: Mapping[str, str], extra: str) -> bool:
    return marker is None or marker.evaluate({**environment, "extra": extra})


def _extras(needs: Requirement) -> str:
    return f"[{','.join(sorted(needs.extras))}]" if needs.extras else ""


def _admits(specifier: SpecifierSet, version: str) -> bool:
    try:
        return specifier.contains(version, prereleases=True)
    except (InvalidVersion, InvalidSpecifier):
        return False


def _why_apart(one: Distribution) -> str:
    if one.editable:
        return "editable"
    if one.url:
        return "url"
    return "build" if "+" in one.version else ""


def _pin(one: Distribution) -> str:
    try:
        Version(one.version)
    except InvalidVersion:
        return f"{one.name}==={one.version}"
    return f"{one.name}=={one.version}"


def _on(line: str, machines: set[str]) -> str:
    """A line that holds for these machines only."""
    if machines >= set(MACHINES):
        return line
    clause = " or ".join(f'platform_machine == "{machine}"' for machine in sorted(machines))
    return f"{line} ; {clause}"
