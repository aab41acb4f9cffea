"""What resume files contain, and how to remove a part of it; for the command line."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fcntl import F_GETLK, F_UNLCK, F_WRLCK, fcntl

from skyward.core.errors import ResumeFileError
from skyward.core.resume.file_lock import FileLock
from skyward.core.resume.large_files import LargeFiles
from skyward.core.resume.store import APPLICATION, connect

__all__ = ["FunctionResults", "Overview", "PastRun", "Pruning", "find", "overview", "prune"]


@dataclass(frozen=True, slots=True)
class FunctionResults:
    """The results of one function with one state of its code.

    Attributes
    ----------
    code
        Digest of that state, in hex.
    size, seconds
        Bytes, and the time that computing them took, of all results.
    used
        How many of them the latest run has stored or taken.
    """

    name: str
    code: str
    results: int
    size: int
    seconds: float
    used: int


@dataclass(frozen=True, slots=True)
class PastRun:
    """A program's use of the file.

    Attributes
    ----------
    began, ended
        Seconds since the epoch; `ended` is None if it was killed, or still runs.
    taken, stored
        How many results.
    """

    number: int
    began: float
    ended: float | None
    program: str
    python: str
    host: str
    process: int
    taken: int
    stored: int


@dataclass(frozen=True, slots=True)
class Overview:
    """What is in a resume file.

    Attributes
    ----------
    size
        Bytes on the disk, with the files of large results.
    in_use
        Whether a program uses it now.
    functions, runs
        The latest runs come first.
    """

    path: str
    size: int
    in_use: bool
    functions: tuple[FunctionResults, ...]
    runs: tuple[PastRun, ...]

    @property
    def results(self) -> int:
        """How many there are."""
        return sum(function.results for function in self.functions)


@dataclass(frozen=True, slots=True)
class Pruning:
    """Which results to remove: those that meet all given conditions.

    Attributes
    ----------
    unused
        Whether only those that the latest run has neither stored nor taken.
    function
        Name of their function; None for any.
    age
        Seconds that must have passed since they were computed.
    """

    unused: bool = True
    function: str | None = None
    age: float = 0.0


def find(paths: Sequence[str]) -> list[str]:
    """Return the resume files among files, and in folders but not below them, sorted within each folder.

    Raises
    ------
    ResumeFileError
        A file that was named does not exist, or is not a resume file.
    """
    found: list[str] = []
    for path in paths:
        if os.path.isdir(path):
            with os.scandir(path) as entries:
                names = sorted(entry.path for entry in entries if entry.is_file())
            found += [name for name in names if _is_resume_file(name)]
        elif not os.path.exists(path):
            raise ResumeFileError(f"there is no file {path}")
        else:
            found.append(path)
    return found


def _is_resume_file(path: str) -> bool:
    with contextlib.suppress(OSError), open(path, "rb") as opened:
        head = opened.read(72)
        return head.startswith(b"SQLite format 3\0") and head[68:72] == struct.pack(">I", APPLICATION)
    return False


def overview(path: str) -> Overview:
    """Read what is in a file, also while a program uses it.

    Raises
    ------
    ResumeFileError
        It is not a resume file, is damaged, or has another format.
    """
    with _reading(path) as db:
        runs = tuple(
            PastRun(*row)
            for row in db.execute(
                "SELECT id, began, ended, program, python, host, process, taken, stored FROM runs ORDER BY id DESC"
            )
        )
        latest = runs[0].number if runs else 0
        functions = tuple(
            FunctionResults(name, code.hex(), *rest)
            for name, code, *rest in db.execute(
                "SELECT name, code, count(*), sum(size), sum(seconds), sum(used = ?) FROM results JOIN functions "
                "ON function = functions.id GROUP BY function ORDER BY max(made) DESC",
                (latest,),
            )
        )
        (large,) = db.execute("SELECT coalesce(sum(size), 0) FROM results WHERE data IS NULL").fetchone()
    size = sum(os.stat(part).st_size for part in (path, f"{path}-wal") if os.path.exists(part))
    return Overview(path, size + large, _in_use(path), functions, runs)


def prune(path: str, what: Pruning, *, really: bool) -> int:
    """Remove results, and the space they take; return how many.

    Parameters
    ----------
    path
        Path of the file.
    what
        Which results.
    really
        Whether to remove them, or only to count.

    Raises
    ------
    ResumeFileError
        A program uses the file; or it is not a resume file, is damaged, or has another format.
    """
    path = os.path.abspath(path)
    lock = FileLock(path)
    try:
        with _reading(path) as db:
            return _prune(db, path, what) if really else len(_chosen(db, what))
    finally:
        lock.release()


def _prune(db: sqlite3.Connection, path: str, what: Pruning) -> int:
    files = LargeFiles(path)
    chosen = _chosen(db, what)
    db.execute("PRAGMA synchronous=FULL")
    db.execute("BEGIN IMMEDIATE")
    db.executemany("DELETE FROM results WHERE key = ?", [(key,) for key in chosen])
    db.execute("DELETE FROM functions WHERE id NOT IN (SELECT function FROM results)")
    db.execute("COMMIT")  # before the files go, as a row must have its file
    files.sweep([key for (key,) in db.execute("SELECT key FROM results WHERE data IS NULL")])
    db.execute("VACUUM")
    return len(chosen)


def _chosen(db: sqlite3.Connection, what: Pruning) -> list[bytes]:
    # One that was killed may have taken results without having written that down.
    (latest,) = db.execute("SELECT coalesce(max(id), 0) FROM runs WHERE ended IS NOT NULL").fetchone()
    rows = db.execute(
        "SELECT key FROM results JOIN functions ON function = functions.id "
        "WHERE (used < ? OR NOT ?) AND (? IS NULL OR name = ?) AND made <= ?",
        (latest, what.unused, what.function, what.function, time.time() - what.age),
    )
    return [key for (key,) in rows]


@contextlib.contextmanager
def _reading(path: str) -> Iterator[sqlite3.Connection]:
    db = connect(path)  # for writing, since a reader would leave the log behind
    try:
        yield db
    except sqlite3.Error as error:
        raise ResumeFileError(f"{path} can't be read: {error}") from error
    finally:
        db.close()


def _in_use(path: str) -> bool:
    """Whether another process holds its lock; without taking it, which would keep a program from starting."""
    try:
        fd = os.open(f"{os.path.realpath(path)}-lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        asked = struct.pack("hhqqi4x", F_WRLCK, os.SEEK_SET, 0, 0, 0)
        return bool(struct.unpack("hhqqi4x", fcntl(fd, F_GETLK, asked))[0] != F_UNLCK)
    finally:
        os.close(fd)
