"""Reads and checks requirements on the driver, before any machine is rented.

pip's own format is kept, line by line, with hashes and markers. Files are read here, since nodes do not have them. What
can't work on nodes is an error that says why: paths, editable installs, versions that conflict with what nodes need.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skyward.core.errors import ConfigError

__all__ = ["NEEDED", "Wanted", "check", "has_hash", "programs", "read"]

# What skyward.worker imports, installed in the driver's versions; plugins add what their tasks need.
NEEDED = ("cloudpickle", "msgpack", "xxhash", "zstandard")

_NAME = r"([A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?)\s*(?:\[[\w\s,.-]*\])?"
_CLAUSE = r"(?:===?|~=|!=|<=?|>=?)\s*[\w.*+!-]+"
_CLAUSES = rf"{_CLAUSE}(?:\s*,\s*{_CLAUSE})*\s*,?"
_VERSIONED = re.compile(rf"{_NAME}\s*(?:\(\s*({_CLAUSES})?\s*\)|({_CLAUSES}))?\s*(?:;.*)?", re.ASCII)
_AT_URL = re.compile(rf"{_NAME}\s*@\s*(\S+)\s*(?:;.*)?", re.ASCII)
_URL = re.compile(r"(?:(git|hg|svn|bzr)\+)?([a-z][a-z0-9+.-]*)://\S+", re.IGNORECASE)
_ARCHIVE = re.compile(r"\.(?:whl|zip|tar\.(?:gz|bz2|xz)|tgz)$", re.IGNORECASE)
_OPTION = re.compile(r"\s--?[A-Za-z]")  # after a requirement
_OF_ONE = ("--hash", "--config-settings", "--config-setting", "--global-option")
_OF_FILES = ("-r", "--requirement", "-c", "--constraint", "-i", "--index-url", "--extra-index-url")
_PASSED = ("--pre", "--prefer-binary", "--no-binary", "--only-binary", "--require-hashes", "--no-index")
_COMMENT = re.compile(r"(?:^|\s+)#.*$")
_VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)\}")
_RELEASE = re.compile(r"\d+(?:\.\d+)*")
_INSTEAD = (
    "Give a version from a package index (index= sets which), or the URL of an archive or a repository (https://..., "
    "git+https://...)"
)


@dataclass(slots=True)
class Wanted:
    """What a file asks for."""

    pip: list[str] = field(default_factory=list)
    constraints: list[str] = field(default_factory=list)
    index: str | None = None
    extra_index: list[str] = field(default_factory=list)


def read(path: str | os.PathLike[str]) -> Wanted:
    """Read a requirements file with the files it includes, a lock file, or the dependencies in a ``pyproject.toml``.

    Raises
    ------
    ConfigError
        The file can't be read, or a line can't be used; the message says which, and why.
    """
    wanted = Wanted()
    file = Path(path)
    if file.suffix in (".lock", ".yml", ".yaml") or re.fullmatch(r"pylock(\..+)?\.toml", file.name):
        wanted.pip += _of_lock(file)
    elif file.suffix == ".toml":
        wanted.pip += _of_project(file)
    else:
        _read(file, wanted, ())
    return wanted


def _of_lock(file: Path) -> list[str]:
    from skyward.core import lock_files  # noqa: PLC0415 - 4 MB that only projects with a lock file need

    where = f"Image requirements: {file}"
    if file.suffix in (".yml", ".yaml"):
        lines = lock_files.of_conda(_text(file), where)
    else:
        read = lock_files.of_uv if file.suffix == ".lock" else lock_files.of_pylock
        try:
            lines = read(_toml(file), where)
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{where} can't be read as a lock file: {error!r} is missing or wrong") from error
    return [check(line, f"{where}: {line!r}") for line in lines]


def _toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_text(file))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"Image requirements: {file} is not valid TOML: {error}") from error


def _of_project(file: Path) -> list[str]:
    project = _toml(file).get("project", {})
    found = project.get("dependencies")
    if not isinstance(found, list) or not all(isinstance(line, str) for line in found):
        raise ConfigError(f"Image requirements: {file} has no list of dependencies under [project]")
    return [check(line, f"{file}: {line!r}") for line in found]


def _read(file: Path, wanted: Wanted, outer: tuple[Path, ...]) -> None:
    if file.resolve() in outer:
        raise ConfigError(f"Image requirements: {file} includes itself")
    for number, line in _lines(_text(file)):
        where = f"Image requirements: {file}, line {number}: {line!r}"
        name, value = _option(line)
        if name not in _OF_FILES:
            wanted.pip.append(check(line, where))
        elif name in ("-i", "--index-url"):
            wanted.index = value
        elif name == "--extra-index-url":
            wanted.extra_index.append(value)
        elif "://" in value:
            raise ConfigError(f"{where}: a URL can't be included; download the file, and give its path")
        elif name in ("-r", "--requirement"):
            _read(file.parent / value, wanted, (*outer, file.resolve()))
        else:
            other = Wanted()
            _read(file.parent / value, other, (*outer, file.resolve()))
            wanted.constraints += [*other.pip, *other.constraints]


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Image requirements: {file} can't be read: {error}") from error


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Logical lines with their numbers: continuations joined, comments removed, environment variables expanded."""
    begun, parts = 1, ""
    for number, line in enumerate([*text.splitlines(), ""], 1):
        begun = begun if parts else number
        if line.endswith("\\") and not line.lstrip().startswith("#"):
            parts += f"{line[:-1]} "
            continue
        whole = " ".join(_COMMENT.sub("", parts + line).split())
        parts = ""
        if whole:
            yield begun, _VARIABLE.sub(lambda match: os.environ.get(match[1], match[0]), whole)


def _option(line: str) -> tuple[str, str]:
    """Name and value of an option; both empty for a requirement."""
    if not line.startswith("-"):
        return "", ""
    name, _, value = re.sub(r"^(-[a-z])(?=[^\s=])", r"\1 ", line).replace("=", " ", 1).partition(" ")
    return name, value.strip().strip("'\"")


def check(line: str, where: str) -> str:
    """Check one requirement, and return it as nodes can use it.

    Raises
    ------
    ConfigError
        Nodes can't use it; the message starts with `where` and says what to do.
    """
    line = line.strip()
    if "\n" in line or "\r" in line:
        raise ConfigError(f"{where} contains a line break; give each requirement separately")
    name, value = _option(line)
    if name:
        _check_option(name, value, where)
        return line
    found = _OPTION.search(line)
    options = line[found.start() :].split() if found else []
    for option in options:
        if option.startswith("-") and option.partition("=")[0] not in _OF_ONE:
            raise ConfigError(f"{where}: {option} is not an option of a requirement")
    _check_requirement(line[: found.start()] if found else line, where)
    return line


def _check_option(name: str, value: str, where: str) -> None:
    if name in ("-r", "--requirement"):
        raise ConfigError(
            f"{where}: nodes do not have that file. Use Image(requirements={value!r}), which reads it here"
        )
    if name in ("-c", "--constraint"):
        raise ConfigError(f"{where}: nodes do not have that file. Pass its lines as Image(constraints=[...])")
    if name in ("-e", "--editable"):
        raise ConfigError(f"{where}: nodes do not have the folder of an editable install. {_INSTEAD}")
    if name in ("-i", "--index-url", "--extra-index-url"):
        raise ConfigError(f"{where}: pass the URL as Image(index=...) or Image(extra_index=[...])")
    if name in ("-f", "--find-links"):
        if not value.startswith(("http://", "https://")):
            raise ConfigError(f"{where}: nodes do not have that folder. {_INSTEAD}")
    elif name not in _PASSED:
        raise ConfigError(f"{where}: the option {name} is not supported in requirements")


def _check_requirement(text: str, where: str) -> None:
    at = _AT_URL.fullmatch(text.strip())
    address = at[2] if at else text.strip()
    url = _URL.match(address)
    if url and url[2].lower() != "file":
        return
    versioned = None if at else _VERSIONED.fullmatch(text.strip())
    if versioned is not None and not _ARCHIVE.search(versioned[1]):
        _check_needed(versioned[1], versioned[2] or versioned[3] or "", where)
    elif url or at or address.startswith((".", "/", "~")) or "/" in address or _ARCHIVE.search(address):
        raise ConfigError(f"{where}: nodes do not have the files of this machine. {_INSTEAD}")
    else:
        raise ConfigError(f'{where} is not a requirement; use, for example, "pandas" or "pandas>=2,<3"')


def _check_needed(name: str, clauses: str, where: str) -> None:
    """Check a version of a package that nodes need in the same version as this process, to communicate with it."""
    needed = re.sub(r"[-_.]+", "-", name).lower()
    if needed not in NEEDED or not clauses:
        return
    from importlib import metadata  # noqa: PLC0415 - 3 MB, rarely needed

    here = metadata.version(needed)
    if not all(_admits(clause.strip(), here) for clause in clauses.split(",") if clause.strip()):
        raise ConfigError(
            f"{where}: nodes need {needed} {here}, the version on this machine, to understand what is sent to them. "
            "Leave it out, or install the other version here too"
        )


def _admits(clause: str, version: str) -> bool:
    """Whether a version clause admits a version; anything but plain numbers is left to pip."""
    match = re.fullmatch(r"(===?|~=|!=|<=?|>=?)\s*(\S+?)(\.\*)?", clause)
    if match is None or not (_RELEASE.fullmatch(match[2]) and _RELEASE.fullmatch(version)):
        return True
    wanted, has = _release(match[2]), _release(version)
    length = max(len(wanted), len(has))
    full, padded = wanted + (0,) * (length - len(wanted)), has + (0,) * (length - len(has))
    equal = padded[: len(wanted)] == wanted if match[3] else full == padded
    return {
        "==": equal,
        "===": match[2] == version,
        "!=": not equal,
        "<": padded < full,
        "<=": padded <= full,
        ">": padded > full,
        ">=": padded >= full,
        "~=": padded >= full and padded[: len(wanted) - 1] == wanted[:-1],
    }[match[1]]


def _release(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def has_hash(line: str) -> bool:
    """Whether this line makes pip check hashes, of this requirement and all others installed with it."""
    return " --hash" in line or line.startswith("--require-hashes")


def programs(lines: Iterable[str]) -> dict[str, str]:
    """Programs that nodes need to fetch these, such as git, each with the first line that needs it."""
    found: dict[str, str] = {}
    for line in lines:
        match = re.search(r"(?:^|[@\s])(git|hg|svn|bzr)\+", line)
        if match:
            found.setdefault(match[1], line)
    return found
