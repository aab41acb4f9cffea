"""The final answer about each task: held until all that the task wrote is saved, remembered until it has arrived."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from skyward.core.payload.shared_file import remove
from skyward.core.protocol.messages import Done, Failed, Failure, Message
from skyward.core.protocol.wire import Buffer
from skyward.worker.held_answers import HeldAnswers
from skyward.worker.result_files import UnclaimedFiles

__all__ = ["TaskAnswers"]


class TaskAnswers:
    """The answers of one node.

    Parameters
    ----------
    send
        Sends a numbered message, perhaps a little later if the last argument is true, and returns its number.
    files
        The results that slots leave in files.
    """

    def __init__(self, send: Callable[[Message, Sequence[Buffer], bool], int], files: UnclaimedFiles) -> None:
        self.files = files
        self._send = send
        self._held: HeldAnswers | None = None
        self._numbers: dict[int, int] = {}  # task -> number of its unacknowledged answer, in ascending order

    def __repr__(self) -> str:
        return f"<TaskAnswers {len(self._numbers)} unacknowledged, {self.files!r}, {self._held!r}>"

    def __contains__(self, task: int) -> bool:
        """Whether the owner has been told of the task, or will be, and has not acknowledged it."""
        return task in self._numbers or (self._held is not None and task in self._held)

    def hold(self, held: HeldAnswers) -> None:
        """From now on, hold what tasks return until what they wrote is saved."""
        self._held = held

    def post(self, tasks: Sequence[int], message: Message, buffers: Sequence[Buffer] = (), lazy: bool = False) -> int:
        """Send a message that is this node's last word on some tasks, and return its number.

        Parameters
        ----------
        tasks
            Which tasks.
        message, buffers
            The answer.
        lazy
            Whether it may wait a little for others.
        """
        number = self._send(message, buffers, lazy)
        for task in tasks:
            self._numbers.pop(task, None)  # keeps the order ascending
            self._numbers[task] = number
        return number

    def finish(self, message: Done | Failed, buffers: Sequence[Buffer], group: int | None, lazy: bool) -> None:
        """Send what a slot has answered, once all that the task wrote is saved.

        Parameters
        ----------
        message, buffers
            The answer.
        group
            The slot's process group; None if it is not known.
        lazy
            Whether it may wait a little for others.
        """
        files = message.files.values() if isinstance(message, Done) else ()
        if self._held is not None:
            self.files.keep(files)
            self._held.hold(message.task, group, lambda problem: self._saved(message, buffers, problem))
            return
        number = self.post((message.task,), message, buffers, lazy)
        if files:
            self.files.sent(number, files)

    def discard(self, message: Done | Failed) -> None:
        """Remove the files of an answer for which nobody waits."""
        if isinstance(message, Done):
            remove(message.files.values())

    def acknowledged(self, received: int) -> None:
        """The owner has every message up to this number."""
        self.files.acknowledge(received)
        while self._numbers:
            task, number = next(iter(self._numbers.items()))
            if number > received:
                break
            del self._numbers[task]

    def _saved(self, message: Done | Failed, buffers: Sequence[Buffer], problem: str | None) -> None:
        """Send an answer that was held. `problem`: why something that was written is not saved."""
        files = message.files.values() if isinstance(message, Done) else ()
        if problem is not None and isinstance(message, Done):
            self.files.drop(files)
            self.post((message.task,), Failed(message.task, message.seconds, Failure.UNSAVED.value, problem))
            return
        number = self.post((message.task,), message, buffers)
        if files:
            self.files.sent(number, files)
