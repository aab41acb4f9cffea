"""Patterns find what glob finds, and say how to call it at home."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from skyward.worker.file_search import find


@pytest.fixture
def work(tmp_path: Path) -> bytes:
    for name in ("out/a.csv", "out/b.txt", "out/deep/c.csv", "data/d.csv", "e.csv", "out/.hidden.csv"):
        path = tmp_path / "work" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "else.csv").write_text("outside")
    return os.fsencode(tmp_path / "work")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("out/*.csv", {"out/a.csv": "a.csv"}),
        ("out/**/*.csv", {"out/a.csv": "a.csv", "out/deep/c.csv": "deep/c.csv"}),
        ("out", {f"out/{name}": name for name in (".hidden.csv", "a.csv", "b.txt", "deep/c.csv")}),
        ("out/deep", {"out/deep/c.csv": "c.csv"}),
        ("out/deep/c.csv", {"out/deep/c.csv": "c.csv"}),
        ("./out/a.csv", {"out/a.csv": "a.csv"}),
        ("e.csv", {"e.csv": "e.csv"}),
        ("*/d*", {"data/d.csv": "data/d.csv", "out/deep/c.csv": "out/deep/c.csv"}),
        ("[!x]*.csv", {"e.csv": "e.csv"}),
        ("nothing*", {}),
    ],
)  # fmt: skip
def test_files_are_found(work: bytes, pattern: str, names: dict[str, str]) -> None:
    found = find(work, os.fsencode(pattern), [])
    assert {os.fsdecode(path): os.fsdecode(name) for path, name, *_ in found} == names
    for path, _, size, changed, runs in found:
        status = Path(os.fsdecode(os.path.join(work, path))).stat()
        assert (size, changed, runs) == (status.st_size, status.st_mtime_ns, False)


def test_an_absolute_pattern_finds_files_elsewhere(work: bytes) -> None:
    outside = os.path.dirname(work)
    assert [row[:2] for row in find(work, outside + b"/*.csv", [])] == [(outside + b"/else.csv", b"else.csv")]


def test_mounted_folders_do_not_count(work: bytes) -> None:
    found = find(work, b"**/*.csv", [work + b"/data"])
    assert [row[0] for row in found] == [b"e.csv", b"out/a.csv", b"out/deep/c.csv"]


def test_only_files_are_files(work: bytes) -> None:
    os.mkfifo(os.path.join(work, b"out/pipe.csv"))
    assert [row[1] for row in find(work, b"out/*.csv", [])] == [b"a.csv"]
