"""Time zone and locale of the driver, wherever its system notes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from skyward.core.system.conventions import RULE, conventions

TZIF = b"TZif2" + bytes(39) + b"\nCET-1CEST,M3.5.0,M10.5.0/3\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    zone = tmp_path / "usr/share/zoneinfo/Europe/Berlin"
    zone.parent.mkdir(parents=True)
    zone.write_bytes(TZIF)
    (tmp_path / "etc").mkdir()
    return tmp_path


def test_the_locale_is_what_the_variables_say(root: Path) -> None:
    found = conventions({"LANG": "de_DE.UTF-8", "LC_TIME": "C", "LANGUAGE": "de:en", "LD_PRELOAD": "x"}, str(root))
    assert found == {"LANG": "de_DE.UTF-8", "LC_TIME": "C", "LANGUAGE": "de:en", "TZ": "UTC", RULE: "UTC"}


def test_the_zone_is_where_the_systems_link_leads(root: Path) -> None:
    (root / "etc/localtime").symlink_to("../usr/share/zoneinfo/Europe/Berlin")
    assert conventions({}, str(root)) == {"TZ": "Europe/Berlin", RULE: "CET-1CEST,M3.5.0,M10.5.0/3"}


def test_a_copy_has_its_name_beside_it_or_none(root: Path) -> None:
    (root / "etc/localtime").write_bytes(TZIF)
    assert conventions({}, str(root))["TZ"] == "CET-1CEST,M3.5.0,M10.5.0/3"
    (root / "etc/timezone").write_text("Europe/Berlin\n")
    assert conventions({}, str(root))["TZ"] == "Europe/Berlin"


def test_a_variable_wins(root: Path) -> None:
    (root / "etc/localtime").symlink_to("../usr/share/zoneinfo/Europe/Berlin")
    assert conventions({"TZ": "Asia/Tokyo"}, str(root)) == {"TZ": "Asia/Tokyo", RULE: "Asia/Tokyo"}


def test_a_system_without_any_is_in_utc(root: Path) -> None:
    (root / "etc/localtime").write_bytes(b"TZif1 of long ago")
    assert conventions({}, str(root)) == {"TZ": "UTC", RULE: "UTC"}
