"""The user's own code on a node: each version of it laid out as a folder, from the bundles that the owner sends.

A version's folder has the files that its manifest names, and nothing in it ever changes, so a slot that imports late
gets what the others got. Files that an earlier version has are linked, with what Python has compiled of them; the
manifest and the bundles are described in core/code/bundles.py.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Collection

import msgpack

from skyward.core.protocol.messages import Code
from skyward.core.protocol.wire import Buffer
from skyward.worker.blob_store import Store

__all__ = ["CodeFolders", "enter"]


class CodeFolders:
    """The versions that the owner has announced.

    Parameters
    ----------
    folder
        Where to make their folders; one that only this user can enter.
    store
        Where the bundles arrive.
    unblock
        Called with each task whose version is there now.
    refuse
        Called with each task whose version can't be laid out, and why.
    """

    def __init__(
        self,
        folder: str,
        store: Store,
        unblock: Callable[[int], object],
        refuse: Callable[[int, str], object],
    ) -> None:
        self.folder = folder
        self._store = store
        self._unblock = unblock
        self._refuse = refuse
        self._coming: dict[int, tuple[Code, bytes]] = {}
        self._ready: dict[int, str] = {}  # why it can't be used; empty if it can
        self._tasks: dict[int, list[int]] = {}  # that wait, by version
        self._waits: dict[int, int] = {}  # the version that a task waits for
        self._files: dict[tuple[bytes, int, int, bool], str] = {}  # digest, offset, size, executable -> a file

    def __repr__(self) -> str:
        return f"<CodeFolders, versions {sorted(self._ready)}, {len(self._coming)} coming>"

    def use(self, task: int, version: int) -> bool:
        """Whether a new task's version is there; if not, the task is unblocked or refused later."""
        if self._ready.get(version) == "":
            return True
        self._tasks.setdefault(version, []).append(task)
        self._waits[task] = version
        return False

    def lacks(self, task: int) -> bool:
        """Whether the task waits for its version."""
        return task in self._waits

    def refusal(self, version: int) -> str:
        """Why a version can't be used; empty if it can, or is still to come."""
        return self._ready.get(version, "")

    def release(self, task: int) -> None:
        """The task no longer needs its version."""
        version = self._waits.pop(task, None)
        if version is not None:
            self._tasks[version].remove(task)

    def announced(self, code: Code, manifest: Buffer) -> None:
        """Take note of a version whose bundles may still be on their way; `arrived` must follow."""
        self._coming[code.version] = code, bytes(manifest)

    def arrived(self, version: int) -> Collection[bytes]:
        """Lay a version out, as all its bundles are here; return their digests, which are no longer needed."""
        code, manifest = self._coming.pop(version)
        try:
            self._lay_out(code, msgpack.unpackb(manifest))
            problem = ""
        except (OSError, ValueError) as error:
            shutil.rmtree(f"{self.folder}/{version}.part", ignore_errors=True)
            problem = f"the node can't lay out your code: {error}"
        self._ready[version] = problem
        for task in self._tasks.pop(version, []):
            del self._waits[task]
            if problem:
                self._refuse(task, problem)
            else:
                self._unblock(task)
        return code.bundles

    def _lay_out(self, code: Code, entries: list[tuple[bytes, bool, int, int, int]]) -> None:
        final = os.fsencode(f"{self.folder}/{code.version}")
        part = final + b".part"
        os.makedirs(part, mode=0o700)
        made = {part}
        placed: dict[tuple[bytes, int, int, bool], bytes] = {}
        with contextlib.ExitStack() as opened:
            sources = [opened.enter_context(_Bundle(self._store.find(name))) for name in code.bundles]
            for path, executable, bundle, offset, size in entries:
                if path.startswith(b"/") or b".." in path.split(b"/"):
                    raise ValueError(f"a file can't be called {path!r}")
                target = os.path.join(part, path)
                if (parent := os.path.dirname(target)) not in made:
                    os.makedirs(parent, exist_ok=True)
                    made.add(parent)
                key = code.bundles[bundle], offset, size, executable
                if not _link(self._files.get(key), target):
                    _write(target, sources[bundle].read(offset, size), executable)
                placed[key] = os.path.join(final, path)
        os.rename(part, final)
        self._files.update({key: os.fsdecode(path) for key, path in placed.items()})


class _Bundle(contextlib.AbstractContextManager["_Bundle"]):
    """A bundle in the store, to read from."""

    def __init__(self, found: str | bytearray) -> None:
        self._memory = None if isinstance(found, str) else memoryview(found)
        self._fd = os.open(found, os.O_RDONLY | os.O_CLOEXEC) if isinstance(found, str) else -1

    def read(self, offset: int, size: int) -> Buffer:
        if self._memory is not None:
            return self._memory[offset : offset + size]
        data = os.pread(self._fd, size, offset)
        if len(data) < size:
            raise ValueError("a bundle is shorter than its manifest says")
        return data

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def _write(path: bytes, data: Buffer, executable: bool) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o700 if executable else 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    finally:
        os.close(fd)


def _link(old: str | None, new: bytes) -> bool:
    """Give a file of an earlier version its place in a new one, with what Python has compiled; False if it can't."""
    if old is None:
        return False
    try:
        os.link(os.fsencode(old), new)
    except OSError:
        return False
    if old.endswith(".py"):
        name = os.fsdecode(new)
        compiled = importlib.util.cache_from_source(old)
        with contextlib.suppress(OSError):  # it is compiled again
            if os.path.exists(compiled):
                target = importlib.util.cache_from_source(name)
                os.makedirs(os.path.dirname(target), exist_ok=True)
                os.link(compiled, target)
    return True


def enter(folder: str) -> None:
    """Make a version's modules the ones that this process imports.

    A module of the node's that has the same name no longer counts, as on the driver, even if it was preloaded. What was
    imported from an earlier version stays: it is the same here, and this one has more.

    Parameters
    ----------
    folder
        The version's, beside those of others.
    """
    versions = os.path.join(os.path.dirname(folder), "")
    sys.path[:] = [folder, *(entry for entry in sys.path if not entry.startswith(versions))]
    importlib.invalidate_caches()
    tops = {entry.partition(".")[0] for entry in os.listdir(folder)}
    for name in [name for name in sys.modules if name.partition(".")[0] in tops]:
        file = getattr(sys.modules[name], "__file__", None)
        if isinstance(file, str) and not file.startswith(versions):
            del sys.modules[name]
