"""Which modules of a program are its own, and why nodes get them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from skyward.core.code.survey import CodeSurvey, Unit, is_own, places, program_imports, program_state
from skyward.core.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on sys.path; modules that a test imports are forgotten after it."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    importlib.invalidate_caches()
    return tmp_path


def write(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("")
    importlib.invalidate_caches()


def survey_of(*names: str) -> CodeSurvey:
    survey = CodeSurvey()
    survey.add_imported({name: importlib.import_module(name) for name in names})
    return survey


def test_modules_packages_and_namespaces(folder: Path) -> None:
    write(folder, "own_a.py", "own_b/__init__.py", "own_b/c.py", "own_space/d.py")
    survey = survey_of("own_a", "own_b", "own_b.c", "own_space", "own_space.d", "json", "numpy", "sys", "zipimport")
    why = "your program imports it"
    assert survey.units == {
        "own_a": Unit("own_a", (str(folder / "own_a.py"),), why),
        "own_b": Unit("own_b", (str(folder / "own_b"),), why),
        "own_space": Unit("own_space", (str(folder / "own_space"),), why),
    }
    assert survey.problems == {}


def test_what_files_name_is_looked_for(folder: Path) -> None:
    write(folder, "own_a.py", "own_data/notes.txt", "own_space/a.py", "own_deep/inner/__init__.py")
    survey = CodeSurvey()
    survey.add_named(["own_a", "own_data", "own_space", "own_deep", "json", "numpy", "own_later", "skyward"], "x.py")
    survey.resolve()
    assert sorted(survey.units) == ["own_a", "own_deep", "own_space"], "a folder of data is no package"
    assert survey.units["own_a"].reason == "x.py imports it"
    write(folder, "own_later.py")
    survey.resolve()
    assert "own_later" in survey.units


def test_a_module_loaded_from_a_file_of_another_name(folder: Path) -> None:
    write(folder, "odd-name.py")
    spec = importlib.util.spec_from_file_location("own_odd", folder / "odd-name.py")
    assert spec is not None
    survey = CodeSurvey()
    survey.add_imported({"own_odd": importlib.util.module_from_spec(spec)})
    assert survey.units["own_odd"].sources == (str(folder / "odd-name.py"),)


def test_what_is_never_sent(folder: Path) -> None:
    write(folder, "pydevd.py", "sitecustomize.py", "_cython_3_0.py")
    survey = survey_of("pydevd")
    survey.add_imported({"__main__": types.ModuleType("__main__"), "_cython_3_1": types.ModuleType("_cython_3_1")})
    assert (survey.units, survey.problems) == ({}, {})


def test_an_odd_module_does_no_harm(folder: Path) -> None:
    class Odd(types.ModuleType):
        @property
        def __path__(self) -> object:
            raise RuntimeError("odd")

    survey = CodeSurvey()
    survey.add_imported({"own_odd": Odd("own_odd"), "own_none": None})  # type: ignore[dict-item]
    assert list(survey.problems) == ["own_odd"]


def test_a_target_folder_of_pip_belongs_to_its_distributions(folder: Path) -> None:
    write(folder, "own_pkg/__init__.py", "own_mod.py")
    (folder / "own-1.0.dist-info").mkdir()
    (folder / "own-1.0.dist-info/RECORD").write_text("own_pkg/__init__.py,,\n")
    survey = survey_of("own_pkg", "own_mod")
    assert list(survey.units) == ["own_mod"]


def test_metadata_beside_a_package_goes_with_it(folder: Path) -> None:
    write(folder, "own_pkg/__init__.py", "own_project.egg-info/PKG-INFO", "other.egg-info/PKG-INFO")
    (folder / "own_project.egg-info/top_level.txt").write_text("own_pkg\n")
    survey = survey_of("own_pkg")
    assert list(survey.units) == ["own_pkg", "own_project.egg-info"]
    assert survey.units["own_project.egg-info"].is_metadata


def test_places_are_this_interpreters() -> None:
    assert places().whose(importlib.import_module("json").__file__ or "").name == "PYTHON"
    assert places().whose(np.__file__).name == "INSTALLED"
    assert places().whose(__file__).name == "LOCAL"


def test_imports_of_a_script_a_notebook_and_a_prompt(tmp_path: Path) -> None:
    main = types.ModuleType("__main__")
    assert program_imports(None) == frozenset()
    exec("def f():\n  import a.b\n  def g():\n    from c import d\n  return d.import_me", main.__dict__)
    assert program_imports(main) == {"a", "c"}
    before = program_state(main)
    exec("def h(): import e", main.__dict__)
    assert program_state(main) != before
    main.__file__ = str(tmp_path / "script.py")
    assert program_state(main) == ("no file",)
    (tmp_path / "script.py").write_text("import x\n")
    assert program_imports(main) == {"x"}
    main._ih = ["", "%load_ext autoreload", "!ls\nimport helpers", "def f():\n    import inner\n"]  # type: ignore[attr-defined]
    assert program_imports(main) == {"helpers", "inner"}
    assert program_state(main) == ("cells", 4)


def test_an_editable_install_whose_project_is_gone(folder: Path) -> None:
    metadata = folder / "own_gone-1.0.dist-info"
    metadata.mkdir()
    (metadata / "direct_url.json").write_text('{"url": "file:///nowhere/at/all", "dir_info": {"editable": true}}')
    (metadata / "top_level.txt").write_text("own_other\n")
    moved = folder / "own_moved-1.0.dist-info"
    moved.mkdir()
    (moved / "direct_url.json").write_text(f'{{"url": "{folder.as_uri()}", "dir_info": {{"editable": true}}}}')
    survey = CodeSurvey()
    survey.add_named(["own_moved"], "y.py")
    survey.resolve()
    (text,) = survey.broken()
    assert text == (
        f"own_moved is installed in place from {folder}, which has no such module, so tasks can't import it "
        "(y.py imports it): install it again"
    )
    with pytest.raises(ConfigError, match=r"local='own_moved': it is installed in place from .*: install it again"):
        CodeSurvey(wanted=["own_moved"]).resolve()
    survey = CodeSurvey()
    survey.add_named(["own_gone", "own_other", "own_unknown"], "x.py")
    survey.resolve()
    assert sorted(text.split(" ")[0] for text in survey.broken()) == ["own_gone", "own_other"]
    assert (
        "from /nowhere/at/all, which does not exist, so tasks can't import it (x.py imports it)" in survey.broken()[0]
    )


def test_own_modules(folder: Path) -> None:
    write(folder, "own_a.py", "own_b/__init__.py")
    assert is_own("own_a")
    assert is_own("own_b.c")
    assert not any(map(is_own, ["json", "numpy.linalg", "own_nowhere", "sys", "", "skyward.plugins"]))


def test_two_files_of_one_name_can_not_both_be_sent(folder: Path) -> None:
    write(folder, "one/own_m.py", "two/own_m.py")
    first, second = (str(folder / place / "own_m.py") for place in ("one", "two"))
    with pytest.raises(ConfigError, match="own_m too, and nodes can have only one"):
        CodeSurvey([first, second])
    assert CodeSurvey([first, first]).units["own_m"].sources == (first,)
