"""What was written in a folder and is not saved yet, found by scanning all its files."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias

from skyward.worker.writers import Identity, Writer, find_writers, has_writers

__all__ = ["Changed", "UnsavedFiles"]

_TICK = 0.012  # seconds within which two changes may get the same timestamp; the kernel's clock is this coarse
_PATIENCE = 5  # times that a file may have changed just before, until it counts as open for writing
_PIECE = 1 << 20  # bytes


class _Stamp(NamedTuple):
    device: int
    inode: int
    size: int
    modified: int
    changed: int  # in nanoseconds, as the time before; users can't set this one


@dataclass(slots=True)
class Changed:
    """A file that is to be saved.

    Attributes
    ----------
    name
        Below the folder.
    path
        Where its content is: the file itself, or a copy of one that may go on changing.
    """

    name: str
    path: str
    stamp: _Stamp | None  # None: of a file that was open for writing nobody knows whether it is the same later
    digest: bytes = b""


@dataclass(slots=True)
class _Look:
    """What one scan of the folder has found."""

    files: dict[str, _Stamp] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


_Busy: TypeAlias = dict[str, tuple[Identity, "bool | None"]]


class UnsavedFiles:
    """The files of a folder. Methods block; one is called at a time.

    What is there at first counts as saved.

    Parameters
    ----------
    folder
        The folder.
    copies
        A folder of the agent's own on the same disk, which exists.
    """

    def __init__(self, folder: str, copies: str) -> None:
        self._folder = folder
        self._copies = copies
        self._digests: dict[str, bytes] = {}  # of files that were saved while they were open for writing
        self._saved = self._look().files

    def __repr__(self) -> str:
        return f"<UnsavedFiles in {self._folder}, {len(self._saved)} saved>"

    def find(self, groups: frozenset[int] | None) -> tuple[list[Changed], list[str]]:
        """Find what has changed, and what can't be saved in a bucket, with the reason.

        Parameters
        ----------
        groups
            Process groups whose tasks have ended. A file that other processes only write to, from its beginning, is
            left out: it is theirs, and not complete. None: nothing is left out.
        """
        look = self._look()
        if len(self._saved) > len(look.files):  # some were removed
            self._saved = {name: stamp for name, stamp in self._saved.items() if name in look.files}
        changed = [name for name, stamp in look.files.items() if self._saved.get(name) != stamp]
        if not changed:
            return [], look.problems
        busy: _Busy = {}
        found = []
        for name in changed:
            try:
                if (each := self._unless_busy(name, busy)) is not None:
                    found.append(each)
            except FileNotFoundError:
                continue  # it was removed or renamed
            except OSError as error:
                look.problems.append(f"{name}: {error.strerror}")
        if busy:
            self._copy_busy(busy, groups, found, look.problems)
        return found, look.problems

    def saved(self, file: Changed) -> None:
        """Record that a file was saved."""
        if file.stamp is not None:
            self._saved[file.name] = file.stamp
            self._digests.pop(file.name, None)
        else:
            self._digests[file.name] = file.digest
        self.drop(file)

    def drop(self, file: Changed) -> None:
        """Remove a copy."""
        if file.stamp is None:
            Path(file.path).unlink(missing_ok=True)

    def copy(self, file: Changed) -> Changed | None:
        """Copy a file that changes while it is saved; None if it has not changed or is gone.

        Raises
        ------
        OSError
            It can't be written, as on a full disk.
        """
        try:
            if file.stamp is None or _stamp(os.stat(file.path)) == file.stamp:  # noqa: PTH116 - millions of calls
                return None
            return self._copied(file.name)
        except FileNotFoundError:
            return None

    def is_there(self, file: Changed) -> bool:
        """Whether a file that was found is still there."""
        return Path(file.path).exists()

    # --- looking ---

    def _look(self) -> _Look:
        look = _Look()
        if not Path(self._folder).is_dir():
            look.problems.append("the folder itself was removed")
            return look
        folders = [""]
        while folders:
            prefix = folders.pop()
            try:
                with os.scandir(f"{self._folder}/{prefix}") as entries:
                    folders += self._sort(entries, prefix, look)
            except FileNotFoundError:
                continue
            except OSError as error:
                look.problems.append(f"{prefix}: {error.strerror}")
        return look

    def _sort(self, entries: Iterator[os.DirEntry[str]], prefix: str, look: _Look) -> list[str]:
        """Enter the files of a folder, and return the folders."""
        folders = []
        for entry in entries:
            name = f"{prefix}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                folders.append(f"{name}/")
                continue
            try:
                status = entry.stat()
            except FileNotFoundError:
                if entry.is_symlink() and Path(entry.path).is_symlink():
                    look.problems.append(f"{name}: a link that leads nowhere, which a bucket can't hold")
                continue
            if stat.S_ISDIR(status.st_mode):
                look.problems.append(f"{name}: a link to a folder, which a bucket can't hold")
            elif not _is_text(name):
                look.problems.append(f"{name!a}: its name is not UTF-8, as names in buckets are")
            elif stat.S_ISREG(status.st_mode):  # sockets and pipes have no content
                look.files[name] = _stamp(status)
        return folders

    # --- files that are open for writing ---

    def _unless_busy(self, name: str, busy: _Busy) -> Changed | None:
        """Return a file that nobody writes, and that nobody can change from now on without a change of its stamp."""
        path = f"{self._folder}/{name}"
        status, written = os.stat(path), has_writers(path)  # noqa: PTH116 - as above
        for _ in range(_PATIENCE):
            if written is not False or (left := _age(status)) >= _TICK:
                break
            time.sleep(_TICK - left)
            status, written = os.stat(path), has_writers(path)  # noqa: PTH116 - as above
        else:
            written = True  # or might as well
        if written is False:
            return Changed(name, path, _stamp(status))
        busy[name] = (status.st_dev, status.st_ino), written
        return None

    def _copy_busy(self, busy: _Busy, groups: frozenset[int] | None, found: list[Changed], problems: list[str]) -> None:
        """Copy files that somebody may be writing, unless none of their content is complete."""
        writers = find_writers({identity for identity, _ in busy.values()})
        for name, (identity, written) in busy.items():
            theirs = writers.get(identity, [])
            if theirs and groups is not None and _is_incomplete(theirs, groups):
                continue
            try:
                if theirs or written:
                    copied = self._copied(name)
                    if self._digests.get(name) != copied.digest:
                        found.append(copied)
                    else:
                        self.drop(copied)
                else:  # the file system can't tell, and no process has it open
                    path = f"{self._folder}/{name}"
                    found.append(Changed(name, path, _stamp(os.stat(path))))  # noqa: PTH116 - as above
            except FileNotFoundError:
                continue
            except OSError as error:
                problems.append(f"{name}: it is being written, and can't be copied: {error.strerror}")

    def _copied(self, name: str) -> Changed:
        target = f"{self._copies}/{hashlib.sha256(name.encode()).hexdigest()}"
        digest = hashlib.sha256()
        try:
            with Path(f"{self._folder}/{name}").open("rb") as source, Path(target).open("wb") as copy:
                while piece := source.read(_PIECE):
                    digest.update(piece)
                    copy.write(piece)
        except OSError:
            Path(target).unlink(missing_ok=True)
            raise
        return Changed(name, target, None, digest.digest())


def _stamp(status: os.stat_result) -> _Stamp:
    return _Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _age(status: os.stat_result) -> float:
    """Seconds since a file was modified, as far as the clocks agree."""
    return abs(time.time_ns() - status.st_ctime_ns) / 1e9


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_incomplete(writers: list[Writer], groups: frozenset[int]) -> bool:
    """Whether all that is in a file comes from processes that have not ended their tasks."""
    return all(writer.is_new and writer.group not in groups for writer in writers)
