"""Slots have the owner's time zone and locale, as far as their node can."""

from __future__ import annotations

import pytest

from skyward.core.system.conventions import RULE
from skyward.worker.conventions import environment

NODE = {"LANG": "C", "LC_ALL": "POSIX", "TZ": "UTC", "PATH": "/bin"}


def test_without_any_the_node_keeps_its_own() -> None:
    assert environment(NODE, {}) == NODE


def test_the_owners_replace_the_nodes() -> None:
    """Also by their absence."""
    found = environment(NODE, {"LANG": "de_DE.UTF-8", "TZ": "JST-9", RULE: "JST-9"})
    assert found == {"LANG": "de_DE.UTF-8", "TZ": "JST-9", "PATH": "/bin"}


def test_a_node_without_the_zone_gets_its_rule(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZDIR", str(tmp_path))
    zone = {"TZ": "Europe/Berlin", RULE: "CET-1CEST,M3.5.0,M10.5.0/3"}
    assert environment(NODE, zone)["TZ"] == "CET-1CEST,M3.5.0,M10.5.0/3"
    folder = tmp_path / "Europe"  # type: ignore[operator]
    folder.mkdir()
    (folder / "Berlin").touch()
    assert environment(NODE, zone)["TZ"] == "Europe/Berlin"
