"""Packages that arrive while a slot lives."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from skyward.worker import arrivals
from tests.core.packages.fabricated import install as install_distribution


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where they appear, in a process that looks there."""
    monkeypatch.setenv(arrivals.FOLDER, str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    arrivals.install()
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def arrive(folder: Path, number: str, name: str, version: str, *modules: str) -> None:
    install_distribution(folder / f".{number}", name, version, modules=modules)
    (folder / f".{number}").rename(folder / number)


def test_what_has_arrived_is_found(folder: Path) -> None:
    """The next time that it is asked for, with its metadata."""
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("of_late")
    arrive(folder, "0001", "of-late", "1.2", "of_late/__init__.py", "of_late/part.py")
    importlib.import_module("of_late.part")
    assert importlib.metadata.version("of-late") == "1.2"
    arrive(folder, "0002", "later", "1.0", "later_still.py")
    importlib.import_module("later_still")


def test_what_was_there_stays_what_it_was(folder: Path) -> None:
    """A second version of it is never loaded."""
    arrive(folder, "0001", "of-late", "1.0", "of_late/__init__.py")
    importlib.import_module("of_late")
    arrive(folder, "0002", "of-late", "2.0", "of_late/__init__.py", "of_late/new_in_two.py")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("of_late.new_in_two")
    assert importlib.metadata.version("of-late") == "1.0"


def test_parts_of_a_namespace_may_arrive_one_after_another(folder: Path) -> None:
    """Beside what this process has loaded of it."""
    arrive(folder, "0001", "space-a", "1", "space_of_mine/a.py")
    importlib.import_module("space_of_mine.a")
    arrive(folder, "0002", "space-b", "1", "space_of_mine/b.py")
    importlib.import_module("space_of_mine.b")


def test_what_is_incomplete_is_not_seen(folder: Path) -> None:
    """It has another name until it is whole."""
    install_distribution(folder / ".0001", "of-late", modules=["of_late/__init__.py"])
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("of_late")


def test_a_folder_that_is_gone_is_no_error(folder: Path) -> None:
    """A module that nobody has is just missing."""
    folder.rmdir()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("of_late")
