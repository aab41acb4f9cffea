"""The environment in which nodes run tasks, as users describe it: checked when constructed."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from skyward.core import requirements, settings
from skyward.core.errors import ConfigError

__all__ = ["Image", "Sync"]

Sync: TypeAlias = Literal["auto", "all", "none"]

_SYNCS: tuple[Sync, ...] = ("auto", "all", "none")


@dataclass(frozen=True, slots=True)
class Image:
    """The environment in which a node runs tasks.

    Parameters
    ----------
    python
        Minor version such as ``"3.12"``; None means the driver's. Any other version is an error, since pickled
        functions do not work across minor versions.
    pip
        Requirements in pip's syntax, optionally with hashes. With `Local`, which uses the driver's own environment,
        they must already be installed.
    apt
        Debian packages, for nodes where the login user is root.
    env
        Environment variables, set for every task and while packages are installed.
    index
        URL of the package index; None means whatever the node is configured to use.
    extra_index
        URLs of additional package indexes.
    preload
        Modules that the slots' fork server imports once, so that no task has to. Not for your own modules, which you
        may edit while the pool is open.
    requirements
        Path of a requirements file, a lock file (``uv.lock``, ``pylock.toml``), conda's ``environment.yml``, or a
        ``pyproject.toml`` whose dependencies are to be installed. It is read immediately: its lines are added to `pip`
        and `constraints`, its indexes to `index` and `extra_index`.
    constraints
        Requirements that restrict the versions of packages but do not install any.
    sync
        Which of the driver's packages, in its versions, are installed on nodes that do not use its environment.
        ``"auto"``: those that its program imports, and those that `pip` names if the driver's version fits, with all
        their dependencies. ``"all"``: everything. ``"none"``: only what `pip` and the plugins name, in the newest
        versions that fit.
    local
        Modules and packages of your own that nodes need, in addition to those that the program and its files import:
        names, or paths of files and folders. An installed package named here is sent as it is on this machine.
    exclude
        Parts of your own code that nodes do not get: names of modules, or patterns such as ``"churn/data/*"`` or
        ``"*.csv"``.
    env_from
        Variables of this machine that tasks get: names (``"CHURN_URL"``), patterns (``"CHURN_*"``), and files of
        ``NAME=value`` lines (``".env"``). They are read immediately; `env` overrides them. They are not set while
        packages are installed. Otherwise only time zone and locale reach tasks on other machines.

    Raises
    ------
    ConfigError
        A value has the wrong type, a file can't be read, or a requirement can't be installed on nodes (a path on this
        machine, say).
    """

    python: str | None = None
    pip: Sequence[str] = ()
    apt: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    index: str | None = None
    extra_index: Sequence[str] = ()
    preload: Sequence[str] = ()
    requirements: str | os.PathLike[str] | None = None
    constraints: Sequence[str] = ()
    sync: Sync = "auto"
    local: Sequence[str] = ()
    exclude: Sequence[str] = ()
    env_from: Sequence[str] = ()
    _from_file: tuple[str, ...] = field(default=(), repr=False, compare=False)
    _read: Mapping[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("pip", "apt", "extra_index", "preload", "constraints", "local", "exclude", "env_from"):
            object.__setattr__(self, name, _strings(getattr(self, name), f"Image {name}"))
        for name in ("pip", "constraints"):
            lines = tuple(requirements.check(line, f"Image {name}={line!r}") for line in getattr(self, name))
            object.__setattr__(self, name, lines)
        if self.sync not in _SYNCS:
            raise ConfigError(f"Image sync={self.sync!r} is unknown; it must be one of {', '.join(map(repr, _SYNCS))}")
        self._read_requirements()
        object.__setattr__(self, "env", _texts(self.env, "Image env"))
        object.__setattr__(self, "_read", settings.read(self.env_from, os.environ))
        driver = f"{sys.version_info.major}.{sys.version_info.minor}"
        if self.python not in (None, driver):
            raise ConfigError(
                f"Image python={self.python!r}, but this is Python {driver}: pickled functions do not work across "
                f"minor versions. Leave python out, or run the driver with Python {self.python}"
            )

    def _read_requirements(self) -> None:
        """Merge in the requirements file, once: an image derived from this one does not read it again."""
        if self.requirements is None:
            return
        if not isinstance(self.requirements, (str, os.PathLike)):
            raise ConfigError(f"Image requirements={self.requirements!r} is not the path of a file")
        wanted = requirements.read(self.requirements)
        object.__setattr__(self, "pip", (*self.pip, *wanted.pip))
        object.__setattr__(self, "_from_file", tuple(wanted.pip))
        object.__setattr__(self, "constraints", (*self.constraints, *wanted.constraints))
        object.__setattr__(self, "index", self.index or wanted.index)
        object.__setattr__(self, "extra_index", (*self.extra_index, *wanted.extra_index))
        object.__setattr__(self, "requirements", None)

    @property
    def locked(self) -> frozenset[str]:
        """Those lines of `pip` that came from the requirements file, and those with hashes."""
        return frozenset((*self._from_file, *filter(requirements.has_hash, self.pip)))

    @property
    def task_env(self) -> dict[str, str]:
        """Environment variables that are set for tasks: those of `env_from`, and `env`."""
        return {**self._read, **self.env}

    @property
    def python_version(self) -> str:
        """Minor version of Python on the nodes, such as ``"3.11"``; always the driver's."""
        return f"{sys.version_info.major}.{sys.version_info.minor}"


def _strings(value: object, name: str) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"{name}={value!r} is not a list of strings")
    return tuple(value)


def _texts(value: object, name: str) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(text, str) for item in value.items() for text in item):
        raise ConfigError(f"{name}={value!r} is not a mapping of strings to strings")
    return dict(value)
