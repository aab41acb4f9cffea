"""Results that were stored are there, whole, in the next run, whatever ended the last one."""

from __future__ import annotations

import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from skyward.core.errors import ConfigError, ResumeFileError
from skyward.core.resume.store import APPLICATION, LARGE_RESULT, Known, NewResult, ResultStore
from tests.core.resume import names

CODE = b"c" * 16


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def row(number: int, *parts: bytes, name: str = "f", code: bytes = CODE) -> NewResult:
    return NewResult(key(number), name, code, number, 0.5, parts or (b"result %d" % number,))


def got(store: ResultStore, number: int) -> list[bytes] | None:
    found = store.get(key(number))
    return None if found is None else [bytes(part) for part in found[0]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "x.run"


def opened(file: Path) -> closing[ResultStore]:
    return closing(ResultStore(str(file)))


@contextmanager
def disk_is_full(file: Path) -> Iterator[None]:
    """A limit on the size of files acts as a full disk, as the log is a file of some size."""
    size = max(part.stat().st_size for part in file.parent.iterdir())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_what_is_stored_is_there_in_the_next_run(file: Path) -> None:
    large = os.urandom(LARGE_RESULT)
    with opened(file) as store:
        assert (store.known, store.last_python, got(store, 1)) == ({}, None, None)
        store.put([row(1), row(2, b"head", b"", large), row(3, name="g")])
        assert got(store, 1) == [b"result 1"]
    with opened(file) as store:
        assert store.known == {"f": {CODE: Known(1, 2)}, "g": {CODE: Known(2, 1)}}
        assert store.last_python == f"{sys.version_info.major}.{sys.version_info.minor}"
        assert store.run == 2
        assert got(store, 2) == [b"head", b"", large]
        assert got(store, 4) is None
        found = store.get(key(2))
        assert found is not None
        assert found[1] == 0.5
        found[0][2][0] = 1  # an array made of it can be written to
        assert got(store, 2) == [b"head", b"", large]
    assert names(file.parent) == ["x.run", "x.run-files"]


def test_files_are_only_for_their_owner(file: Path) -> None:
    with opened(file) as store:
        store.put([row(1, bytes(LARGE_RESULT))])
        modes = {path.name: path.stat().st_mode & 0o777 for path in file.parent.rglob("*")}
    assert modes.pop("x.run-files") == 0o700
    assert modes == dict.fromkeys(["x.run", "x.run-wal", "x.run-shm", "x.run-lock", key(1).hex()], 0o600)


def test_commits_wait_for_the_disk(file: Path) -> None:
    """WAL, and FULL: with NORMAL, a power failure would take the latest commits."""
    with opened(file) as store:
        assert store._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert store._writer.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_result_can_be_replaced(file: Path) -> None:
    with opened(file) as store:
        store.put([row(1, b"old"), row(2, bytes(LARGE_RESULT))])
        store.put([row(1, bytes(2 * LARGE_RESULT)), row(2, b"small")])
        assert (got(store, 1), got(store, 2)) == ([bytes(2 * LARGE_RESULT)], [b"small"])


def test_places_are_those_of_earlier_runs(file: Path) -> None:
    with opened(file) as store:
        store.put([row(5)])
        assert not store.has_place(1, 5)
    with opened(file) as store:
        assert store.has_place(store.known["f"][CODE].id, 5)
        assert not store.has_place(store.known["f"][CODE].id, 6)


# --- files that can't be used ---


def test_text_is_no_resume_file(file: Path) -> None:
    file.write_text("precious\n" * 100)
    file.chmod(0o600)
    with pytest.raises(ResumeFileError, match="is not a resume file: name another file") as caught:
        ResultStore(str(file))
    assert isinstance(caught.value, ConfigError)
    assert file.read_text() == "precious\n" * 100
    assert names(file.parent) == ["x.run"]


def test_another_database_is_no_resume_file(file: Path) -> None:
    with closing(sqlite3.connect(file)) as db:
        db.execute("CREATE TABLE precious (x)")
    with pytest.raises(ResumeFileError, match="is not a resume file"):
        ResultStore(str(file))


def test_an_empty_file_is_none_either(file: Path) -> None:
    """Somebody else has made it, as ours are never empty."""
    file.touch(0o600)
    with pytest.raises(ResumeFileError, match="is not a resume file"):
        ResultStore(str(file))


def test_another_format_is_named(file: Path) -> None:
    with opened(file):
        pass
    with closing(sqlite3.connect(file)) as db:
        db.execute("PRAGMA user_version = 9")
    with pytest.raises(ResumeFileError, match=r"another version of skyward \(format 9, this one reads 1\)"):
        ResultStore(str(file))


@pytest.mark.parametrize("page", range(8))
def test_a_damaged_page_is_an_error_or_costs_what_it_held(file: Path, page: int) -> None:
    """Never another result."""
    with opened(file) as store:
        store.put([row(number, os.urandom(60)) for number in range(100)])
        stored = {number: got(store, number) for number in range(100)}
    data = bytearray(file.read_bytes())
    start = max(page * len(data) // 8, 100)  # the header says what the file is
    data[start : start + 2000] = os.urandom(2000)
    file.write_bytes(data)
    try:
        store = ResultStore(str(file))
    except ResumeFileError as error:
        said = str(error)
    else:
        said = ""
    if said:
        assert "If it is damaged, name another file" in said
        return
    with closing(store):
        for number, result in stored.items():
            try:
                found = got(store, number)
            except (sqlite3.Error, ValueError):
                continue
            assert found in (None, result)


def test_a_large_result_that_was_changed_is_found_out(file: Path) -> None:
    with opened(file) as store:
        store.put([row(number, bytes(LARGE_RESULT)) for number in range(3)])
        first, second = (Path(store._files.path(key(number))) for number in range(2))
        first.write_bytes(b"x" + first.read_bytes()[1:])
        second.unlink()
        with pytest.raises(ValueError, match="not what was written"):
            store.get(key(0))
        with pytest.raises(OSError, match="No such file"):
            store.get(key(1))
        assert got(store, 2) == [bytes(LARGE_RESULT)]


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_can_change_is_refused(file: Path, mode: int) -> None:
    """Its results are pickles."""
    with opened(file):
        pass
    file.chmod(mode)
    with pytest.raises(ResumeFileError, match=r"can be changed by others.*chmod go-rwx"):
        ResultStore(str(file))
    file.chmod(0o600)
    folder = file.with_name("x.run-files")
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(ResumeFileError, match=r"x\.run-files can be changed by others"):
        ResultStore(str(file))


@pytest.mark.skipif(os.geteuid() != 0, reason="gives the file to somebody else")
def test_a_file_of_somebody_elses_is_refused(file: Path) -> None:
    with opened(file):
        pass
    os.chown(file, 12345, -1)
    with pytest.raises(ResumeFileError, match="belongs to user 12345: the results in it are pickles"):
        ResultStore(str(file))


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResumeFileError, match=r"No such file or directory \(.*nowhere/x.run-lock\)"):
        ResultStore(str(tmp_path / "nowhere" / "x.run"))


def test_a_second_one_is_refused_and_harms_nothing(file: Path) -> None:
    with opened(file) as store:
        with pytest.raises(ResumeFileError, match="is in use"):
            ResultStore(str(file))
        store.put([row(1)])
    with opened(file) as store:
        assert got(store, 1) == [b"result 1"]


# --- writing fails ---


@pytest.mark.parametrize("large", [False, True])
def test_a_full_disk_is_an_error_and_what_was_stored_stays(file: Path, large: bool) -> None:
    with opened(file) as store:
        store.put([row(1)])
        rows = [row(2, name="new"), row(3, bytes(LARGE_RESULT if large else LARGE_RESULT // 2))]
        with disk_is_full(file), pytest.raises((OSError, sqlite3.Error)):
            store.put(rows)
        assert (got(store, 1), got(store, 2), got(store, 3)) == ([b"result 1"], None, None)
        store.put(rows)
        assert got(store, 3) == [rows[1].parts[0]]
    with opened(file) as store:
        assert {name: known[CODE].count for name, known in store.known.items()} == {"f": 2, "new": 1}


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_is_removed_meanwhile_is_noticed(file: Path, replaced: bool) -> None:
    """SQLite would go on in a file without a name."""
    with opened(file) as store:
        file.unlink()
        if replaced:
            file.write_text("something else")
        with pytest.raises(FileNotFoundError, match=r"x\.run"):
            store.put([row(1)])
    assert not replaced or file.read_text() == "something else"


# --- kill -9 ---

WRITER = """
import os, sys
from skyward.core.resume.store import ResultStore, NewResult
store = ResultStore(sys.argv[1])
number = int(sys.argv[2])
while True:
    rows = []
    for _ in range(1 + number % 5):
        size = 150_000 if number % 7 == 0 else number % 3000
        parts = [b"%d" % number, bytes([number % 256]) * size]
        rows.append(NewResult(number.to_bytes(16, "big"), "f", b"c" * 16, number, 0.0, parts))
        number += 1
    store.put(rows)
    os.write(1, b"%d\\n" % number)
"""


def test_a_file_that_was_removed_after_a_kill_leaves_nothing_to_the_next(file: Path) -> None:
    """Its log would be read into the new one, which would be damaged."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(file), "0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
        process.kill()
    assert "x.run-wal" in names(file.parent)
    file.unlink()
    with opened(file) as store:
        assert store.known == {}
        store.put([row(1)])
    with opened(file) as store:
        assert got(store, 1) == [b"result 1"]
        assert store._writer.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.slow
def test_what_was_reported_stored_survives_kill(file: Path) -> None:
    """At random moments, again and again with the same file; also while it is being made."""
    chance, stored = random.Random(7), 0
    for turn in range(12):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(file), str(stored)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            for _ in range(chance.randrange(40) if turn else 0):
                stored = int(process.stdout.readline())
            process.kill()
            stored = max([stored, *map(int, process.stdout.read().split())])
        with opened(file) as store:
            for number in range(stored):
                size = 150_000 if number % 7 == 0 else number % 3000
                assert got(store, number) == [b"%d" % number, bytes([number % 256]) * size]
            assert store._writer.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert stored > 100


def test_leftovers_of_a_process_killed_while_it_made_the_file_do_no_harm(file: Path) -> None:
    file.with_name("x.run-new").write_text("half")
    file.with_name("x.run-lock").write_text("host process 1")
    with opened(file) as store:
        store.put([row(1)])
    assert names(file.parent) == ["x.run"]


def test_names_with_odd_characters(tmp_path: Path) -> None:
    """SQLite gets the path as an address."""
    for name in ("a b?c=1#d%41.run", "ü.run", "-x"):
        file = tmp_path / name
        with opened(file) as store:
            store.put([row(1)])
        with opened(file) as store:
            assert got(store, 1) == [b"result 1"]
        assert file.is_file()


def test_the_application_id_is_in_the_header(file: Path) -> None:
    with opened(file):
        pass
    assert file.read_bytes()[68:72] == APPLICATION.to_bytes(4, "big")


def test_a_log_that_somebody_else_put_beside_it_is_refused(file: Path) -> None:
    """SQLite would read it as a part of the file."""
    with opened(file):
        pass
    for suffix in ("-wal", "-journal"):
        beside = Path(f"{file}{suffix}")
        beside.touch()
        beside.chmod(0o666)
        with pytest.raises(ResumeFileError, match=rf"x\.run{suffix} can be changed by others"):
            ResultStore(str(file))
        beside.unlink()
    with opened(file):
        pass
