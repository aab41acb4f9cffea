"""From a settled task to a completed future: result or exception, in a delivery thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import operator
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from skyward.core.errors import NodeLost, PayloadError, TaskError, TaskTimeout, VolumeFailed
from skyward.core.events import Events, TaskEnded
from skyward.core.payload import exceptions
from skyward.core.payload.diagnose import in_short
from skyward.core.payload.surroundings import Surroundings
from skyward.core.protocol import messages
from skyward.core.protocol.wire import Filled
from skyward.core.tasks import failing_item
from skyward.core.tasks.answers import Answers, unanswered
from skyward.core.tasks.delivery import TOGETHER, Delivery, Errors
from skyward.core.tasks.jobs import Job, Keeper
from skyward.core.tasks.kept_calls import KeptCalls
from skyward.core.tasks.last_failure import last_failure, record
from skyward.core.tasks.schedule_events import Verdict

__all__ = ["Completion"]

_RAISED = {messages.Failure.RAISED.value, messages.Failure.UNLOADABLE.value}
_WAIT, _WAIT_FOR_DISK = 1.0, 10.0  # seconds for each delivery thread to end; disks may be slow


class Completion:
    """Completes the futures of one pool's tasks. Except where noted, to be called in the I/O thread.

    Parameters
    ----------
    events
        Where the ends of tasks are reported.
    answers
        Reads the nodes' answers.
    surroundings
        Explains errors that follow from them.
    name, start_thread
        Prefix of the delivery threads' names, and what starts them; see `Delivery`.
    store
        Called with the keepers of tasks that have succeeded, before their futures are completed; None if no task has
        one.
    """

    kept: KeptCalls
    """Calls whose results are kept."""

    def __init__(
        self,
        events: Events,
        answers: Answers,
        surroundings: Surroundings,
        name: str,
        start_thread: Callable[[Callable[[], None], str], threading.Thread],
        store: Callable[[Sequence[Keeper]], None] | None = None,
    ) -> None:
        self._events = events
        self._answers = answers
        self._surroundings = surroundings
        self._store = store
        before = None if store is None else self._store_first
        self._delivery = Delivery(self._complete, name, operator.attrgetter("id"), start_thread, before)
        self._errors = Errors(self._delivery, _is_first)
        self.lost: dict[str, str] = {}
        """Node that was lost -> the reason."""
        self.hopeless: TaskError = NodeLost("no node is left")
        """Why no node is left, when tasks settle for that reason."""

    def settled(self, job: Job) -> None:
        """Complete the future of a job that is no longer out, in a delivery thread."""
        lane = job.group.lane
        if job.answer is not None and isinstance(job.answer[0], messages.Failed):
            self._errors.put(lane, job)
        else:
            self._delivery.put(lane, job)
        if self._errors.held:
            self._errors.review(lane)

    def deliver(self, job: Job) -> None:
        """Complete the future of a job that no node has run, if `KeptCalls.look` says so. From any thread."""
        self._delivery.put(job.group.lane, job)

    def close(self) -> None:
        """Complete the remaining futures and end the threads, after the loop has ended."""
        self._errors.flush()
        self._delivery.close(_WAIT if self._store is None else _WAIT_FOR_DISK)

    # --- delivery threads ---

    def _store_first(self, jobs: Sequence[Job]) -> None:
        """Store the results of tasks that arrived at the same time."""
        keepers: list[Keeper] = []
        for job in jobs:
            keeper = job.options.keeper
            if keeper is None or job.answer is None or not isinstance(job.answer[0], messages.Done):
                continue
            try:
                job.outcome = self._outcome(job)
            except BaseException as problem:
                job.outcome = None, _unreadable(job, problem)
            if job.outcome[1] is None:
                keepers.append(keeper)
        if keepers and self._store is not None:
            self._store(keepers)

    def _complete(self, job: Job) -> None:
        if job.kept is None or self.kept.look(job):
            self._settle(job)

    def _settle(self, job: Job) -> None:
        future = job.future
        raised: BaseException | None = None
        if job.verdict is Verdict.CANCELLED:
            try:
                concurrent.futures.Future.cancel(future)  # no effect if the future itself requested it
            except BaseException as of_callback:  # sys.exit(); whoever waits for the future must still learn of it
                raised = of_callback
        if not future.set_running_or_notify_cancel():
            self.kept.ended(job)
            self._events.emit(TaskEnded(job.options.count, 0.0, False, True, job.node, label=job.label))
            if raised is not None:
                try:
                    raise raised
                finally:
                    raised = None  # it refers to this frame, and so to the job, whose large arrays would stay
            return
        result: Any = None
        error: BaseException | None
        answer = job.answer
        try:
            result, error = job.outcome or self._outcome(job)
            if job.kept is not None and error is None:
                result = self.kept.keep(job, result)
        except BaseException as problem:
            error = _unreadable(job, problem)
        if job.kept is not None:
            self.kept.ended(job)
        self._events.emit(_ended(job, error))
        if job.options.keeper is not None:
            future.seconds = (future.seconds or 0.0) + job.options.keeper.seconds
        if error is None:
            future.set_result(result)
        else:
            self._remember(job, error, answer)
            future.set_exception(error)

    def _remember(
        self, job: Job, error: BaseException, answer: tuple[messages.Done | messages.Failed, list[Filled]] | None
    ) -> None:
        """Keep what `sky.last_failure` tells of a job that has failed."""
        load: Callable[[], BaseException] | None = None
        message, buffers = answer or (None, [])
        if isinstance(message, messages.Failed) and message.reason in _RAISED:
            load = partial(self._answers.failure, message, buffers, here=job.is_here, node=job.node)
        if job.verdict is not Verdict.HOPELESS and job.node:
            last_failure.keep(record(job, error, load), job)
        job.buffers = []

    def _outcome(self, job: Job) -> tuple[Any, BaseException | None]:
        """Return the result, or the exception to be raised instead."""
        if job.error is not None:
            return None, job.error
        if job.found is not None:
            return job.found[0], None
        if job.verdict is Verdict.ANSWERED and job.answer is not None:
            message, buffers = job.answer
            job.answer = None
            job.future.seconds = message.seconds
            job.future.result_size = sum(map(len, buffers))
            if isinstance(message, messages.Failed):
                named = _named(job, message)
                return None, self._failure(job, message, buffers) if named is None else _unanswered(job, named)
            whose = f"{job.title} on {job.node}"
            result, error = self._answers.result(whose, buffers)
            if error is None and job.options.keeper is not None:
                return job.options.keeper.merge(job, result, partial(self._answers.result, whose))
            return result, error
        return None, _unanswered(job, unanswered(job, self.hopeless, self.lost))

    def _failure(self, job: Job, message: messages.Failed, buffers: Sequence[Filled]) -> BaseException:
        error = self._answers.failure(message, buffers, here=job.is_here, node=job.node)
        failing_item.add_note(error, failing_item.say(job, failing_item.item_of(error)))
        failing_item.add_note(error, job.note)
        self._surroundings.explain(error)
        return error


def _named(job: Job, message: messages.Failed) -> BaseException | None:
    """The exception for a failure whose name says everything; None if it carries the task's own."""
    which = f"{job.title} (task {job.id}) on {job.node}"
    if message.reason == messages.Failure.TIMEOUT.value:
        return TaskTimeout(
            f"{which} was stopped after {job.timeout:g} s; raise Compute(timeout=...), or set it to None for no limit"
        )
    if message.reason == messages.Failure.UNSAVED.value:
        return VolumeFailed(f"{which} returned, but not all is saved: {message.detail}")
    return None


def _unanswered(job: Job, error: BaseException) -> BaseException:
    """Add which calls an error of ours is about; one and the same error may be that of many tasks."""
    if job.first >= 0 and job.verdict is not Verdict.HOPELESS:
        # Arguments are not loaded here to be shown: if that killed the task's process, it would kill this one too.
        failing_item.add_note(error, failing_item.say(job, exceptions.NO_ITEM))
    return error


def _ended(job: Job, error: BaseException | None) -> TaskEnded:
    """Tell how a job has ended; called for each task, so arguments are passed by position."""
    options, future = job.options, job.future
    seconds = future.seconds or 0.0
    started = job.ended - seconds if job.ended else None
    text = None if error is None else in_short(error)
    place = job.node, job.slot, job.label
    return TaskEnded(
        options.count, seconds, error is None, False, *place, text, started, future.size, future.result_size, error
    )


def _unreadable(job: Job, problem: BaseException) -> BaseException:
    """The error for an answer that raised something: it may contain anything, and run anything when it is loaded."""
    error = PayloadError(f"the answer of {job.title} on {job.node} can't be read: {type(problem).__name__}")
    error.__cause__ = problem
    return error


def _is_first(job: Job) -> bool:
    """Whether no earlier task of its lane is out, not counting tasks that have been running for a while."""
    long_ago = asyncio.get_running_loop().time() - TOGETHER
    for other in job.group.lane.out.values():
        if other.id >= job.id:
            break
        if not 0.0 < other.began < long_ago:
            return False
    return True
