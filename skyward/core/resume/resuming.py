"""The seam: a dispatcher that looks into the resume file before it submits, and stores results before they go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from skyward.core.events import Events, Note, TasksQueued
from skyward.core.ioloop import IOThread
from skyward.core.labels import label as label_of
from skyward.core.packages.installed import Distribution, Installed
from skyward.core.resume.journal import Computed, Journal, Submission
from skyward.core.resume.separately import OneCall, Separately
from skyward.core.resume.store import NewResult, ResultStore
from skyward.core.tasks.answers import Answers
from skyward.core.tasks.dispatch import Dispatcher
from skyward.core.tasks.futures import TaskFuture
from skyward.core.tasks.jobs import Job, Keeper, TaskOptions
from skyward.core.tasks.kept_calls import is_kept
from skyward.core.tasks.several_calls import SeveralCalls

__all__ = ["ResumingDispatcher", "missing_here", "resuming"]

_T = TypeVar("_T")


class _StoringKeeper(Keeper):
    """Takes one task's answer apart.

    Parameters
    ----------
    submission
        What was known of the task.
    is_one
        Whether it is a single call, whose result is not a list.
    """

    __slots__ = ("_is_one", "_submission", "computed")

    def __init__(self, submission: Submission, is_one: bool) -> None:
        self._submission = submission
        self._is_one = is_one
        self.seconds = submission.plan.seconds  # joblib must not take calls for short ones whose results were there
        self.computed: list[Computed] = []

    def number(self, position: int) -> int:
        """See `Keeper`."""
        missing = self._submission.plan.missing
        return missing[position] if position < len(missing) else position

    def merge(
        self, job: Job, answer: Any, read: Callable[[Sequence[Any]], tuple[Any, BaseException | None]]
    ) -> tuple[Any, BaseException | None]:
        """See `Keeper`."""
        submission, values = self._submission, []
        plan = submission.plan
        matches = submission.content <= set(job.blobs.values())
        seconds = (job.future.seconds or 0.0) / len(plan.missing)
        for number, about, (head, buffers) in zip(plan.missing, submission.rows, answer, strict=True):
            parts = [head, *buffers]
            value, error = read(parts)
            if error is not None:
                return None, error
            values.append(value)
            result = NewResult(plan.keys[number], *about, seconds, parts)
            self.computed.append(Computed(result, submission, job.code, matches))
        return self.whole(values), None

    def whole(self, values: Sequence[Any]) -> Any:
        """Return the task's result, given those that were computed."""
        results = self._submission.plan.merge(values)
        return results[0] if self._is_one else results


class ResumingDispatcher(Dispatcher):
    """A dispatcher of a pool with a resume file.

    Parameters
    ----------
    io, events, **settings
        See `Dispatcher`.
    journal
        The file. It is closed with this object.
    """

    def __init__(self, io: IOThread, events: Events, journal: Journal, **settings: Any) -> None:
        super().__init__(io, events, store=partial(_store, journal), **settings)
        self._journal = journal
        journal.code = self.code

    def call(
        self,
        function: Callable[..., _T],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: TaskOptions | None = None,
        first: int = -1,
    ) -> TaskFuture[_T]:
        """Run a call unless its result is stored.

        A task for one node always runs, as it is meant to do something there. Cached functions keep results elsewhere.

        Parameters
        ----------
        function, args, kwargs, options, first
            See `Dispatcher.call`.
        """
        options = options or TaskOptions()
        self._check_open()
        if options.node is not None or is_kept(function):
            return super().call(function, args, kwargs, options, first)
        is_one = not isinstance(function, SeveralCalls)
        task: Any = OneCall(function, args, kwargs) if is_one else function
        submission = self._journal.plan(task, options.group)
        if submission is None:
            return super().call(function, args, kwargs, options, first)
        kept, missing = _StoringKeeper(submission, is_one), submission.plan.missing
        if not missing:
            return self._known(label_of(task), kept.whole(()), replace(options, keeper=kept))
        if len(missing) < len(submission.plan.keys):
            task = task.only(missing)
        apart: Callable[..., Any] = Separately(task)
        return super().call(apart, (), {}, replace(options, keeper=kept, count=len(missing)), first)

    def _known(self, label: str, value: _T, options: TaskOptions) -> TaskFuture[_T]:
        """Return the future of a task whose result is known; it is completed in its turn, like any other."""
        number = next(self._ids)
        future: TaskFuture[_T] = TaskFuture(self._on_cancel, number)
        job = Job(number, label, future, options, options.group or self._maker.common, None, [], {})
        job.found = (value,)
        self._events.emit(TasksQueued(options.count, label))
        self._completion.deliver(job)
        return future

    def close(self) -> None:
        """See `Dispatcher.close`; then close the file."""
        try:
            super().close()
        finally:
            self._journal.close()


def missing_here(requirements: Sequence[str], installed: Mapping[str, Distribution] | None = None) -> list[str]:
    """The requirements of nodes that this program's own packages do not meet, so that identities know nothing of them.

    Parameters
    ----------
    requirements
        In pip's syntax.
    installed
        This program's packages, by normalized names; None reads them.
    """
    here = Installed() if installed is None and requirements else installed or {}

    def is_here(line: str) -> bool:
        try:
            wanted = Requirement(line.partition(" --hash=")[0])
        except InvalidRequirement:
            return False
        found = here.get(canonicalize_name(wanted.name))
        return found is not None and wanted.url is None and wanted.specifier.contains(found.version, prereleases=True)

    return sorted(line for line in requirements if not is_here(line))


def resuming(path: str, requirements: Sequence[str] = ()) -> Callable[..., Dispatcher]:
    """Open a resume file, and return what makes a dispatcher that uses it; with the arguments of `Dispatcher`.

    Parameters
    ----------
    path
        Absolute path of the file.
    requirements
        What nodes are to install, in pip's syntax.

    Raises
    ------
    ResumeFileError
        See `ResultStore`.
    """
    others = missing_here(requirements)
    store = ResultStore(path)

    def make(io: IOThread, events: Events, *, answers: Answers, **settings: Any) -> ResumingDispatcher:
        def say(text: str, warning: bool) -> None:
            events.emit(Note(text, warning))

        journal = Journal(store, partial(answers.result, "a stored call"), say)
        journal.environment = repr(others).encode() if others else b""
        return ResumingDispatcher(io, events, journal, answers=answers, **settings)

    return make


def _store(journal: Journal, keepers: Sequence[Keeper]) -> None:
    """Store what several tasks have returned, at once."""
    computed = [each for keeper in keepers if isinstance(keeper, _StoringKeeper) for each in keeper.computed]
    if computed:
        journal.keep(computed)
