"""The driver's time zone and locale, as environment variables for tasks elsewhere."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

__all__ = ["LOCALE", "RULE", "conventions"]

LOCALE = ("LANG", "LANGUAGE", "LC_")
"""How the names of variables of the locale begin."""

RULE = "rule"
"""Not a variable: the time zone as a rule, such as ``CET-1CEST,M3.5.0,M10.5.0/3``, for nodes without a database."""

_ZONES = "zoneinfo/"


def conventions(variables: Mapping[str, str], root: str = "/") -> dict[str, str]:
    """Return the variables that matter, and the time zone's rule.

    Parameters
    ----------
    variables
        The driver's.
    root
        Folder of the system's files.
    """
    found = {name: value for name, value in variables.items() if name.startswith(LOCALE)}
    zone, rule = variables.get("TZ", ""), ""
    if not zone:
        file = Path(root, "etc/localtime")
        rule = _rule(file)
        zone = _name(file, Path(root, "etc/timezone")) or rule or "UTC"
    return {**found, "TZ": zone, RULE: rule or zone}


def _name(file: Path, text: Path) -> str:
    """The zone's name: where the system's link leads, or what Debian writes down."""
    try:
        target = os.path.realpath(file)
        if _ZONES in target:
            return target.rpartition(_ZONES)[2].removeprefix("posix/").removeprefix("right/")
        return text.read_text("ascii").strip()
    except (OSError, ValueError):
        return ""


def _rule(file: Path) -> str:
    """The rule at the end of a compiled time zone (RFC 9636)."""
    try:
        data = file.read_bytes()
    except OSError:
        return ""
    if not data.startswith(b"TZif") or data[4:5] < b"2":
        return ""
    return data.rstrip(b"\n").rpartition(b"\n")[2].decode("ascii", "replace")
