"""The resume file: an SQLite database in WAL mode, and the files of large results beside it.

``synchronous=FULL`` makes each commit wait until the log is on the disk, so what has been committed survives a power
failure; with ``NORMAL``, the default of many programs for WAL, the latest commits would not. A commit takes as long as
the disk does, and covers all results that are waiting for one.

A new file is made under another name and renamed when it is complete, so that no half-made one is ever found.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import stat
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from skyward.core.errors import ResumeFileError
from skyward.core.resume.file_lock import FileLock
from skyward.core.resume.large_files import LargeFiles, sync_folder
from skyward.core.resume.packing import checksum, pack, unpack

__all__ = ["APPLICATION", "FORMAT", "LARGE_RESULT", "Known", "NewResult", "ResultStore", "connect"]

APPLICATION = 0x736B7972
"""SQLite's application id of a resume file."""

FORMAT = 1
"""Its version."""

LARGE_RESULT = 100_000
"""Bytes from which a result is a file of its own; up to there the database is faster."""

_BESIDE = ("-wal", "-shm", "-journal")  # SQLite's own, by what it adds to a file's name
_ANOTHER = "name another file, which is created if it does not exist"

_TABLES = """
CREATE TABLE runs (
  id INTEGER PRIMARY KEY, began REAL NOT NULL, ended REAL, program TEXT NOT NULL, python TEXT NOT NULL,
  host TEXT NOT NULL, process INTEGER NOT NULL, taken INTEGER NOT NULL DEFAULT 0, stored INTEGER NOT NULL DEFAULT 0);
CREATE TABLE functions (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL, code BLOB NOT NULL, UNIQUE (name, code));
CREATE TABLE results (
  key BLOB NOT NULL UNIQUE, function INTEGER NOT NULL REFERENCES functions, place INTEGER NOT NULL,
  run INTEGER NOT NULL REFERENCES runs, used INTEGER NOT NULL, made REAL NOT NULL, seconds REAL NOT NULL,
  size INTEGER NOT NULL, checksum BLOB NOT NULL, data BLOB);
CREATE INDEX places ON results (function, place);
"""


class NewResult(NamedTuple):
    """A result to be stored.

    Attributes
    ----------
    name, code
        Its function: name, and digest of the code.
    place
        How many calls of that function were submitted before it.
    seconds
        How long it took.
    parts
        Its pickle and out-of-band buffers.
    """

    key: bytes
    name: str
    code: bytes
    place: int
    seconds: float
    parts: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Known:
    """What earlier runs have stored of one function with one state of its code."""

    id: int
    count: int


def connect(path: str) -> sqlite3.Connection:
    """Open a resume file.

    Raises
    ------
    ResumeFileError
        It is not one, is damaged, has another format, or somebody else may have written a part of it.
    """
    for beside in _BESIDE:
        if os.path.lexists(path + beside):
            _check_owner(path + beside)  # SQLite would take it for a part of the file
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    try:
        db = sqlite3.connect(f"file:{quoted}?mode=rw", uri=True, timeout=30, check_same_thread=False)
        db.isolation_level = None  # transactions are begun by hand
        try:
            (application,) = db.execute("PRAGMA application_id").fetchone()
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if application != APPLICATION:
                raise ResumeFileError(f"{path} is not a resume file: {_ANOTHER}")
            if version != FORMAT:
                raise ResumeFileError(
                    f"{path} was written by another version of skyward (format {version}, this one reads {FORMAT}): "
                    "use that version, or name another file"
                )
            db.execute("SELECT count(*) FROM runs, functions LIMIT 1").fetchone()
        except BaseException:
            db.close()
            raise
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorname == "SQLITE_NOTADB":
            raise ResumeFileError(f"{path} is not a resume file: {_ANOTHER}") from error
        raise ResumeFileError(f"{path} can't be opened: {error}. If it is damaged, {_ANOTHER}") from error
    return db


class ResultStore:
    """The results of one resume file, for one pool. Thread-safe.

    Parameters
    ----------
    path
        Absolute path of the file, which is created if it does not exist.

    Raises
    ------
    ResumeFileError
        Another pool or program uses the file; it is not a resume file, is damaged, or has another format; it belongs to
        somebody else, or others may write to it; or its folder is missing or can't be written to.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._lock_file = FileLock(path)
        except OSError as error:
            raise ResumeFileError(f"resume={path!r}: {error.strerror} ({error.filename})") from error
        self._reading = threading.Lock()  # guards _reader
        self._writing = threading.Lock()  # guards _writer, _functions, and the order of files and rows
        try:
            self._open()
        except BaseException:
            self._lock_file.release()
            raise

    def __repr__(self) -> str:
        return f"<ResultStore {self.path}>"

    def _open(self) -> None:
        try:
            if not os.path.exists(self.path):
                _make(self.path)
            self._identity = _check_owner(self.path)
        except OSError as error:
            raise ResumeFileError(f"resume={self.path!r} can't be used: {error}") from error
        self._files = LargeFiles(self.path)
        if os.path.exists(self._files.folder):
            _check_owner(self._files.folder)
        self._writer = connect(self.path)
        try:
            self._writer.execute("PRAGMA synchronous=FULL")
            self._functions = {
                (name, code): id for id, name, code in self._writer.execute("SELECT id, name, code FROM functions")
            }
            counts = dict(self._writer.execute("SELECT function, count(*) FROM results GROUP BY function"))
            self.known: dict[str, dict[bytes, Known]] = {}
            """What earlier runs have stored, by the names of functions and the digests of their code."""
            for (name, code), id in self._functions.items():
                if counts.get(id):
                    self.known.setdefault(name, {})[code] = Known(id, counts[id])
            last = self._writer.execute("SELECT python FROM runs ORDER BY id DESC LIMIT 1").fetchone()
            self.last_python: str | None = None if last is None else last[0]
            self.run = self._begin()
            self._reader = connect(self.path)
        except sqlite3.Error as error:
            self._writer.close()
            raise ResumeFileError(f"{self.path} can't be used: {error}. If it is damaged, {_ANOTHER}") from error
        except BaseException:
            self._writer.close()
            raise

    def _begin(self) -> int:
        program = sys.argv[0] if getattr(sys, "argv", None) else ""
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        made = self._writer.execute(
            "INSERT INTO runs (began, program, python, host, process) VALUES (?, ?, ?, ?, ?)",
            (time.time(), program, python, socket.gethostname(), os.getpid()),
        )
        assert made.lastrowid is not None
        return made.lastrowid

    # --- reading ---

    def get(self, key: bytes) -> tuple[list[memoryview], float] | None:
        """Return the pickle and the buffers of a stored result, and the seconds it took; None if there is none.

        Raises
        ------
        ValueError, OSError, sqlite3.Error
            It is damaged, or its file is missing.
        """
        with self._reading:
            row = self._reader.execute("SELECT data, checksum, seconds FROM results WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        data = self._files.read(key) if row[0] is None else bytearray(row[0])
        if checksum(key, [data]) != row[1]:
            raise ValueError("a stored result is not what was written")
        return unpack(data), row[2]

    def has_place(self, function: int, place: int) -> bool:
        """Whether an earlier run has stored the result of the call of a function at that place."""
        with self._reading:
            found = self._reader.execute(
                "SELECT 1 FROM results WHERE function = ? AND place = ? AND run < ? LIMIT 1",
                (function, place, self.run),
            )
            return found.fetchone() is not None

    # --- writing ---

    def put(self, rows: Sequence[NewResult], used: Iterable[bytes] = ()) -> None:
        """Store results; when this returns, they survive a power failure.

        Parameters
        ----------
        rows
            The results.
        used
            Keys of results of earlier runs that this one has taken.

        Raises
        ------
        OSError, sqlite3.Error
            They can't be stored, and none of them is.
        """
        with self._writing:
            self._check_there()
            made, large = time.time(), False
            values = []
            for row in rows:
                pieces = pack(row.parts)
                size = sum(memoryview(piece).nbytes for piece in pieces)
                is_large = size >= LARGE_RESULT
                if is_large:
                    self._files.write(row.key, pieces)
                    large = True
                data = None if is_large else b"".join(pieces)
                values.append((row, checksum(row.key, pieces), size, data))
            if large:
                self._files.sync()
            with self._transaction():
                self._insert(values, made, used)

    def _insert(
        self, values: Sequence[tuple[NewResult, bytes, int, bytes | None]], made: float, used: Iterable[bytes]
    ) -> None:
        run = self.run, self.run
        self._writer.executemany(
            "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (row.key, self._function(row.name, row.code), row.place, *run, made, row.seconds, size, check, data)
                for row, check, size, data in values
            ],
        )
        taken = [(self.run, key) for key in used]
        if taken:
            self._writer.executemany("UPDATE results SET used = ? WHERE key = ?", taken)
        self._writer.execute(
            "UPDATE runs SET taken = taken + ?, stored = stored + ? WHERE id = ?", (len(taken), len(values), self.run)
        )

    @contextlib.contextmanager
    def _transaction(self) -> Any:
        functions = dict(self._functions)
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._writer.execute("COMMIT")
        except BaseException:
            self._functions = functions
            with contextlib.suppress(sqlite3.Error):  # SQLite has rolled back already where the disk is full
                self._writer.execute("ROLLBACK")
            raise

    def _function(self, name: str, code: bytes) -> int:
        known = self._functions.get((name, code))
        if known is None:
            made = self._writer.execute("INSERT INTO functions (name, code) VALUES (?, ?)", (name, code))
            assert made.lastrowid is not None
            known = self._functions[name, code] = made.lastrowid
        return known

    def _check_there(self) -> None:
        """SQLite would go on writing to a file that somebody has removed, and nobody would find it again."""
        now = os.stat(self.path)
        if (now.st_dev, now.st_ino) != self._identity:
            raise FileNotFoundError(f"{self.path} was replaced by another file")

    # --- the end ---

    def close(self, used: Iterable[bytes] = ()) -> None:
        """Record the run's end and close the file. Errors are those of results that are safe, so nothing is lost."""
        with self._writing, self._reading:
            with contextlib.suppress(sqlite3.Error, OSError):
                self._check_there()
                with self._transaction():
                    self._insert([], 0.0, used)
                    self._writer.execute("UPDATE runs SET ended = ? WHERE id = ?", (time.time(), self.run))
            for db in (self._reader, self._writer):
                with contextlib.suppress(sqlite3.Error):  # of its checkpoint: the log stays, and is read the next time
                    db.close()
            self._lock_file.release()


def _make(path: str) -> None:
    """Make an empty resume file, which is there as a whole or not at all."""
    _remove_logs(path)
    new = f"{path}-new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)  # of a process that was killed; we hold the lock
    os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        db = sqlite3.connect(new)
        try:
            (mode,) = db.execute("PRAGMA journal_mode=WAL").fetchone()
            if mode != "wal":
                raise OSError(
                    f"this disk can't have it (SQLite's log is {mode!r}); name a file on a disk of this machine"
                )
            db.executescript(
                f"PRAGMA synchronous=FULL; BEGIN; {_TABLES} PRAGMA application_id={APPLICATION}; "
                f"PRAGMA user_version={FORMAT}; COMMIT;"
            )
        finally:
            db.close()
        os.rename(new, path)
    except (OSError, sqlite3.Error) as error:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise OSError(str(error)) from error
    sync_folder(os.path.dirname(path))


def _remove_logs(path: str) -> None:
    """Remove the log of a killed program whose file has been removed since: SQLite would read it into the new file."""
    left = [path + beside for beside in _BESIDE if os.path.lexists(path + beside)]
    for name in left:
        os.unlink(name)
    if left:  # before there is a new file, also after a power failure
        sync_folder(os.path.dirname(path))


def _check_owner(path: str) -> tuple[int, int]:
    """Check that nobody else can have put anything into a file or folder, whose results are unpickled."""
    found = os.lstat(path) if path.endswith(_BESIDE) else os.stat(path)
    if found.st_uid != os.geteuid():
        raise ResumeFileError(
            f"{path} belongs to user {found.st_uid}: the results in it are pickles, which can run any code when they "
            "are read. Name a file of your own"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ResumeFileError(
            f"{path} can be changed by others: the results in it are pickles, which can run any code when they are "
            f"read. If you trust it, `chmod go-rwx {path}`"
        )
    return found.st_dev, found.st_ino
