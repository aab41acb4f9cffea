"""What is in resume files, and how parts of it go."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from skyward.core.errors import ResumeFileError
from skyward.core.resume.listing import Pruning, find, overview, prune
from skyward.core.resume.store import LARGE_RESULT, ResultStore
from tests.core.resume import names
from tests.core.resume.test_file_lock import holder
from tests.core.resume.test_store import CODE, got, key, opened, row


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Two runs: the second has taken 0 and stored 3."""
    file = tmp_path / "x.run"
    with opened(file) as store:
        store.put([row(0), row(1), row(2, bytes(LARGE_RESULT), name="g")])
    with opened(file) as store:
        store.put([row(3, code=b"d" * 16)], [key(0)])
    return file


def test_an_overview(file: Path) -> None:
    found = overview(str(file))
    assert (found.results, found.in_use) == (4, False)
    assert found.size > LARGE_RESULT
    functions = {(one.name, one.code): (one.results, one.used, one.seconds) for one in found.functions}
    assert functions == {
        ("f", CODE.hex()): (2, 1, 1.0),
        ("g", CODE.hex()): (1, 0, 0.5),
        ("f", (b"d" * 16).hex()): (1, 1, 0.5),
    }
    assert [(run.number, run.taken, run.stored) for run in found.runs] == [(2, 1, 1), (1, 0, 3)]
    assert all(run.ended is not None and run.process == os.getpid() for run in found.runs)
    assert names(file.parent) == ["x.run", "x.run-files"]


def test_a_run_that_was_killed_has_no_end(file: Path) -> None:
    store = ResultStore(str(file))
    store.put([row(9)])
    assert overview(str(file)).runs[0].ended is None  # while it runs
    store.close()
    assert overview(str(file)).runs[0].ended is not None


@pytest.mark.slow
def test_another_process_shows_as_use(file: Path) -> None:
    with holder(file) as process:
        assert overview(str(file)).in_use
        with pytest.raises(ResumeFileError, match="is in use"):
            prune(str(file), Pruning(), really=True)
        process.kill()
        process.wait()
        assert not overview(str(file)).in_use


@pytest.mark.parametrize(
    ("what", "left"),
    [
        (Pruning(), {0, 3}),
        (Pruning(unused=False), set()),
        (Pruning(function="g"), {0, 1, 3}),
        (Pruning(unused=False, function="f"), {2}),
        (Pruning(age=3600), {0, 1, 2, 3}),
        (Pruning(function="nobody"), {0, 1, 2, 3}),
    ],
    ids=str,
)
def test_pruning(file: Path, what: Pruning, left: set[int]) -> None:
    """What is chosen goes with its files, and all else stays."""
    assert prune(str(file), what, really=False) == 4 - len(left)
    assert overview(str(file)).results == 4
    assert prune(str(file), what, really=True) == 4 - len(left)
    with opened(file) as store:
        assert {number for number in range(4) if got(store, number) is not None} == left
        assert sum(known.count for codes in store.known.values() for known in codes.values()) == len(left)
    assert file.with_name("x.run-files").exists() == (2 in left)


def test_pruning_by_age(file: Path) -> None:
    with opened(file) as store:
        store._writer.execute("UPDATE results SET made = ? WHERE key = ?", (time.time() - 7200, key(1)))
    assert prune(str(file), Pruning(age=3600), really=True) == 1
    with opened(file) as store:
        assert got(store, 1) is None


def test_pruning_frees_room(file: Path) -> None:
    with opened(file) as store:
        store.put([row(number, os.urandom(5000)) for number in range(100, 200)])
    before = overview(str(file)).size
    prune(str(file), Pruning(unused=False), really=True)
    assert overview(str(file)).size < before - 400_000


def test_files_are_found_in_folders_and_by_name(file: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no")
    (tmp_path / "below").mkdir()
    with opened(tmp_path / "below" / "y.run"):
        pass
    assert find([str(tmp_path)]) == [str(file)]
    assert find([str(file), str(tmp_path / "below")]) == [str(file), str(tmp_path / "below" / "y.run")]
    with pytest.raises(ResumeFileError, match="there is no file"):
        find([str(tmp_path / "nothing")])


def test_what_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no")
    with pytest.raises(ResumeFileError, match="is not a resume file"):
        overview(str(tmp_path / "notes.txt"))


@pytest.mark.slow
def test_a_file_is_read_while_another_process_writes_to_it(file: Path) -> None:
    text = (
        "import sys; from tests.core.resume.test_store import *\n"
        "store = ResultStore(sys.argv[1]); store.put([row(50)]); print('ok', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", text, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ok\n"
        assert (overview(str(file)).results, overview(str(file)).in_use) == (5, True)
        process.kill()


def test_a_closed_store_can_be_pruned_at_once(file: Path) -> None:
    with closing(ResultStore(str(file))), pytest.raises(ResumeFileError, match="in use by another pool"):
        prune(str(file), Pruning(), really=False)
    assert prune(str(file), Pruning(), really=False) == 4  # the latest run has used nothing


@pytest.mark.slow
def test_a_run_that_was_killed_makes_nothing_unused(file: Path) -> None:
    """What it has taken is not written down yet, so the run before counts."""
    before = overview(str(file)).runs[0]
    assert before.ended is not None
    script = (
        "import os, sys; from skyward.core.resume.store import ResultStore; ResultStore(sys.argv[1]); "
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(file)], check=False)
    assert overview(str(file)).runs[0].ended is None
    stored = overview(str(file)).results
    assert prune(str(file), Pruning(unused=True), really=True) < stored
