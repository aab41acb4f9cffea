"""Links from places to folders; that sudo makes them on machines of clouds is tested there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from skyward.worker.place_links import link, unlink


def test_a_link_replaces_another_and_goes_only_while_it_is_ours(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "data"
    link(str(place), "/first")
    link(str(place), "/second")
    assert os.readlink(place) == "/second"  # noqa: PTH115
    assert [path.name for path in place.parent.iterdir()] == ["data"]
    unlink(str(place), "/first")
    assert place.is_symlink()
    unlink(str(place), "/second")
    unlink(str(place), "/second")
    assert not place.is_symlink()


def test_whoever_may_not_make_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody may there."""
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(PermissionError, match="no passwordless sudo") as caught:
        link("/sys/skyward-data", "/target")
    assert caught.value.filename == "/sys/skyward-data"
