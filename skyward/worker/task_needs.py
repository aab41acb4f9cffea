"""What a task needs before it can start: its large arguments, and its version of the user's code."""

from __future__ import annotations

from collections.abc import Callable

from skyward.core.errors import ProtocolError
from skyward.core.protocol.messages import Code, Kept, Run
from skyward.core.protocol.wire import Buffer
from skyward.worker.blob_store import Store
from skyward.worker.code_folders import CodeFolders
from skyward.worker.task_blobs import TaskBlobs

__all__ = ["TaskNeeds"]


class TaskNeeds:
    """Says which tasks have all that they need, and which must wait.

    Parameters
    ----------
    store
        Holds the blobs, which bring the code as well.
    code
        Where to lay out versions of the user's code; None if tasks come with none.
    report, warn
        As of `TaskBlobs`.
    unblock
        Called with each task that has waited and has all now.
    refuse
        Called with each task whose version of the code can't be laid out, and why.
    """

    def __init__(
        self,
        store: Store,
        code: str | None,
        report: Callable[[Kept], object],
        warn: Callable[[str], object],
        unblock: Callable[[int], object],
        refuse: Callable[[int, str], object],
    ) -> None:
        self.blobs = TaskBlobs(store, report, warn, self._has_blobs)
        self._code = None if code is None else CodeFolders(code, store, self._has_code, refuse)
        self._unblock = unblock

    def __repr__(self) -> str:
        return f"<TaskNeeds: {self.blobs!r}, {self._code!r}>"

    def use(self, run: Run) -> bool:
        """Keep what a new task needs until `release`; returns whether all of it is here."""
        ready = not run.blobs or self.blobs.use(run.task, run.blobs.values())
        if run.code and self._code is not None:
            ready = self._code.use(run.task, run.code) and ready
        return ready

    def refusal(self, run: Run) -> str:
        """Why a task can never start; empty if it can, or may yet."""
        return self._code.refusal(run.code) if self._code is not None else ""

    def release(self, run: Run) -> None:
        """The task no longer needs anything."""
        if run.blobs:
            self.blobs.release(run.task, run.blobs.values())
        if self._code is not None:
            self._code.release(run.task)

    def announce(self, code: Code, manifest: Buffer) -> None:
        """Take a version of the user's code, whose bundles arrive as blobs."""
        if self._code is None:
            raise ProtocolError("Code where Setup says that there is none")
        self._code.announced(code, manifest)
        if self.blobs.use(-code.version, set(code.bundles)):
            self._has_blobs(-code.version)

    def _has_blobs(self, number: int) -> None:
        """Note that all blobs of a task have arrived or, if the number is negative, of a version of the code."""
        if self._code is not None and number < 0:
            self.blobs.release(number, set(self._code.arrived(-number)))
        elif self._code is None or not self._code.lacks(number):
            self._unblock(number)

    def _has_code(self, task: int) -> None:
        if not self.blobs.lacks(task):
            self._unblock(task)
