"""Pools that a file describes: ``[tool.skyward.pools.NAME]`` in pyproject.toml, or ``[pools.NAME]`` in config.toml.

A table's keys are the arguments of `Compute`. What is an object in a program is a table or a name here: ``provider =
"aws"`` or ``{name = "aws", region = "eu-west-1"}``, ``worker = {concurrency = 10}``, ``image = {pip = ["polars"]}``,
``plugins = ["joblib"]``, ``volumes = {data = "./data"}``. Paths are relative to the file.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import os
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from skyward.core import registry
from skyward.core.errors import ConfigError
from skyward.core.image import Image
from skyward.core.spec import Worker
from skyward.core.volumes import LocalVolume

__all__ = ["arguments"]


@dataclass(frozen=True, slots=True)
class _Pools:
    """The pools of one file."""

    file: Path
    prefix: str
    tables: Mapping[str, Any]

    def where(self, name: str) -> str:
        """File and table of one, for messages."""
        return f"{self.file} [{self.prefix}.{name}]"


_SYNONYMS = ({"vcpus", "cpu"}, {"volume", "volumes"}, {"worker", "concurrency"})


def arguments(name: str, known: Iterable[str], given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read the arguments of a named pool.

    Parameters
    ----------
    name
        The pool's name. The project's file takes precedence over the user's.
    known
        Names of all arguments of `Compute`.
    given
        Arguments that replace those of the file.

    Raises
    ------
    ConfigError
        No file describes such a pool, or its description is wrong; the message says where, and names the closest match.
    """
    if not isinstance(name, str):
        raise ConfigError(f"{name!r} is not the name of a pool")
    files = list(_files())
    for pools in files:
        if name in pools.tables:
            found = _Reader(pools.where(name), pools.file.parent).pool(pools.tables[name], list(known))
            return _replaced(found, dict(given or {}))
    names = sorted({each for pools in files for each in pools.tables})
    close = difflib.get_close_matches(name, names, 1)
    listed = ", ".join(names) or "none"
    advice = f"did you mean {close[0]!r}? Available: {listed}" if close else f"available: {listed}"
    raise ConfigError(
        f"no pool is named {name!r}; {advice}. Describe it in pyproject.toml, [tool.skyward.pools.{name}], or in "
        f"{_user_file()}, [pools.{name}]"
    )


@contextlib.contextmanager
def described(name: str | None) -> Iterator[None]:
    """Name the pool and its file in errors about an argument, which may be written there.

    Parameters
    ----------
    name
        The pool's name; None for one that no file describes.
    """
    try:
        yield
    except ConfigError as error:
        if not isinstance(name, str):
            raise
        where = next((pools.where(name) for pools in _files() if name in pools.tables), "")
        if not where or where in str(error):
            raise
        raise type(error)(f"pool {name!r} in {where}: {error}") from error


def _replaced(found: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Replace arguments, including those under a synonym."""
    if "concurrency" in given and "worker" in found:
        given["worker"] = replace(found["worker"], concurrency=given.pop("concurrency"))
    gone = set().union(*(names for names in _SYNONYMS if names & given.keys()))
    return {**{key: value for key, value in found.items() if key not in gone}, **given}


def _files() -> Iterator[_Pools]:
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (file := folder / "pyproject.toml").is_file():
            ours = _table(_toml(file).get("tool", {}), str(file)).get("skyward", {})
            if "pools" in _table(ours, f"{file} [tool.skyward]"):
                yield _Pools(file, "tool.skyward.pools", _table(ours["pools"], str(file)))
                break
    if (file := _user_file()).is_file():
        yield _Pools(file, "pools", _table(_toml(file).get("pools", {}), str(file)))


def _user_file() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "skyward" / "config.toml"


def _toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file} can't be read: {error}") from error


def _table(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {value!r} is not a table")
    return value


@dataclass(frozen=True, slots=True)
class _Reader:
    """Turns one table into arguments.

    Attributes
    ----------
    where
        File and table, for messages.
    folder
        The folder of the file.
    """

    where: str
    folder: Path

    def pool(self, table: object, known: list[str]) -> dict[str, Any]:
        found = _table(table, self.where)
        self._check(found, known, "")
        return {key: self._value(key, value) for key, value in found.items()}

    def _value(self, key: str, value: Any) -> Any:
        if key == "provider":
            several = isinstance(value, list)
            made = [self._provider(each) for each in (value if several else [value])]
            return made if several else made[0]
        if key == "nodes" and isinstance(value, list):
            return tuple(value)
        if key == "plugins":
            names = value if isinstance(value, list) else [value]
            if not all(isinstance(each, str) for each in names):
                raise ConfigError(f'{self.where} plugins: {value!r} are not names; write plugins = ["joblib"]')
            return [registry.load(registry.PLUGINS, each)() for each in names]
        if key == "worker":
            return self._made(Worker, value, key)
        if key == "image":
            return self._image(value)
        if key in ("volume", "volumes"):
            mounts = _table(value, f"{self.where} {key}")
            return [LocalVolume(path, self._path(source)) for path, source in mounts.items()]
        return self._path(value) if key == "resume" else value

    def _provider(self, value: object) -> object:
        if isinstance(value, str):
            return registry.provider(value)
        settings = dict(_table(value, f"{self.where} provider"))
        if not isinstance(name := settings.pop("name", None), str):
            raise ConfigError(f'{self.where} provider: {value!r} has no name; write {{name = "aws", ...}}')
        return registry.provider(name, settings)

    def _image(self, value: object) -> Image:
        settings = dict(_table(value, f"{self.where} image"))
        for key in ("local", "env_from"):
            if isinstance(settings.get(key), list):
                settings[key] = [self._path(each) if self._is_here(each) else each for each in settings[key]]
        if "requirements" in settings:
            settings["requirements"] = self._path(settings["requirements"])
        made: Image = self._made(Image, settings, "image")
        return made

    def _made(self, kind: Callable[..., Any], value: object, key: str) -> Any:
        settings = _table(value, f"{self.where} {key}")
        self._check(settings, list(inspect.signature(kind).parameters), f" {key}")
        return kind(**settings)

    def _is_here(self, text: object) -> bool:
        return isinstance(text, str) and (self.folder / text).exists()

    def _path(self, text: Any) -> Any:
        return str(self.folder / Path(text).expanduser()) if isinstance(text, str) else text

    def _check(self, given: Iterable[str], known: list[str], inside: str) -> None:
        for key in given:
            if key not in known:
                close = difflib.get_close_matches(key, known, 1)
                advice = f"did you mean {close[0]}?" if close else f"there are: {', '.join(known)}"
                raise ConfigError(f"{self.where}{inside}: unknown key {key!r}; {advice}")
