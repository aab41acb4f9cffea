"""Variables of the driver that tasks get by name: `Image(env_from=[...])`. No others are sent.

An item is the name of a variable, a pattern of names, or the path of a file of ``NAME=value`` lines. Programs disagree
on the syntax of such files: only what all of them read alike is accepted, and anything else is an error, not a guess.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from skyward.core.errors import ConfigError

__all__ = ["parse_lines", "read"]

_PATTERN = re.compile(r"[A-Za-z_][\w*?]*", re.ASCII)
_LINE = re.compile(r"(?:export\s+)?([A-Za-z_]\w*)\s*=\s*(.*)", re.ASCII)
_DOUBLE = re.compile(r'"((?:[^"\\]|\\.)*)"\s*(?:#.*)?')
_SINGLE = re.compile(r"'([^']*)'\s*(?:#.*)?")
_PLAIN = re.compile(r"([^\s'\"#][^'\"]*?)?(?:(?:^|\s+)#.*)?\s*")
_ESCAPE = re.compile(r"\\(.)")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\", "$": "$"}


def read(items: Sequence[str], variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the items name; later items override earlier ones.

    Parameters
    ----------
    items
        Names, patterns and files.
    variables
        The driver's.

    Raises
    ------
    ConfigError
        An item matches nothing, or a file can't be read; the message names the closest match, and never shows values.
    """
    found: dict[str, str] = {}
    for item in items:
        if _is_file(item):
            found.update(_read_file(item))
        else:
            found.update(_matching(item, variables))
    return found


def _is_file(item: str) -> bool:
    return "/" in item or item.startswith(".") or item.endswith(".env")


def _matching(item: str, variables: Mapping[str, str]) -> dict[str, str]:
    if not _PATTERN.fullmatch(item):
        raise ConfigError(
            f'Image env_from: {item!r} is neither a name such as "CHURN_URL", nor a pattern that begins with letters, '
            'such as "CHURN_*", nor a file such as ".env"'
        )
    names = [name for name in variables if fnmatch.fnmatchcase(name, item)]
    if not names:
        kind = "no variable is set that matches" if {"*", "?"} & set(item) else "no variable is set whose name is"
        raise ConfigError(f"Image env_from: {kind} {item!r}{_nearest(item, variables)}")
    return {name: variables[name] for name in names}


def _nearest(item: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(item.rstrip("*?"), list(names), 1, 0.5)
    return f"; the nearest is {near[0]!r}" if near else ""


def _read_file(item: str) -> dict[str, str]:
    path = Path(item)
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError as error:
        folder = path.absolute().parent
        there = [each.name for each in folder.iterdir()] if folder.is_dir() else []
        raise ConfigError(
            f"Image env_from: there is no file {item!r} in {folder}{_nearest(path.name, there)}"
        ) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"Image env_from: {item!r} can't be read: {reason}") from error
    return parse_lines(text, item)


def parse_lines(text: str, name: str) -> dict[str, str]:
    r"""Parse lines of ``NAME=value``.

    A line may begin with ``export``. A value may be in single quotes, which keep it as it is, or in double quotes, in
    which ``\n``, ``\t``, ``\"``, ``\\`` and ``\$`` stand for what they do in a shell. ``#`` begins a comment.

    Raises
    ------
    ConfigError
        A line is something else, or refers to another variable; the message has the number of the line.
    """
    found = {}
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        content = line.strip()
        if not content or content.startswith("#"):
            continue
        match = _LINE.fullmatch(content)
        if match is None:
            raise ConfigError(f"Image env_from: {name}, line {number}: not NAME=value")
        found[match[1]] = _value(match[2], f"Image env_from: {name}, line {number}: {match[1]}")
    return found


def _value(text: str, where: str) -> str:
    if single := _SINGLE.fullmatch(text):
        return single[1]
    double = _DOUBLE.fullmatch(text)
    plain = None if double else _PLAIN.fullmatch(text)
    if double is None and plain is None:
        raise ConfigError(f"{where}: quotes that don't match; a value must be on one line")
    value = double[1] if double is not None else (plain[1] or "" if plain is not None else "")
    if re.search(r"(?<!\\)\$[\w{(]", value, re.ASCII):
        raise ConfigError(
            f"{where}: it refers to another variable, which programs expand differently; write the value itself, or "
            "put it in single quotes to keep it as it is"
        )
    if double is None:
        return value
    unknown = {letter for letter in _ESCAPE.findall(value) if letter not in _ESCAPES}
    if unknown:
        raise ConfigError(f"{where}: \\{min(unknown)} is not an escape sequence; write \\\\ for a backslash")
    return _ESCAPE.sub(lambda match: _ESCAPES[match[1]], value)
