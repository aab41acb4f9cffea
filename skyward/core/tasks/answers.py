"""Turns a node's answer about a task into a result, or an exception that tells the user what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from typing import Any

from skyward.core.errors import NodeLost, PayloadError, TaskError, WorkerCrashed
from skyward.core.nodes.session import Session
from skyward.core.payload import exceptions, pickling
from skyward.core.payload.shared_file import remove, take_file
from skyward.core.protocol.messages import Done, Failed, Failure
from skyward.core.protocol.wire import Filled
from skyward.core.results.reader import Reader
from skyward.core.tasks import missing_modules
from skyward.core.tasks.jobs import Job
from skyward.core.tasks.schedule_events import Verdict

__all__ = ["Answers", "take_files", "unanswered"]

_OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # shortages of this process, for which no node is to blame


class Answers:
    """Reads the answers of one pool's nodes.

    Parameters
    ----------
    reader
        Reads them as data; None to unpickle them, which is for trusted nodes.
    """

    def __init__(self, reader: Reader | None = None) -> None:
        self._reader = reader

    def __repr__(self) -> str:
        return f"<Answers {'unpickled' if self._reader is None else self._reader}>"

    def result(self, whose: str, buffers: Sequence[Any]) -> tuple[Any, BaseException | None]:
        """Return a result, or why there is none.

        Parameters
        ----------
        whose
            Names the task in errors.
        buffers
            The pickle and its out-of-band buffers.
        """
        try:
            if self._reader is None:
                return pickling.loads(buffers[0], buffers[1:]), None
            return self._reader.value(buffers[0], buffers[1:]), None
        except PayloadError as problem:
            error = PayloadError(f"the result of {whose} is not accepted: {problem}")
            error.__cause__ = problem.__cause__
        except BaseException as problem:  # whatever the user's __setstate__ raises
            error = PayloadError(f"the result of {whose} can't be loaded here: {problem!r}")
            error.__cause__ = problem
        return None, error

    def failure(self, message: Failed, buffers: Sequence[Any], *, here: bool, node: str = "") -> BaseException:
        """Return the exception that a task has raised, or that kept it from starting.

        Parameters
        ----------
        message, buffers
            The node's answer.
        here
            Whether the node uses this program's environment.
        node
            The node's name.
        """
        load = exceptions.load if self._reader is None else self._reader.error
        error = load(buffers[0])
        if not message.missing:
            return error
        advice = missing_modules.advice(message.missing, here)
        if message.reason == Failure.UNLOADABLE.value:
            advised = PayloadError(f"{error}. {advice}")
            advised.__cause__ = error.__cause__
            return advised
        if type(error) in (ImportError, ModuleNotFoundError):
            error.add_note(f"{message.missing} is missing on {node}. {advice}" if node else advice)
        return error


def unanswered(job: Job, hopeless: TaskError, lost: Mapping[str, str]) -> BaseException:
    """Return the exception for a task that no node answered.

    Parameters
    ----------
    job
        The task, which has settled.
    hopeless
        Why no node is left.
    lost
        Why each node that is gone was lost.
    """
    failed = job.answer[0] if job.answer is not None else None
    detail = failed.detail if isinstance(failed, Failed) else "it ended"
    if job.verdict is Verdict.CRASHED and failed is not None:
        return WorkerCrashed(
            f"the worker process of {job.title} (task {job.id}) on {job.node} died: {detail}. "
            "It was started as often as Worker(attempts=...) allows"
        )
    if job.verdict is Verdict.REFUSED and failed is not None:
        return WorkerCrashed(
            f"no node can start {job.title} (task {job.id}); {job.node} reports: {detail}. "
            "All other nodes that are up, if any, have refused it too"
        )
    if job.verdict is Verdict.HOPELESS:
        return type(hopeless)(f"{job.title} (task {job.id}) can't run: {hopeless}")
    where = job.options.node or job.node
    reason = lost.get(where, "there is no such node")
    return NodeLost(f"{job.title} (task {job.id}) is lost with {where}: {reason}")


def take_files(session: Session, message: Done, buffers: list[Filled]) -> tuple[Done | Failed, list[Filled]]:
    """Read the buffers of a result that a slot on this machine has left in files.

    Parameters
    ----------
    session
        The session of the node.
    message, buffers
        The answer, and the buffers that are not in files.

    Returns
    -------
    tuple
        The answer and all buffers; `Failed` if a file can't be read.
    """
    task, seconds, name = message.task, message.seconds, session.node
    lost = Failure.CRASHED.value
    if not session.shares:  # a node elsewhere must not read our files
        return Failed(task, seconds, lost, f"its result is in a file, but {name} is another machine"), []
    rest = iter(buffers[1:])
    count = len(buffers) - 1 + len(message.files)
    try:
        files = {index: take_file(os.fsdecode(path)) for index, path in message.files.items()}
    except OSError as error:
        remove(message.files.values())
        if error.errno not in _OURS:
            return Failed(task, seconds, lost, f"its result could not be read: {error}"), []
        problem = PayloadError(  # the task itself succeeded and must not run again
            f"the result of task {task} on {name} can't be loaded here: {error}. Close files that are not needed, "
            "or raise the limit (ulimit -n) of the process that opened the pool"
        )
        raised = Failure.RAISED.value
        return Failed(task, seconds, raised, "PayloadError"), [*map(bytearray, exceptions.dump(problem))]
    return message, [buffers[0], *(files[index] if index in files else next(rest) for index in range(count))]
