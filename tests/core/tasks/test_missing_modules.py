"""Advice for a module that a node lacks: checked against what the driver has."""

from __future__ import annotations

import importlib.metadata
import sys
import sysconfig
import types
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec

import pytest

from skyward.core.tasks import missing_modules


@pytest.fixture(autouse=True)
def _fresh():
    yield
    missing_modules.advice.cache_clear()


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder where packages can be installed."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(module, package="", version="1.5", url=None):
        (tmp_path / f"{module}.py").write_text("")
        if package:
            info = tmp_path / f"{package.replace('-', '_')}-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
            (info / "RECORD").write_text(f"{module}.py,,\n")
            if url:
                (info / "direct_url.json").write_text(f'{{"url": "{url}"}}')
        missing_modules.advice.cache_clear()
        return str(tmp_path / f"{module}.py")

    return install


def test_a_package_is_named_with_its_version(site):
    site("strange_module", "its-package")
    assert 'sky.Image(pip=["its-package==1.5"])' in missing_modules.advice("strange_module", here=False)
    version = importlib.metadata.version("pytest")
    assert f'sky.Image(pip=["pytest=={version}"])' in missing_modules.advice("pytest", here=False)


def test_a_part_that_another_version_lacks(site, tmp_path):
    site("strange_module", "its-package")
    (tmp_path / "strange_module.py").unlink()
    (tmp_path / "strange_module/part").mkdir(parents=True)
    for file in ("__init__.py", "part/__init__.py", "part/of_it.py"):
        (tmp_path / "strange_module" / file).write_text("raise SystemExit('imported to be advised')")
    for module in ("strange_module.part", "strange_module.part.of_it"):
        advice = missing_modules.advice(module, here=False)
        assert "differs from the one here" in advice
        assert "its-package==1.5" in advice


def test_a_part_that_only_a_finder_of_its_own_knows(site, tmp_path, monkeypatch):
    """As packages have that are compiled where they are worked on."""
    site("strange_module", "its-package")
    (tmp_path / "strange_module.py").unlink()
    (tmp_path / "strange_module").mkdir()
    (tmp_path / "strange_module/__init__.py").write_text("")

    class Finder:
        @staticmethod
        def find_spec(name, _path, _target=None):
            return ModuleSpec(name, None) if name == "strange_module.part" else None

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    assert "differs from the one here" in missing_modules.advice("strange_module.part", here=False)


@pytest.mark.parametrize("here", [True, False])
def test_a_part_that_is_nowhere(site, here):
    """The same package again would not have it, and no folder on sys.path does."""
    site("strange_module", "its-package")
    for module in ("strange_module.part", "json_of_nobody.part", "pytest.part", "importlib_metadata.a.b"):
        assert "its-package" not in missing_modules.advice(module, here=here)
    for module in ("strange_module.part", "pytest.part", "pytest.part.of_it"):
        assert "no such submodule either" in missing_modules.advice(module, here=here)


@pytest.mark.slow
def test_a_module_of_the_users_own_is_never_asked_of_an_index(site):
    for path in (site("helpers"), site("worked_on", "worked-on", url="file:///home/me/worked-on")):
        name = path.rpartition("/")[2].removesuffix(".py")
        advice = missing_modules.advice(name, here=False)
        assert path in advice
        assert f"sky.Image(local=['{name}'])" in advice
        assert "pip" not in advice


def test_a_compiled_module_of_the_users_own(site, monkeypatch):
    """Nodes have got it, and can't load it."""
    path = site("worked_on_too")
    module = types.ModuleType("worked_on_too")
    module.__file__ = path.replace(".py", EXTENSION_SUFFIXES[0])
    module.__spec__ = ModuleSpec("worked_on_too", None, origin=module.__file__)
    monkeypatch.setitem(sys.modules, "worked_on_too", module)
    advice = missing_modules.advice("worked_on_too", here=False)
    assert f"compiled for {sysconfig.get_platform()}" in advice
    assert module.__file__ in advice


def test_a_module_that_is_not_here_either_is_not_named():
    advice = missing_modules.advice("helpers_of_nobody", here=False)
    assert "helpers_of_nobody" not in advice
    assert "sky.Image(pip=[...])" in advice
    assert "no such module" in missing_modules.advice("helpers_of_nobody", here=True)


def test_one_in_memory_only(monkeypatch):
    monkeypatch.setitem(sys.modules, "made_by_hand", types.ModuleType("made_by_hand"))
    assert "memory" in missing_modules.advice("made_by_hand", here=False)
    assert "register_pickle_by_value(made_by_hand)" in missing_modules.advice("made_by_hand", here=False)


def test_a_part_of_python():
    assert "part of Python" in missing_modules.advice("tkinter.ttk", here=False)


def test_on_this_machine(site):
    path = site("helpers")
    assert path in missing_modules.advice("helpers", here=True)
    assert "pip" not in missing_modules.advice("helpers", here=True)


@pytest.mark.parametrize("module", ["", ".", "a b", "x\x1b[2J", "https://x", "-e."])
def test_what_can_be_no_module_is_not_looked_for(module):
    assert missing_modules.advice(module, here=False) == "The node reports an invalid module name"
