"""What nodes would get for a program, without running it and without a pool: ``skyward doctor --image script.py``."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import NamedTuple

from skyward.core.blobs.snapshots import Snapshots
from skyward.core.code.local_code import CodeSettings, LocalCode
from skyward.core.errors import SkywardError
from skyward.core.image import Image
from skyward.core.packages.planner import PackagePlan

__all__ = ["Item", "items"]

_CODE, _PACKAGES = "your own code", "packages"


class Item(NamedTuple):
    """A module, a distribution, or what is wrong with them: then `ok` is False."""

    where: str
    what: str
    ok: bool
    detail: str


def items(script: Path) -> list[Item]:
    """List what nodes that do not share this machine's files would get.

    Parameters
    ----------
    script
        The program. Modules whose names it builds at run time, and what its pool's `Image` names, are not detected.
    """
    main = types.ModuleType("__main__")
    main.__file__ = str(script.resolve())
    sys.modules["__main__"] = main
    sys.path.insert(0, str(script.resolve().parent))
    return [*_code(), *_packages(main)]


def _code() -> list[Item]:
    code = LocalCode(Snapshots(), CodeSettings(sent=True))
    try:
        code.now(look=True)
    except SkywardError as error:
        return [Item(_CODE, "error", False, str(error))]
    found = [
        Item(_CODE, name, True, f"{size:,} bytes from {place}, since {reason}")
        for name, place, size, reason in code.reasons()
    ]
    broken = [Item(_CODE, "warning", False, text) for text in code.warnings]
    return [*found, Item(_CODE, "total", True, code.summary or "nothing"), *broken]


def _packages(main: types.ModuleType) -> list[Item]:
    try:
        plan = PackagePlan(Image(), main)
    except SkywardError as error:
        return [Item(_PACKAGES, "error", False, str(error))]
    return [
        Item(_PACKAGES, "imported", True, ", ".join(plan.names) or "none"),
        Item(_PACKAGES, "including dependencies", True, f"{len(plan.closure.exact)} distributions"),
    ]
