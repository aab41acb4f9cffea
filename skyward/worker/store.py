"""Large buffers on a node, by the digest of their content: written once, memory-mapped by any number of slots.

They lie in shared memory where there is room, else in the temporary folder, else they stay in the agent's memory and go
to slots as ordinary buffers. Only the agent writes here; it does not look into them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from skyward.core.shared import open_shared
from skyward.core.wire import Filled

__all__ = ["Store", "sweep"]

_MARGIN = 64 * 1024 * 1024  # bytes of shared memory that are left to others
_STEP = 4 * 1024 * 1024  # bytes written at a time: some milliseconds


class Store:
    """The blobs of one node.

    Parameters
    ----------
    folders
        Where to make private folders, best first; None: shared memory, then the temporary folder.
    """

    def __init__(self, folders: Iterable[str] | None = None) -> None:
        self._parents = list(folders) if folders is not None else _parents()
        self._folders: dict[str, str] = {}  # parent -> our folder in it
        self._locks: list[int] = []
        self._paths: dict[bytes, str] = {}
        self._most_adopted = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4
        self._adopted: dict[bytes, int] = {}  # those whose file is another process's: our descriptor keeps it
        self._memory: dict[bytes, Filled] = {}
        self._users: Counter[bytes] = Counter()
        self._forgotten: set[bytes] = set()
        self._coming: set[bytes] = set()  # being written
        self.problem: str | None = None
        """Why the last blob could not be written to a file."""

    def __repr__(self) -> str:
        files, adopted = len(self._paths) - len(self._adopted), len(self._adopted)
        return f"<Store of {files} files, {adopted} adopted, {len(self._memory)} in memory>"

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._paths or digest in self._memory

    def put(self, digest: bytes, data: Filled) -> str | None:
        """Keep a blob; returns why it stays in memory, if it does."""
        for _ in self.write(digest, data):
            pass
        return None if digest in self._paths else self.problem

    def write(self, digest: bytes, data: Filled) -> Iterator[None]:
        """Keep a blob, a few megabytes per step; it is there when the iterator ends."""
        self._forgotten.discard(digest)
        if digest in self:
            return
        self._coming.add(digest)
        yield from self._place(digest, data)
        self._coming.discard(digest)
        if digest in self._forgotten and not self._users[digest]:
            self._remove(digest)

    def _place(self, digest: bytes, data: Filled) -> Iterator[None]:
        problems: list[str] = []
        for parent in self._parents:
            try:
                if parent == "/dev/shm":  # noqa: S108 - there the kernel would kill instead of refusing
                    room = os.statvfs(parent)
                    if room.f_bavail * room.f_frsize < len(data) + _MARGIN:
                        raise OSError(errno.ENOSPC, "no room in", parent)
                path = f"{self._folder(parent)}/{digest.hex()}"
                yield from _write(path, data)
            except OSError as error:
                problems.append(str(error))
                continue
            self._paths[digest] = path
            return
        self.problem = "; ".join(problems)
        self._memory[digest] = data

    def adopt(self, digest: bytes, path: str, inode: int, size: int) -> None:
        """Keep a blob that is another process's `SharedFile`. OSError if it can't be opened."""
        self._forgotten.discard(digest)
        if digest not in self:
            if len(self._adopted) >= self._most_adopted:
                raise OSError(errno.EMFILE, "too many files of other processes")
            fd = self._adopted[digest] = open_shared(path, inode, size)
            self._paths[digest] = f"/proc/{os.getpid()}/fd/{fd}"

    def shelf(self) -> str | None:
        """A folder for what slots leave to the owner, the first that can be had."""
        for parent in self._parents:
            with contextlib.suppress(OSError):
                return self._folder(parent)
        return None

    def find(self, digest: bytes) -> str | Filled:
        """The path of a blob, or its bytes if it has no file; KeyError if it is not here."""
        return self._paths[digest] if digest in self._paths else self._memory[digest]

    def use(self, digests: Iterable[bytes]) -> None:
        """A task needs these: they stay until `free`, also when they are forgotten."""
        self._users.update(digests)

    def free(self, digests: Iterable[bytes]) -> None:
        """A task does not need these any more."""
        for digest in digests:
            self._users[digest] -= 1
            if self._users[digest] <= 0:
                del self._users[digest]
                if digest in self._forgotten:
                    self._remove(digest)

    def forget(self, digests: Iterable[bytes]) -> None:
        """Nobody will ask for these again; those in use go later."""
        for digest in digests:
            if self._users[digest] > 0 or digest in self._coming:
                self._forgotten.add(digest)
            else:
                self._remove(digest)

    def close(self) -> None:
        """Remove everything."""
        for folder in self._folders.values():
            shutil.rmtree(folder, ignore_errors=True)
        for fd in (*self._locks, *self._adopted.values()):
            os.close(fd)
        self._adopted.clear()
        self._folders.clear()
        self._locks.clear()
        self._paths.clear()
        self._memory.clear()

    def _remove(self, digest: bytes) -> None:
        self._forgotten.discard(digest)
        self._memory.pop(digest, None)
        path = self._paths.pop(digest, None)
        if digest in self._adopted:
            os.close(self._adopted.pop(digest))
        elif path is not None:
            with contextlib.suppress(OSError):
                Path(path).unlink()

    def _folder(self, parent: str) -> str:
        if parent not in self._folders:
            _sweep(parent)
            folder = tempfile.mkdtemp(prefix=_prefix(), dir=parent)  # mode 0700
            self._locks.append(_lock(folder))
            self._folders[parent] = folder
        return self._folders[parent]


def _write(path: str, data: Filled) -> Iterator[None]:
    """Write under another name and rename, so that no half-written blob is ever found."""
    part = f"{path}.part"
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        view, done = memoryview(data), 0
        while done < len(view):
            done += os.write(fd, view[done : done + _STEP])
            if done < len(view):
                yield
    except BaseException:
        Path(part).unlink()
        raise
    finally:
        os.close(fd)
    Path(part).rename(path)


def _lock(folder: str) -> int:
    """Hold a lock in the folder while we live; it tells living stores from those of killed agents."""
    fd = os.open(f"{folder}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return fd


def _parents() -> list[str]:
    return ["/dev/shm", tempfile.gettempdir()]  # noqa: S108 - private folders are made there


def _prefix() -> str:
    return f"skyward-store-{os.getuid()}-"


def sweep() -> None:
    """Remove the stores of agents that were killed."""
    for parent in _parents():
        _sweep(parent)


def _sweep(parent: str) -> None:
    with contextlib.suppress(OSError):
        for folder in Path(parent).glob(f"{_prefix()}*"):
            if folder.lstat().st_uid != os.getuid():
                continue
            try:  # one without a lock file is just being made by another agent
                fd = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            except BlockingIOError:
                pass
            finally:
                os.close(fd)
