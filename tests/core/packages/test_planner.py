"""What nodes install for a program."""

from __future__ import annotations

import platform
import types
from dataclasses import replace
from pathlib import Path

import pytest

from skyward.core.errors import ConfigError
from skyward.core.image import Image
from skyward.core.packages.installed import Installed
from skyward.core.packages.planner import PackagePlan
from tests.core.packages.fabricated import install

NEEDED = ["cloudpickle", "msgpack", "xxhash", "zstandard"]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    """An environment with a program, what it uses, and tools beside it."""
    site = tmp_path / "site-packages"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    for name in (*NEEDED, "pip", "pytest", "setuptools"):
        install(site, name, "3.0")
    install(site, "skyward-cloud", "0.1", requires=["rich"])
    install(site, "rich", "15.0")
    install(site, "made-up", "1.5", modules=["made_up/__init__.py"], requires=["base-of-it"])
    install(site, "base-of-it", "2.0", modules=["base_of_it.py"])
    install(site, "other", "1.0", modules=["other_thing/__init__.py"])
    return Installed([str(site)])


@pytest.fixture
def main(tmp_path: Path) -> types.ModuleType:
    """A script that uses one of them."""
    script = types.ModuleType("__main__")
    script.__file__ = str(tmp_path / "script.py")
    Path(script.__file__).write_text("import made_up, pytest\n")
    return script


def exact(image: Image, main: types.ModuleType, installed: Installed) -> list[str]:
    found = PackagePlan(image, main, installed).lists.exact
    return [line for line in found if line.partition("==")[0] not in NEEDED]


def test_what_the_script_imports(main: types.ModuleType, installed: Installed) -> None:
    """With dependencies and with what nodes need themselves; not the tools that run scripts, nor us."""
    lists = PackagePlan(Image(), main, installed).lists
    assert lists.exact == tuple(sorted(["base-of-it==2.0", "made-up==1.5", *(f"{name}==3.0" for name in NEEDED)]))
    assert lists.resolved == ()
    assert PackagePlan(Image(), main, installed).summary == "2 packages"
    assert PackagePlan(Image(pip=["other>7"]), main, installed).summary == "3 packages"
    assert lists.driver == f"{platform.system()} {platform.machine()}"


def test_what_the_image_names(main: types.ModuleType, installed: Installed) -> None:
    """In the driver's version, where that fits; what is loaded ahead, too."""
    assert "other==1.0" in exact(Image(pip=["other"]), main, installed)
    assert "other==1.0" in exact(Image(preload=["other_thing"]), main, installed)
    assert PackagePlan(Image(pip=["other>1"]), main, installed).lists.resolved == ("other>1",)


def test_all(main: types.ModuleType, installed: Installed) -> None:
    """Everything but installers and ourselves."""
    everything = ["base-of-it==2.0", "made-up==1.5", "other==1.0", "pytest==3.0", "rich==15.0"]
    assert exact(Image(sync="all"), main, installed) == everything


def test_what_no_index_has_is_sent(
    main: types.ModuleType, tmp_path: Path, installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a wheel, whether the script imports it, the image names it, or a call turns out to need it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    site = tmp_path / "site-packages"
    origin: dict[str, object] = {"url": "https://host/forked.git", "vcs_info": {"vcs": "git", "commit_id": "0"}}
    install(site, "forked", "0.2", modules=["forked_thing/__init__.py"], requires=["other"], origin=origin)
    again = Installed([str(site)])
    late = PackagePlan(Image(), main, again).late("forked_thing")
    assert late is not None
    assert (late.exact, [wheel.name for wheel in late.wheels]) == (("other==1.0",), ["forked"])
    for pip in ("forked", "forked @ git+https://host/forked.git@main"):
        lists = PackagePlan(Image(pip=[pip]), main, again).lists
        assert ("other==1.0" in lists.exact, lists.resolved, lists.wheels) == (True, (), late.wheels)
    assert PackagePlan(Image(pip=["forked"]), main, again).summary == "3 packages and 1 of yours that no index has"
    other = "forked @ git+https://elsewhere/forked.git"
    assert PackagePlan(Image(pip=[other]), main, again).lists.resolved == (other,)


def test_a_lock_that_contradicts_this_program(main: types.ModuleType, tmp_path: Path, installed: Installed) -> None:
    """It is refused, with both versions; a lock of something else is not, nor a version that `pip` names."""
    assert PackagePlan(Image(pip=["made-up<1.5"]), main, installed).lists.resolved == ("made-up<1.5",)
    locked = Image(pip=["made_up==1.4 --hash=sha256:00"])
    with pytest.raises(ConfigError, match=r"the file says made_up==1\.4, but this program uses made-up 1\.5"):
        PackagePlan(locked, main, installed)
    file = tmp_path / "requirements.txt"
    file.write_text("made-up<1.5\nother==0.9\n")
    from_file = replace(Image(requirements=file), extra_index=["https://index.example"])  # as plugins change it
    with pytest.raises(ConfigError, match=r"the file says made-up<1\.5, but this program uses made-up 1\.5"):
        PackagePlan(from_file, main, installed)
    other = "other==0.9 --hash=sha256:00"
    assert PackagePlan(Image(pip=[other]), main, installed).lists.resolved == (other,)


def test_what_the_program_only_seems_to_need_can_be_left_out(main: types.ModuleType, installed: Installed) -> None:
    """A package that no index has must not keep a pool from starting that never uses it on nodes."""
    lists = PackagePlan(Image(pip=["other"]), main, installed).lists
    assert "made-up==1.5" in lists.exact
    assert lists.named is not None
    assert {"other==1.0"} <= set(lists.named.exact)
    assert not [line for line in lists.named.exact if line.startswith(("made-up", "base-of-it"))]
    assert PackagePlan(Image(sync="all"), main, installed).lists.named is None
