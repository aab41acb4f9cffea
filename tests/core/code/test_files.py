"""Which files of a package go to nodes, and what is refused."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.core.code import files
from skyward.core.code.files import Listing, check_size, is_excluded, list_files, read
from skyward.core.errors import ConfigError


def write(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(path)


def listed(folder: Path, *exclude: str) -> list[str]:
    return sorted(list_files("churn", [str(folder)], exclude).files)


def test_code_and_data_go_and_litter_does_not(tmp_path: Path) -> None:
    write(tmp_path, "__init__.py", "deep/a.py", "data/a b.csv", "data/empty", "_fast.so", "py.typed", "build/x.py")
    litter = (
        ".git/config",
        ".env",
        "__pycache__/a.pyc",
        "a.pyc",
        "a.py~",
        "node_modules/a.js",
        "deep/.cache/x",
        ".venv/x",
    )
    write(tmp_path, *litter, "venv/pyvenv.cfg", "venv/lib/a.py", "conda/conda-meta/history", "conda/lib/a.py")
    wanted = ["__init__.py", "_fast.so", "build/x.py", "data/a b.csv", "data/empty", "deep/a.py", "py.typed"]
    assert listed(tmp_path) == [f"churn/{path}" for path in wanted]
    assert listed(tmp_path, "*.csv", "churn/deep", "build") == [
        "churn/__init__.py", "churn/_fast.so", "churn/data/empty", "churn/py.typed",
    ]  # fmt: skip


def test_a_module_keeps_its_ending_and_gets_its_name(tmp_path: Path) -> None:
    write(tmp_path, "a.py", "foo-bar.v2.py", "fast.cpython-311-x86_64-linux-gnu.so", "churn-1.0.egg-info")
    assert list(list_files("a", [str(tmp_path / "a.py")]).files) == ["a.py"]
    assert list(list_files("foo", [str(tmp_path / "foo-bar.v2.py")]).files) == ["foo.py"]
    fast = list_files("fast", [str(tmp_path / "fast.cpython-311-x86_64-linux-gnu.so")]).files
    assert next(iter(fast)).startswith("fast.")
    assert next(iter(fast)).endswith(".so")
    info = "churn-1.0.egg-info"
    assert list(list_files(info, [str(tmp_path / info)]).files) == [info]
    with pytest.raises(FileNotFoundError):
        list_files("gone", [str(tmp_path / "gone.py")])


def test_portions_of_a_namespace_are_merged_as_imports_find_them(tmp_path: Path) -> None:
    write(tmp_path, "1/corp/a.py", "1/corp/same.py", "2/corp/b.py", "2/corp/same.py")
    found = list_files("corp", [str(tmp_path / "1/corp"), str(tmp_path / "2/corp")]).files
    assert sorted(found) == ["corp/a.py", "corp/b.py", "corp/same.py"]
    assert found["corp/same.py"].source == str(tmp_path / "1/corp/same.py")


def test_links_inside_are_followed_and_others_are_errors(tmp_path: Path) -> None:
    package = tmp_path / "churn"
    write(package, "a.py", "real/x.csv", "data/y.pyc")
    (package / "b.py").symlink_to("a.py")
    (package / "again").symlink_to("real")
    assert listed(package) == ["churn/a.py", "churn/again/x.csv", "churn/b.py", "churn/real/x.csv"]
    (tmp_path / "linked").symlink_to(package)
    assert listed(tmp_path / "linked") == listed(package), "the package itself may be a link"
    write(tmp_path, "outside/data.csv")
    for name, target, problem in [
        ("loop", "loop", "leads nowhere, or to itself"),
        ("broken", "nowhere", "leads nowhere, or to itself"),
        ("up", "..", "outside of its package"),
        ("self", ".", "a folder that contains it"),
        ("data/above", "..", "a folder that contains it"),
        ("more", "../outside", "outside of its package"),
    ]:
        link = package / name
        link.symlink_to(target)
        with pytest.raises(ConfigError, match=problem) as caught:
            listed(package)
        assert f"exclude=['churn/{name}']" in str(caught.value)
        assert f"churn/{name}" not in listed(package, f"churn/{name}")
        found = list_files("churn", [str(package)], strict=False).files
        assert sorted(found) == ["churn/a.py", "churn/again/x.csv", "churn/b.py", "churn/real/x.csv"]
        link.unlink()


def test_what_is_no_file_is_left_out_and_odd_names_are_not(tmp_path: Path) -> None:
    write(tmp_path, "a.py", "new\nline", " ")
    os.mkfifo(tmp_path / "fifo")
    Path(os.fsdecode(bytes(tmp_path) + b"/\xff\xfe")).write_text("x")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        assert listed(tmp_path) == ["churn/ ", "churn/a.py", "churn/new\nline", "churn/\udcff\udcfe"]


def test_too_much_names_the_largest_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.py", "data/x", "data/big", "docs/y")
    os.truncate(tmp_path / "data/big", 60_000_000)
    listing = list_files("churn", [str(tmp_path)])
    with pytest.raises(ConfigError, match=r"60 MB in 4 files.*at most 50 MB") as caught:
        check_size([listing])
    assert "churn/data: 60.0 MB in 2 files" in str(caught.value)
    assert "exclude=['churn/data']" in str(caught.value)
    check_size([list_files("churn", [str(tmp_path)], ["churn/data"]), Listing()])
    monkeypatch.setattr(files, "MAX_FILES", 1)
    with pytest.raises(ConfigError, match="exclude="):
        check_size([list_files("churn", [str(tmp_path)], ["churn/data"])])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_can_not_be_read_is_named(tmp_path: Path) -> None:
    write(tmp_path, "a.py", "secret/x")
    (tmp_path / "secret").chmod(0)
    with pytest.raises(ConfigError, match=r"churn/secret.*can't be read"):
        listed(tmp_path)
    (tmp_path / "a.py").chmod(0)
    found = list_files("churn", [str(tmp_path)], ["secret"]).files
    with pytest.raises(ConfigError, match=r"churn/a.py.*can't be read"):
        read("churn/a.py", found["churn/a.py"])


@given(st.sampled_from(["churn", "churn/data", "churn/data/x.csv", "x.csv", "y.py"]))
def test_patterns(path: str) -> None:
    assert is_excluded(path, ["*"])
    assert is_excluded(path, [path])
    assert is_excluded(path, [f"{path}/"])
    assert not is_excluded(path, [])
    assert is_excluded(path, ["*.csv"]) == path.endswith(".csv")
    assert is_excluded(path, ["churn/data/*"]) == (path == "churn/data/x.csv")
