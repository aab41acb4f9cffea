"""Gives slots the owner's time zone and locale instead of the node's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from skyward.core.system.conventions import LOCALE, RULE

__all__ = ["environment"]

_ZONES = "/usr/share/zoneinfo"


def environment(variables: Mapping[str, str], conventions: Mapping[str, str]) -> dict[str, str]:
    """Return a node's variables with the owner's conventions.

    A locale that the node does not have stays as it is named: code that asks for it gets an error, not another locale.

    Parameters
    ----------
    variables
        The node's own.
    conventions
        The owner's, as `core.system.conventions` returns them; none to change nothing.
    """
    if not conventions:
        return dict(variables)
    kept = {name: value for name, value in variables.items() if not name.startswith(LOCALE)}
    found = {name: value for name, value in conventions.items() if name != RULE}
    zone = found["TZ"]
    if "/" in zone and not zone.startswith(":") and not Path(os.environ.get("TZDIR") or _ZONES, zone).is_file():
        found["TZ"] = conventions[RULE]  # without its file, the C library would take UTC and say nothing
    return {**kept, **found}
