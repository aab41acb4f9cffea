"""Distributions and the modules they have, from metadata folders."""

from __future__ import annotations

import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from skyward.core.packages.installed import Distribution, Installed
from tests.core.packages.fabricated import install


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of distributions on ``sys.path``."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def read(site: Path) -> Installed:
    return Installed([str(site)])


def test_names_versions_and_requirements(site: Path) -> None:
    """As the metadata has them, under normalized names."""
    install(site, "Some.Package", "1.2", requires=["base>1"])
    assert dict(read(site)) == {"some-package": Distribution("Some.Package", "1.2", ("base>1",))}


def test_owners(site: Path) -> None:
    """Of packages, single modules and compiled ones; not of Python's modules, or of unknown ones."""
    install(
        site, "one", modules=["first/__init__.py", "first/sub/deep.py", "single.py", f"fast{EXTENSION_SUFFIXES[0]}"]
    )
    owners = read(site).owners
    assert owners("first") == owners("first.sub.deep") == owners("first.Name") == owners("single") == ["one"]
    assert owners("fast") == ["one"]
    assert owners("json") == owners("unknown") == []


def test_owners_in_a_namespace(site: Path) -> None:
    """Those that have the module; all of them for the namespace itself."""
    install(site, "space-a", modules=["space/cloud/a/__init__.py"])
    install(site, "space-b", modules=["space/cloud/b.py"])
    owners = read(site).owners
    assert owners("space.cloud.a.Thing") == ["space-a"]
    assert owners("space.cloud.b") == ["space-b"]
    assert sorted(owners("space.cloud")) == sorted(owners("space")) == ["space-a", "space-b"]


def test_a_module_of_the_users_own_hides_a_distributions(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that Python would import counts."""
    install(site, "helpful", modules=["helpers_of_mine.py"])
    assert read(site).owners("helpers_of_mine") == ["helpful"]
    (tmp_path / "helpers_of_mine.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert read(site).owners("helpers_of_mine") == []


def test_where_it_came_from(site: Path, tmp_path: Path) -> None:
    """A URL, the folder of an editable project, or an index."""
    project = tmp_path / "my project"
    (project / "src").mkdir(parents=True)
    install(site, "mine", origin={"url": f"file://{tmp_path}/my%20project", "dir_info": {"editable": True}})
    install(site, "forked", origin={"url": "https://host/x.git", "vcs_info": {"vcs": "git", "commit_id": "0"}})
    install(site, "usual")
    installed = read(site)
    assert installed["mine"].editable == str(project)
    assert (installed["forked"].url, installed["forked"].editable) == ("https://host/x.git", "")
    assert (installed["usual"].url, installed["usual"].editable) == ("", "")
    assert installed.editable_owner(str(project / "src/mine.py")) == "mine"
    assert installed.editable_owner(str(tmp_path / "other.py")) is None


def test_whose_a_file_is(site: Path, tmp_path: Path) -> None:
    """Python's, a distribution's, or the user's own."""
    install(site, "one", modules=["first/__init__.py"])
    is_local = read(site).is_local
    assert is_local(str(tmp_path / "mine.py"))
    assert not is_local(str(site / "first/__init__.py"))
    assert not is_local(str(sys.modules["json"].__file__))
    (ours,) = sys.modules["skyward"].__path__
    assert not is_local(ours), "the folder itself, where we are worked on"


def test_a_project_with_its_metadata_beside_it_is_editable(tmp_path: Path) -> None:
    """As ``setup.py develop`` leaves it: its files are still the user's own."""
    info = tmp_path / "old.egg-info"
    info.mkdir()
    (info / "PKG-INFO").write_text("Metadata-Version: 1.0\nName: old\nVersion: 0.1\n")
    installed = Installed([str(tmp_path)])
    assert installed["old"].editable == str(tmp_path)
    assert installed.is_local(str(tmp_path / "old.py"))


@pytest.mark.parametrize("metadata", ["", "Name: broken\n", "\xff"])
def test_leftovers_are_passed_over(site: Path, metadata: str) -> None:
    """A folder without name and version is no distribution."""
    info = install(site, "broken", "")
    (info / "METADATA").write_text(metadata, encoding="latin-1")
    (info / "direct_url.json").write_text("{")
    assert dict(read(site)) == {}
