"""The table of our own parts is what pyproject.toml says."""

from __future__ import annotations

import tomllib
from importlib.metadata import entry_points
from pathlib import Path

from skyward.core.builtins_table import OURS

REPOSITORY = Path(__file__).resolve().parents[2]


def test_entry_points_are_those_of_the_registry() -> None:
    """pyproject.toml, the table and the installed package agree."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"] == OURS
    for group, written in OURS.items():
        installed = {entry.name: entry.value for entry in entry_points(group=group)}
        assert not installed or written.items() <= installed.items(), "install again: the metadata is old"
