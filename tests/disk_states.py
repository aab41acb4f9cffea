"""What a disk may hold after a loss of power, according to what a program has asked the kernel for.

`Recording` has all calls by which a program and its children changed a folder, in the order in which strace saw them.
Of the kernel it is assumed only what it promises: what was written to a file before an fsync began is on the disk once
that has returned, and so are a folder's names. Of all else, any part may be there, whatever came after it: names
without content, content without names, single sectors of a write, or zeros where it was to go.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["STRACE", "Choice", "Recording", "choices", "record"]

STRACE = shutil.which("strace")
_SECTOR = 512
_WRITES = ("write", "pwrite64")
_SYNCS = ("fsync", "fdatasync")
_NAMES = ("rename", "unlink", "mkdir", "rmdir")
_OTHERS = (  # which would change files, too, and are not expected
    "creat,open,writev,pwritev,pwritev2,truncate,fallocate,renameat,renameat2,unlinkat,mkdirat,link,linkat,symlink,"
    "symlinkat,copy_file_range,sendfile,msync"
)
_LINE = re.compile(r"(\d+) +(?:<\.\.\. )?([a-z0-9_]+)(.*)", re.DOTALL)
_UNFINISHED = " <unfinished ...>"
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_FILE = re.compile(r"(\d+)<((?:\\x[0-9a-f]{2})*)>")
_NEVER = 1 << 60


@dataclass
class Change:
    """Something that a file or a folder was asked for; of a folder, an entry is made or removed.

    Attributes
    ----------
    began
        The number of the line where the call began.
    safe
        That where a sync returned that covers it.
    """

    began: int
    ended: int
    offset: int = 0
    data: bytes = b""
    size: int | None = None  # of a file that is cut or extended
    entries: dict[str, File | Folder | None] = field(default_factory=dict)
    safe: int = _NEVER


@dataclass
class File:
    """One file, whatever it is called."""

    changes: list[Change] = field(default_factory=list)


@dataclass
class Folder:
    """A folder."""

    changes: list[Change] = field(default_factory=list)
    now: dict[str, File | Folder] = field(default_factory=dict)


Choice = Callable[[Change], "bool | random.Random"]
"""Whether something that no sync has covered is on the disk; by chance, some of its sectors are, or zeros."""


class Recording:
    """What happened in a folder.

    Parameters
    ----------
    log
        What strace has written.
    place
        The folder.
    """

    def __init__(self, log: Path, place: Path) -> None:
        self._place = os.path.realpath(place)
        self._root = Folder()
        self._positions: dict[tuple[str, str], int] = {}
        self._open: dict[str, tuple[int, str]] = {}  # threads -> their calls that have begun
        self.printed: list[tuple[int, bytes]] = []
        """What was written to standard output, each with the number of its line."""
        self.moments: list[int] = []
        """Numbers of the lines after which the folder had changed, or was safer than before."""
        self.barriers: list[int] = []
        """Those of them after which it was safer, or had other names."""
        with log.open() as lines:
            for number, line in enumerate(lines):
                self._read(number, line)

    def _read(self, number: int, line: str) -> None:
        found = _LINE.match(line)
        if found is None:
            return  # an exit or a signal
        thread, name, rest = found.groups()
        if rest.rstrip("\n").endswith(_UNFINISHED):
            self._open[thread] = number, rest.rstrip("\n").removesuffix(_UNFINISHED)
            return
        began = number
        if rest.startswith(" resumed>"):
            began, first = self._open.pop(thread)
            rest = first + rest.removeprefix(" resumed>")
        result = rest.rpartition(" = ")[2].split("<")[0].split()[0]
        if result.startswith(("-", "?")):
            return
        self._apply(name, rest, result, Change(began, number))

    def _apply(self, name: str, rest: str, result: str, change: Change) -> None:
        found = _FILE.search(rest.rpartition(" = ")[2] if name == "openat" else rest)  # the first is all that matters
        fd, path = (found[1], _text(found[2]).decode("utf-8", "replace")) if found is not None else ("", "")
        if name == "write" and fd == "1" and not path.startswith(self._place):
            self.printed.append((change.ended, _string(rest)))
        if name in _NAMES:
            paths = [self._inside(_text(text).decode("utf-8", "replace")) for text in _STRING.findall(rest)]
            if known := [path for path in paths if path is not None]:
                self._rename(name, known, change)
            return
        where = self._inside(path)
        if where is None:
            return
        if name == "openat":
            self._opened(rest, where, fd, change)
        elif name in _WRITES:
            data = _string(rest)[: int(result)]
            at = int(rest.rpartition(")")[0].rpartition(", ")[2]) if name == "pwrite64" else self._positions[where, fd]
            self._positions[where, fd] = at + len(data)
            change.offset, change.data = at, data
            self._file(where).changes.append(change)
        elif name == "ftruncate":
            change.size = int(rest.rpartition(")")[0].rpartition(", ")[2])
            self._file(where).changes.append(change)
        elif name in _SYNCS:
            for each in self._find(where).changes:
                if each.ended < change.began:
                    each.safe = min(each.safe, change.ended)
            self.barriers.append(change.ended)
        elif name != "mmap" or ("PROT_WRITE" in rest and "MAP_SHARED" in rest):
            raise AssertionError(f"{name} of {where} is not expected")
        self.moments.append(change.ended)

    def _opened(self, rest: str, where: str, fd: str, change: Change) -> None:
        folder, leaf = self._folder_of(where)
        self._positions[where, fd] = 0
        if "O_CREAT" in rest and leaf and leaf not in folder.now:
            file = folder.now[leaf] = File()
            change.entries[leaf] = file
            folder.changes.append(change)
        elif "O_TRUNC" in rest:
            change.size = 0
            self._file(where).changes.append(change)

    def _rename(self, name: str, paths: Sequence[str], change: Change) -> None:
        folder, leaf = self._folder_of(paths[0])
        if name == "mkdir":
            folder.now[leaf] = Folder()
            change.entries[leaf] = folder.now[leaf]
        else:
            moved = folder.now.pop(leaf)
            change.entries[leaf] = None
            if name == "rename":
                other, leaf = self._folder_of(paths[1])
                assert other is folder, paths
                change.entries[leaf] = folder.now[leaf] = moved
        folder.changes.append(change)
        self.moments.append(change.ended)
        self.barriers.append(change.ended)

    def _inside(self, path: str) -> str | None:
        """Its name in the folder; None if it is elsewhere, or memory that SQLite's processes share."""
        if not f"{path}/".startswith(f"{self._place}/") or path.endswith("-shm"):
            return None
        return os.path.relpath(path, self._place)

    def _folder_of(self, where: str) -> tuple[Folder, str]:
        here = self._root
        *folders, leaf = [part for part in where.split("/") if part != "."] or [""]
        for part in folders:
            found = here.now[part]
            assert isinstance(found, Folder)
            here = found
        return here, leaf

    def _find(self, where: str) -> File | Folder:
        folder, leaf = self._folder_of(where)
        return folder.now[leaf] if leaf else folder

    def _file(self, where: str) -> File:
        found = self._find(where)
        assert isinstance(found, File), where
        return found

    def lay_out(self, place: Path, moment: int, choice: Choice) -> None:
        """Make a folder as it may be after a loss of power.

        Parameters
        ----------
        place
            The folder, which is emptied.
        moment
            The number of the last line that happened.
        choice
            What of the rest is there.
        """
        shutil.rmtree(place, ignore_errors=True)
        _lay_out(self._root, place, moment, choice)


def _lay_out(folder: Folder, place: Path, moment: int, choice: Choice) -> None:
    place.mkdir(0o700)
    names: dict[str, File | Folder] = {}
    for change, taken in _there(folder.changes, moment, choice):
        if taken is True or (taken is not False and taken.random() < 0.5):
            names |= {name: thing for name, thing in change.entries.items() if thing is not None}
            for name in [name for name, thing in change.entries.items() if thing is None]:
                names.pop(name, None)
    for name, thing in names.items():
        if isinstance(thing, Folder):
            _lay_out(thing, place / name, moment, choice)
        else:
            (place / name).write_bytes(_content(thing, moment, choice))
            (place / name).chmod(0o600)


def _there(changes: Sequence[Change], moment: int, choice: Choice) -> Iterator[tuple[Change, bool | random.Random]]:
    for change in changes:
        if change.began <= moment:
            yield change, change.safe <= moment or choice(change)


def _content(file: File, moment: int, choice: Choice) -> bytearray:
    content = bytearray()
    for change, taken in _there(file.changes, moment, choice):
        if taken is False:
            continue
        if change.size is not None:
            if taken is True or taken.random() < 0.5:
                del content[change.size :]
                content.extend(bytes(change.size - len(content)))
            continue
        start, end = change.offset, change.offset + len(change.data)
        content.extend(bytes(max(0, end - len(content))))  # the size may be there without the content
        while start < end:
            until = min(end, start - start % _SECTOR + _SECTOR) if taken is not True else end
            if taken is True or taken.random() < 0.5:
                content[start:until] = change.data[start - change.offset : until - change.offset]
            start = until
    return content


def choices(chance: random.Random) -> dict[str, Choice]:
    """What may be there of what no sync has covered."""

    def is_name(change: Change) -> bool:
        return bool(change.entries)

    def some(_: Change) -> bool | random.Random:
        return chance.choice((True, False, chance))

    return {
        "nothing": lambda _: False,
        "everything": lambda _: True,
        "names": is_name,
        "content": lambda change: not is_name(change),
        "sectors": lambda change: True if is_name(change) else chance,
        "some": some,
    }


def record(command: Sequence[str], place: Path, log: Path, environment: dict[str, str]) -> Recording:
    """Run a program in an empty folder, and return what it did there.

    Parameters
    ----------
    command
        The program and its arguments.
    place
        The folder.
    log
        Where strace writes.
    environment
        The program's.
    """
    assert STRACE is not None
    wanted = ",".join(("openat", *_WRITES, "ftruncate", *_SYNCS, *_NAMES, "mmap", _OTHERS))
    strace = [STRACE, "-f", "-y", "-xx", "-s", "100000000", "--seccomp-bpf", "-e", "signal=none"]
    with log.with_suffix(".printed").open("wb") as printed:  # which may lose lines when the program kills itself
        subprocess.run(
            [*strace, "-e", f"trace={wanted}", "-o", str(log), *command],
            cwd=place, env=environment, stdout=printed, check=True,
        )  # fmt: skip
    return Recording(log, place)


def _text(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def _string(rest: str) -> bytes:
    found = _STRING.search(rest)
    assert found is not None
    return _text(found[1])
