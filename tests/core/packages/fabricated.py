"""Fabricated distributions: real metadata folders, as installers leave them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

__all__ = ["install"]


def install(
    site: Path,
    name: str,
    version: str = "1.0",
    *,
    modules: Sequence[str] = (),
    requires: Sequence[str] = (),
    origin: dict[str, object] | None = None,
) -> Path:
    """Install a distribution of empty modules (``"pkg/__init__.py"``) in a folder; returns its metadata folder."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {r}" for r in requires),
    ]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    for module in modules:
        file = site / module
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    (info / "INSTALLER").write_text("test\n")
    record = [*modules, f"{info.name}/WHEEL", f"{info.name}/INSTALLER", f"{info.name}/METADATA", f"{info.name}/RECORD"]
    if origin is not None:
        (info / "direct_url.json").write_text(json.dumps(origin))
        record.append(f"{info.name}/direct_url.json")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in record))
    return info
