"""Resume files: identities of calls, what is stored, and what is taken."""

from __future__ import annotations

from pathlib import Path

__all__ = ["names"]


def names(folder: str | Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in Path(folder).iterdir())
