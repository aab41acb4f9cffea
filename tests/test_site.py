"""What `make docs` adds to Sphinx: the check of a built site, links for names, and other projects' inventories."""

from __future__ import annotations

import importlib
import zlib
from pathlib import Path
from types import ModuleType

import pytest

import skyward
from scripts.check_site import faults
from skyward.core import errors

EXTENSIONS = Path(__file__).resolve().parents[1] / "docs" / "extensions"


def extension(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXTENSIONS)
    return importlib.import_module(name)


def test_faults_of_a_built_site_are_found(tmp_path: Path) -> None:
    assert faults(tmp_path) == [f"there are no pages in {tmp_path}"]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.html").write_text('<h2 id="here">b</h2><a href="../a.html">a</a><a href="#here">b</a>')
    page = tmp_path / "a.html"
    page.write_text('<a href="sub/b.html#here">b</a><a href="https://example.org/#y">x</a><img src="data:image/png,1">')
    assert faults(tmp_path) == []
    page.write_text(
        '<a href="sub/b.html#gone">b</a><a href="c.html">c</a><script src="https://example.org/x"></script>'
    )
    assert faults(tmp_path) == [
        "a.html leads to c.html, which is not there",
        "a.html loads https://example.org/x",
        "a.html leads to sub/b.html#gone, where nothing has that name",
    ]


def test_every_public_name_has_a_page() -> None:
    """The build says so as well, where Sphinx is installed."""
    text = (EXTENSIONS / "reference.py").read_text(encoding="utf-8")
    missing = [name for name in skyward.__all__ if name not in errors.__all__ and f'"{name}"' not in text]
    assert missing == [], "add them to GROUPS in docs/extensions/reference.py"


def test_what_is_no_inventory_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inventories = extension("inventories", monkeypatch)
    for name in ("good", "page"):
        (tmp_path / name).mkdir()
    head = b"# Sphinx inventory version 2\n# Project: good\n# Version: 1\n# compressed\n"
    (tmp_path / "good" / "objects.inv").write_bytes(head + zlib.compress(b"a py:class 1 a.html -\n"))
    (tmp_path / "page" / "objects.inv").write_bytes(b"<html>Log in to this network</html>")
    addresses = {name: f"{(tmp_path / name).as_uri()}/" for name in ("good", "page", "nowhere")}
    monkeypatch.setattr(inventories, "PROJECTS", addresses)
    cache = tmp_path / "cache"
    assert inventories.found(cache) == {"good": (addresses["good"], str(cache / "good.inv"))}
    assert {line.split(":")[0] for line in capsys.readouterr().out.splitlines()} == {"no links into file"}
    (tmp_path / "good" / "objects.inv").unlink()
    assert list(inventories.found(cache)) == ["good"], "it is kept"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("sky.Compute", "skyward.Compute"),
        ("sky.Compute(nodes=2)", "skyward.Compute"),
        ("Worker(concurrency=4)", "skyward.Worker"),
        ("pool.map", "skyward.Compute.map"),
        ("PoolStatus", "skyward.core.status.PoolStatus"),
        ("Twice", None),
        ("map", None),
        ("sky.Nothing", None),
        ("with sky.Compute() as pool:", None),
    ],
)
def test_names_in_code_are_found(text: str, name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sphinx")
    documented = ["Compute", "Compute.map", "Worker", "core.status.PoolStatus", "a.Twice", "b.Twice"]
    objects = dict.fromkeys(f"skyward.{each}" for each in documented)
    assert extension("names", monkeypatch).full_name(text, objects) == name
