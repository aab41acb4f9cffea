"""What a program refers to."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from skyward.core.packages.references import find_references


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., types.ModuleType]:
    """Writes a program's files, and makes its ``__main__``."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(source: str, **files: str) -> types.ModuleType:
        for name, text in files.items():
            file = tmp_path / f"{name.replace('__SLASH__', '/')}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        main = types.ModuleType("__main__")
        main.__file__ = str(tmp_path / "script.py")
        Path(main.__file__).write_text(source)
        return main

    return make


def modules(main: types.ModuleType, folder: Path) -> set[str]:
    return find_references(main, lambda file: file.startswith(str(folder))).modules


def test_imports_of_the_script(project: Callable[..., types.ModuleType], tmp_path: Path) -> None:
    """At the top, in functions, in branches; not those for type checkers."""
    main = project(
        "import numpy as np\nfrom sklearn.svm import SVC\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import heavy\nelse:\n    import light\n"
        "def task():\n    import polars\n    import importlib\n    importlib.import_module('late.one')\n"
    )
    found = modules(main, tmp_path)
    assert {"numpy", "sklearn.svm", "sklearn.svm.SVC", "polars", "late.one", "light"} <= found
    assert "heavy" not in found


def test_imports_of_what_the_script_imports(project: Callable[..., types.ModuleType], tmp_path: Path) -> None:
    """Through the user's own modules and packages, relative imports too; those that nobody imports do not count."""
    main = project(
        "import own_helpers\n",
        own_helpers="from own_package.part import thing\n",
        own_package__SLASH____init__="import in_init\n",
        own_package__SLASH__part="from . import sibling\nfrom .sub.deep import x\n",
        own_package__SLASH__sibling="import in_sibling\n",
        own_package__SLASH__sub__SLASH__deep="from .. import sibling\nimport in_deep\n",
        own_package__SLASH__unused="import in_unused\n",
    )
    found = modules(main, tmp_path)
    assert {"in_init", "in_sibling", "in_deep"} <= found
    assert not {"in_unused", "own_helpers", "own_package"} & found


def test_globals_at_a_prompt(tmp_path: Path) -> None:
    """There is no file: modules, objects and what functions import."""
    main = types.ModuleType("__main__")
    sys.modules["made_up"] = types.ModuleType("made_up")
    try:
        exec("import made_up as m\ndef task():\n    import polars\n", vars(main))
        exec("class C:\n    def f(self):\n        import lightgbm\n", vars(main))
    finally:
        del sys.modules["made_up"]
    vars(main)["frame"] = type("Frame", (), {"__module__": "pandas.core.frame"})()
    assert {"made_up", "polars", "lightgbm", "pandas.core.frame"} <= modules(main, tmp_path)


def test_files_that_can_not_be_parsed_are_passed_over(project: Callable[..., types.ModuleType], tmp_path: Path) -> None:
    """Whoever imports them hears of it."""
    main = project("import own_broken, numpy\n", own_broken="def (\n")
    assert {"numpy"} <= modules(main, tmp_path)
