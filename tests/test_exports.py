"""Public is what `skyward.__all__` and docs/api.md list: the same names, all there, and cheap to import."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import skyward
from skyward.core import errors

REPOSITORY = Path(__file__).resolve().parents[1]
MODULES = sorted(
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
    for path in (REPOSITORY / "skyward").rglob("*.py")
    if path.name != "__main__.py"
)


def run(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout


def test_api_page_lists_the_public_names() -> None:
    """The first column of the tables of docs/api.md, each name as `sky.Name`."""
    page = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `sky\.(\w+)", page, flags=re.MULTILINE))
    assert listed == set(skyward.__all__)


def test_public_names_exist() -> None:
    assert [name for name in skyward.__all__ if getattr(skyward, name, None) is None] == []


def test_type_checkers_see_the_same_names() -> None:
    """The imports under TYPE_CHECKING, the table of homes and `__all__` agree."""
    tree = ast.parse(Path(skyward.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name))
    homes = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            module = node.module == "skyward"
            homes[alias.asname] = f"skyward.{alias.name}" if module else f"{node.module}:{alias.name}"
    assert homes == skyward._HOME
    assert set(homes) | {"__version__"} == set(skyward.__all__)


def test_all_is_sorted_and_has_no_name_twice() -> None:
    assert len(set(skyward.__all__)) == len(skyward.__all__)
    assert set(skyward.__all__) <= set(dir(skyward))


def test_every_error_is_public() -> None:
    assert set(errors.__all__) <= set(skyward.__all__)


def test_two_names_of_one_class() -> None:
    assert skyward.Compute is skyward.ComputePool


def test_an_unknown_name_is_an_ordinary_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'skyward' has no attribute 'Computer'"):
        _ = skyward.Computer  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "room",
    [
        pytest.param(room, marks=[pytest.mark.slow] * (room == "skyward.console_marimo"))  # which imports marimo
        for room in sorted({".".join(module.split(".")[:2]) for module in MODULES})
    ],
)
def test_all_names_of_every_module_exist(room: str) -> None:
    """Room by room: as a test for each module, pytest itself would take most of the time."""
    missing = []
    modules = [module for module in MODULES if module == room or (room != "skyward" and module.startswith(f"{room}."))]
    for module in modules:
        if module != "skyward.dashboard.serving" or importlib.util.find_spec("uvicorn"):  # an extra
            loaded = importlib.import_module(module)
            missing += [f"{module}.{name}" for name in getattr(loaded, "__all__", ()) if not hasattr(loaded, name)]
    assert missing == []


def test_a_submodule_never_hides_a_public_callable() -> None:
    """`import skyward.x` sets the attribute x of the package; it must not replace a function of that name."""
    submodules = {module.split(".")[1] for module in MODULES if "." in module}
    homes = {name for name, home in skyward._HOME.items() if ":" in home}
    assert submodules & homes == set()


def test_import_is_light() -> None:
    """`import skyward` loads nothing but itself and small parts of the standard library."""
    loaded = run("import sys; before = set(sys.modules); import skyward; print(*sorted(set(sys.modules) - before))")
    heavy = {"asyncio", "asyncssh", "cloudpickle", "concurrent", "joblib", "multiprocessing", "numpy", "rich", "socket"}
    ours = {name for name in loaded.split() if name.split(".")[0] == "skyward"}
    assert ours == {"skyward"}
    assert {name.split(".")[0] for name in loaded.split()} & heavy == set()


def test_a_pool_needs_neither_ssh_nor_rich_nor_numpy() -> None:
    names = "skyward.Compute, skyward.Worker, skyward.Image, skyward.Local, skyward.compute"
    loaded = run(f"import sys, skyward; {names}; print(*sys.modules)").split()
    assert {"asyncssh", "numpy", "rich", "sklearn"} & set(loaded) == set()


def test_version_is_in_the_changelog() -> None:
    assert f"## {skyward.__version__}" in (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_package_is_marked_as_typed() -> None:
    assert (REPOSITORY / "skyward" / "py.typed").exists()


def test_on_windows_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ImportError, match="install it in WSL"):
        importlib.reload(skyward)
