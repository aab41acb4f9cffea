"""What stands behind a module's name: the text of the user's own modules, the versions of all others."""

from __future__ import annotations

import importlib
import itertools
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skyward.core.resume.origins import ModuleOrigins

_numbers = itertools.count(1)
_HOUR = 3600


class Project:
    """Modules of the user's own, in a folder on `sys.path`; each has a top-level name that no other test uses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.top = f"origin_{next(_numbers)}"
        self._age = 0

    def write(self, files: dict[str, str]) -> None:
        """Write files of the package; ``TOP`` in them stands for its name."""
        for name, text in files.items():
            path = self.folder / self.top / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text).replace("TOP", self.top))
            self._age += 1  # no two versions of a file have the same time
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - _HOUR + self._age))
        importlib.invalidate_caches()

    def of(self, module: str, *, whole: bool = False) -> bytes:
        return ModuleOrigins()(f"{self.top}.{module}" if module else self.top, whole=whole)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    monkeypatch.syspath_prepend(str(tmp_path))
    made = Project(tmp_path)
    yield made
    for name in [name for name in sys.modules if name.partition(".")[0] == made.top]:
        del sys.modules[name]


FILES = {
    "__init__.py": "",
    "train.py": """
        from . import data
        from TOP.models.tree import grow
        import numpy as np

        def train():
            import TOP.late
            return data.load(), grow()
    """,
    "data.py": "def load():\n    return 1\n",
    "late.py": "X = 1\n",
    "plots.py": "import TOP.train\n\ndef plot():\n    pass\n",
    "models/__init__.py": "",
    "models/tree.py": "from ..util import (\n    helper,\n)\n\ndef grow():\n    return helper\n",
    "models/other.py": "Y = 1\n",
    "util.py": "def helper():\n    pass\n",
}


def edits(project: Project, files: dict[str, str], of: Callable[[], bytes]) -> dict[str, bool]:
    """Whether an edit of each file makes a difference."""
    project.write(files)
    before, found = of(), {}
    for name, text in files.items():
        project.write({name: text + "\nEDITED = 1\n"})
        found[name] = of() != before
        project.write({name: text})
        assert of() == before
    return found


def test_a_module_is_all_that_it_imports(project: Project) -> None:
    """Also inside functions, relatively, and what the packages around it contain; but not what imports it."""
    found = edits(project, FILES, lambda: project.of("train"))
    # `import TOP.late` binds the package, through which every module can be reached.
    assert found == dict.fromkeys(FILES, True)
    files = FILES | {"train.py": FILES["train.py"].replace("import TOP.late", "from TOP.late import X")}
    found = edits(project, files, lambda: project.of("train"))
    assert {name for name, differs in found.items() if not differs} == {"plots.py", "models/other.py"}


def test_a_package_is_all_of_it_where_it_can_be_reached(project: Project) -> None:
    found = edits(project, FILES, lambda: project.of("", whole=True))
    assert found == dict.fromkeys(FILES, True)
    assert edits(project, FILES, lambda: project.of("models", whole=True))["models/other.py"]
    assert not edits(project, FILES, lambda: project.of("models"))["models/other.py"]


def test_importing_by_name_counts_as_all(project: Project) -> None:
    files = {
        "__init__.py": "",
        "run.py": "import importlib\n\ndef run(name):\n    return importlib.import_module(name)\n",
        "plugin.py": "Z = 1\n",
    }
    assert edits(project, files, lambda: project.of("run"))["plugin.py"]


def test_comments_and_layout_do_not_count(project: Project) -> None:
    project.write(FILES)
    before = project.of("train")
    project.write({"data.py": "# A comment.\n\ndef load():\n\n    return (1)\n"})
    assert project.of("train") == before
    project.write({"data.py": "def load():\n    return 2\n"})
    assert project.of("train") != before


def test_a_file_that_is_no_python_counts_by_its_bytes(project: Project) -> None:
    files = {"__init__.py": "from . import broken\n", "broken.py": "def\n"}
    assert edits(project, files, lambda: project.of(""))["broken.py"]


def test_where_the_project_lies_does_not_count(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write(FILES)
    before = project.of("train")
    (tmp_path / "moved").mkdir()
    (tmp_path / project.top).rename(tmp_path / "moved" / project.top)
    monkeypatch.syspath_prepend(str(tmp_path / "moved"))
    importlib.invalidate_caches()
    assert project.of("train") == before


def test_circles_end(project: Project) -> None:
    files = {"__init__.py": "", "a.py": "from . import b\n", "b.py": "from . import a\n"}
    assert edits(project, files, lambda: project.of("a")) == {"__init__.py": True, "a.py": True, "b.py": True}
    assert project.of("a") == project.of("b")  # the name itself is not a part of it


def test_folders_without_init_are_packages(project: Project) -> None:
    files = {"a.py": "from TOP.deep.b import X\n", "deep/b.py": "X = 1\n"}
    assert edits(project, files, lambda: project.of("a")) == {"a.py": True, "deep/b.py": True}


def test_all_others_count_by_their_versions(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    project.write(FILES)
    before = [project.of("train"), ModuleOrigins()("numpy.linalg"), ModuleOrigins()("joblib"), ModuleOrigins()("json")]
    monkeypatch.setattr(np, "__version__", "0.1")
    after = [project.of("train"), ModuleOrigins()("numpy.linalg"), ModuleOrigins()("joblib"), ModuleOrigins()("json")]
    assert [one != other for one, other in zip(before, after, strict=True)] == [True, True, False, False]


def test_what_is_nowhere_has_an_origin(project: Project) -> None:
    origins = ModuleOrigins()
    assert origins("no_such_module_anywhere") == origins("no_such_module_anywhere.at_all")
    assert origins(f"{project.top}.nothing")


# --- changes while a program runs ---


def test_a_change_is_a_new_generation(project: Project) -> None:
    project.write(FILES)
    origins = ModuleOrigins()
    name = f"{project.top}.train"
    before = origins(name)
    origins.refresh(now=True)
    assert (origins.generation, origins(name)) == (0, before)
    project.write({"util.py": "def helper():\n    return 5\n"})
    assert origins(name) == before  # until it looks again
    origins.refresh(now=True)
    assert origins.generation == 1
    assert origins(name) != before
    project.write({"util.py": FILES["util.py"]})
    origins.refresh(now=True)
    assert (origins.generation, origins(name)) == (2, before)


def test_it_does_not_look_each_time(project: Project) -> None:
    project.write(FILES)
    origins = ModuleOrigins()
    origins(project.top, whole=True)
    origins.refresh()
    project.write({"util.py": ""})
    origins.refresh()
    assert origins.generation == 0
    origins.refresh(now=True)
    assert origins.generation == 1


def test_the_newest_file_counts_by_when_it_was_really_changed(project: Project) -> None:
    """Its time can be set, as the tools do that restore files."""
    project.write(FILES)
    origins = ModuleOrigins()
    assert origins.newest == 0
    began = time.time_ns()
    origins(project.top, whole=True)
    assert began - 10**10 < origins.newest <= time.time_ns()
    before = origins.newest
    time.sleep(0.02)  # the clock of files has a tick
    project.write({"util.py": ""})
    origins.refresh(now=True)
    assert origins.newest == 0
    origins(project.top, whole=True)
    assert origins.newest > before


def test_a_copy_does_not_change(project: Project) -> None:
    project.write(FILES)
    origins = ModuleOrigins()
    name = f"{project.top}.train"
    before = origins(name)
    copy = origins.copy()
    project.write({"util.py": "def helper():\n    return 5\n"})
    origins.refresh(now=True)
    assert (copy(name), copy.has_changed(), copy.generation) == (before, True, 0)
    assert (origins(name) != before, origins.has_changed(), origins.generation) == (True, False, 1)
