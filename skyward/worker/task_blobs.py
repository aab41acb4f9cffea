"""The large arguments of tasks: which blobs have arrived, and which tasks still wait for one."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence

from skyward.core.protocol.messages import Blob, Kept, Run, Share
from skyward.core.protocol.wire import Buffer
from skyward.worker.blob_store import Corrupt, Store

__all__ = ["TaskBlobs"]


class TaskBlobs:
    """Receives blobs into a store, and unblocks the tasks that need them.

    Parameters
    ----------
    store
        Holds the blobs.
    report
        Sends the owner whether a blob arrived.
    warn
        Called once, with why blobs stay in memory.
    unblock
        Called with each task whose last missing blob has arrived.
    """

    def __init__(
        self,
        store: Store,
        report: Callable[[Kept], object],
        warn: Callable[[str], object],
        unblock: Callable[[int], object],
    ) -> None:
        self.store = store
        self.grew: Callable[[], object] = lambda: None
        """Called when a part of a blob has arrived."""
        self.on_chunk: Callable[[bytes, OSError | None], object] = lambda _, __: None
        """Called when a chunk of a folder has arrived, or with why it can't be kept."""
        self._report = report
        self._warn = warn
        self._unblock = unblock
        self._warned = False
        self._missing: dict[int, set[bytes]] = {}  # task -> blobs that it waits for
        self._waiting: dict[bytes, set[int]] = {}  # blob that has not arrived -> tasks that wait for it

    def __repr__(self) -> str:
        return f"<TaskBlobs in {self.store!r}, {len(self._missing)} tasks wait>"

    def use(self, task: int, digests: Collection[bytes]) -> bool:
        """Keep a new task's blobs until `release`; returns whether all of them are here.

        Parameters
        ----------
        task
            Its number, or any other that tells `unblock` who waits.
        digests
            What it needs.
        """
        self.store.use(digests)
        missing = {digest for digest in digests if digest not in self.store}
        if missing:
            self._missing[task] = missing
            for digest in missing:
                self._waiting.setdefault(digest, set()).add(task)
        return not missing

    def lacks(self, task: int) -> bool:
        """Whether the task waits for a blob."""
        return task in self._missing

    def release(self, task: int, digests: Collection[bytes]) -> None:
        """The task no longer needs its blobs."""
        for digest in self._missing.pop(task, ()):
            self._waiting[digest].discard(task)
        self.store.free(digests)

    def place(self, run: Run, buffers: Sequence[Buffer]) -> tuple[Run, Sequence[Buffer]]:
        """Replace a task's digests by paths; a blob that has no file is added to the buffers."""
        rest = iter(buffers)
        placed: list[Buffer] = [next(rest)]
        paths: dict[int, bytes] = {}
        for index in range(len(buffers) - 1 + len(run.blobs)):
            if index not in run.blobs:
                placed.append(next(rest))
                continue
            found = self.store.find(run.blobs[index])
            if isinstance(found, str):
                paths[index] = os.fsencode(found)
            else:
                placed.append(found)
        return run._replace(blobs=paths), placed

    def keep(self, blob: Blob, data: Buffer, peer: bool = False, number: int = 0) -> None:
        """Store a part of a blob.

        Parameters
        ----------
        blob, data
            Which part, and its bytes.
        peer
            Whether it came from another node instead of the owner.
        number
            Number of the owner's message.
        """
        try:
            whole = self.store.add(blob.digest, blob.size, blob.offset, data, peer=peer, number=number)
        except Corrupt as error:
            self._report(Kept(blob.digest, 0, str(error)))
            return
        except OSError as error:
            self.on_chunk(blob.digest, error)
            return
        finally:
            self.grew()
        if whole:
            self._arrived(blob)

    def adopt(self, blob: Share) -> None:
        """Open a file of the owner's that holds a blob; if that fails, the owner sends the bytes."""
        try:
            self.store.adopt(blob.digest, blob.path, blob.inode, blob.size)
        except OSError as error:
            self._report(Kept(blob.digest, 0, str(error)))
        else:
            self._arrived(blob)

    def _arrived(self, blob: Blob | Share) -> None:
        self._report(Kept(blob.digest, blob.size, None))
        if self.store.is_cached(blob.digest):
            self.on_chunk(blob.digest, None)
        if self.store.problem is not None and not self._warned:
            self._warned = True
            self._warn(f"large arguments stay in memory on this node: {self.store.problem}")
        complete: list[int] = []
        for task in self._waiting.pop(blob.digest, ()):
            missing = self._missing[task]
            missing.discard(blob.digest)
            if not missing:
                del self._missing[task]
                complete.append(task)
        for task in complete:
            self._unblock(task)
