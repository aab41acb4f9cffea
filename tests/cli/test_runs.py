"""Resume files on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from skyward.core.errors import ResumeFileError
from skyward.core.resume.store import LARGE_RESULT
from tests.core.resume.test_store import key, opened, row

from .conftest import Run


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The second run has used 0 and stored 3."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    file = folder / "search.run"
    with opened(file) as store:
        store.put([row(0), row(1), row(2, bytes(LARGE_RESULT), name="train")])
    with opened(file) as store:
        store.put([row(3)], [key(0)])
    return file


def test_files_of_a_folder(run: Run, file: Path) -> None:
    for arguments in ([], [str(file.parent)]):
        result = run("runs", *arguments)
        assert result.exit_code == 0
        head, line = result.stdout.splitlines()
        assert head.split() == ["file", "results", "size", "runs", "last", "used", "state"]
        assert line.split()[1:5] == ["4", "0.1", "MB", "2"]
        assert line.endswith("ago  ended")


def test_nothing_is_said_so(run: Run, tmp_path: Path) -> None:
    result = run("runs", str(tmp_path))
    assert (result.exit_code, result.stdout) == (0, f"no resume files in {tmp_path}\n")


def test_one_file(run: Run, file: Path) -> None:
    """Its functions, and its runs, the latest first."""
    text = run("runs", str(file)).stdout
    tables = [part.splitlines() for part in text.split("\n\n")]
    assert [len(part) for part in tables] == [2, 3, 3]
    assert {tuple(line.split()[:4]) for line in tables[1][1:]} == {
        ("f", "63636363", "3", "2"),
        ("train", "63636363", "1", "0"),
    }
    assert [line.split()[4:6] for line in tables[2][1:]] == [["1", "1"], ["0", "3"]]


def test_json(run: Run, file: Path) -> None:
    (one,) = json.loads(run("runs", "--json").stdout)
    assert (one["results"], one["in_use"], len(one["runs"])) == (4, False, 2)
    assert {each["name"]: each["results"] for each in one["functions"]} == {"f": 3, "train": 1}


def test_pruning_asks_first(run: Run, file: Path) -> None:
    result = run("runs", str(file), "--prune", input="n\n")
    assert result.exit_code == 1
    assert "Remove 2 of the 4 results" in result.stderr
    result = run("runs", str(file), "--prune", input="y\n")
    assert result.exit_code == 0
    assert result.stdout.endswith("removed 2 of 4 results and freed 0.1 MB\n")
    assert run("runs", str(file), "--prune").stdout == f"nothing to remove from {file}\n"
    assert run("runs", str(file), "--prune", "--older", "1", "--all").stdout == f"nothing to remove from {file}\n"
    assert run("runs", str(file), "--prune", "--function", "f", "--all", "-y").stdout.startswith(
        "removed 2 of 2 results"
    )


@pytest.mark.parametrize(
    "arguments", [["--prune"], ["--yes"], ["--all"], ["--function", "f"], ["--older", "3"], [".", "--prune"]]
)
def test_wrong_usage(run: Run, file: Path, arguments: list[str]) -> None:
    assert run("runs", *arguments).exit_code == 2
    assert file.exists()


def test_what_is_no_resume_file(run: Run, file: Path) -> None:
    """An error if it was named; one of a folder that can't be read is skipped and said."""
    (file.parent / "notes.txt").write_text("no")
    with pytest.raises(ResumeFileError, match="is not a resume file"):
        raise run("runs", "notes.txt").exception
    data = bytearray(file.read_bytes())
    data[100:4000] = bytes(3900)
    file.write_bytes(data)
    result = run("runs")
    assert result.exit_code == 0
    assert "search.run can't be opened" in result.stderr
