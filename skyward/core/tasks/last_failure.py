"""`sky.last_failure`: the most recently failed task, kept so that it can be run again or debugged in this process.

What was sent is kept, as it was sent, and nothing of what the program itself has: neither the arguments, which it may
have let go or changed since, nor the exception, whose traceback refers to frames with all their variables. Of all pools
of a process one task is kept.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
import threading
import traceback
import types
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

from skyward.core.errors import NoFailure
from skyward.core.payload.exceptions import traceback_text
from skyward.core.payload.forerunners import SLOTS_ONLY
from skyward.core.payload.shared_file import SharedFile
from skyward.core.tasks.failing_item import add_note, item_of, number_of
from skyward.core.tasks.jobs import Job
from skyward.core.tasks.several_calls import Call, Traceable
from skyward.core.whoami import NODE

__all__ = ["MAX_BYTES", "FailedTask", "LastFailure", "last_failure", "record"]

MAX_BYTES = 1 << 30
"""Of larger arguments only the texts are kept."""


@dataclass(frozen=True, slots=True)
class FailedTask:
    """What is kept of a task."""

    label: str
    index: int | None
    node: str
    position: int  # of the call in the task; -1 if that is not known
    sent: Sequence[Any] | None  # its pickle and buffers; None if they are too large
    size: int
    load: Callable[[], BaseException]  # makes a new exception each time
    notes: Sequence[str]  # of the exception

    def error(self) -> BaseException:
        """Return a new exception like the one that was raised."""
        error = self.load()
        vars(error).pop("__notes__", None)
        for note in self.notes:
            add_note(error, note)
        return error

    def calls(self) -> Sequence[Call]:
        """Load the calls that may have failed."""
        if not self.size:
            raise NoFailure(f"{self.label} has returned a result, which could not be read; its arguments were not kept")
        if self.sent is None:
            raise NoFailure(
                f"the arguments of {self.label} were not kept: they take {self.size:,} bytes, more than the "
                f"{MAX_BYTES:,} that are kept, or belong to a task of a task; call it here with the same ones"
            )
        buffers = [bytearray(each.map() if isinstance(each, SharedFile) else each) for each in self.sent[1:]]
        function, args, kwargs = _Unpickler(io.BytesIO(self.sent[0]), buffers=buffers).load()
        if not isinstance(function, Traceable):
            return [(function, args, kwargs)]
        calls = function.each()
        return calls[self.position : self.position + 1] if 0 <= self.position < len(calls) else calls


class _Unpickler(pickle.Unpickler):
    """Loads a call in the driver, which has the surroundings already that a slot is to take over."""

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        return _nothing if isinstance(found, types.FunctionType) and found in SLOTS_ONLY else found


def _nothing(*_: object) -> None:
    """In place of what changes a slot."""


class LastFailure:
    """The most recently failed task: which one, why, and with which arguments. The only instance is `sky.last_failure`.

    For a ``Parallel``, a ``map`` or the like, it is the task whose error that call raised. Tasks
    that were cancelled, or that no node was left for, do not count. It is kept until another task fails. Attributes
    raise `NoFailure` if none has failed in this process yet.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _kept and _of
        self._kept: FailedTask | None = None
        self._of: Callable[[], object] = lambda: None  # the call that its task was part of, if that still exists

    def __repr__(self) -> str:
        kept = self._kept
        if kept is None:
            return "<last failure: none yet>"
        which = "" if kept.index is None else f"item {kept.index}, "
        return f"<last failure: {which}{kept.label} on {kept.node}; see its .error, .args, .run() and .debug()>"

    def keep(self, task: FailedTask, job: Job) -> None:
        """Keep a task if it is the one whose error its call raises. From any thread.

        Parameters
        ----------
        task, job
            The task, as it is kept and as it was run.
        """
        whole, group = job.options.whole, job.options.group
        with self._lock:
            before = self._kept
            same = whole if whole is not None else group
            if before is not None and same is not None and self._of() is same:
                earlier = whole is not None and task.index is not None
                if not earlier or before.index is None or before.index < (task.index or 0):
                    return
            self._kept = task
            if whole is None and group is not None:
                self._of = weakref.ref(group)
            else:
                self._of = lambda: whole

    def _latest(self) -> FailedTask:
        kept = self._kept
        if kept is None:
            raise NoFailure(
                "no task has failed in this process yet; sky.last_failure is about tasks of a pool of this process, "
                "and not about calls that ran here, as with Parallel(n_jobs=1)"
            )
        return kept

    @property
    def label(self) -> str:
        """Name of the function."""
        return self._latest().label

    @property
    def index(self) -> int | None:
        """Its number among the calls of that ``Parallel`` or ``map``, from 0; None if it was by itself or not known."""
        return self._latest().index

    @property
    def node(self) -> str:
        """Name of the node that it ran on."""
        return self._latest().node

    @property
    def error(self) -> BaseException:
        """A new copy of the exception: it refers to none of your variables."""
        return self._latest().error()

    @property
    def traceback(self) -> str:
        """The traceback on the node and the exception, as text."""
        return traceback_text(self.error)

    @property
    def calls(self) -> Sequence[tuple[Callable[..., Any], Sequence[Any], dict[str, Any]]]:
        """Function, arguments and keyword arguments: of several calls if the process died with a batch of them.

        They are unpickled again each time, as they were sent.
        """
        return self._latest().calls()  # type: ignore[return-value]

    @property
    def args(self) -> tuple[Any, ...]:
        """The arguments."""
        return tuple(_only(self._latest())[1])

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword arguments."""
        return dict(_only(self._latest())[2])

    def run(self) -> Any:
        """Call the function here, in this process, as it was called on the node; return what it returns.

        A call that killed its process there may do so here. Of several calls, a list is returned.
        """
        kept = self._latest()
        results = [function(*args, **kwargs) for function, args, kwargs in kept.calls()]
        return results[0] if len(results) == 1 else results

    def debug(self, debugger: Callable[[types.TracebackType], object] | None = None) -> Any:
        """Call the function here, and open a debugger in the frame that raises.

        Parameters
        ----------
        debugger
            Called with the traceback: ``ipdb.post_mortem``, say; None for ``pdb.post_mortem``.

        Returns
        -------
        object
            What the call returns if it does not fail here, which is said on standard error; otherwise None.
        """
        try:
            result = self.run()
        except NoFailure:
            raise
        except Exception as error:
            trace = error.__traceback__
            while trace is not None and trace.tb_next is not None and _is_ours(trace):
                trace = trace.tb_next
            sys.stderr.write("".join(traceback.format_exception(error.with_traceback(trace))))
            if trace is not None:
                (debugger or import_module("pdb").post_mortem)(trace)
            return None
        sys.stderr.write(f"{self._latest().label} does not fail here\n")
        return result


def _only(kept: FailedTask) -> Call:
    calls = kept.calls()
    if len(calls) != 1:
        raise NoFailure(
            f"the process of {kept.label} died, and it is not known which of its {len(calls)} calls it was running: "
            "see sky.last_failure.calls, and use Parallel(batch_size=1) to find out"
        )
    return calls[0]


def _is_ours(trace: types.TracebackType) -> bool:
    name = trace.tb_frame.f_globals.get("__name__")
    return isinstance(name, str) and name.partition(".")[0] == "skyward"


def record(job: Job, error: BaseException, load: Callable[[], BaseException] | None) -> FailedTask:
    """Make what is kept of a job that has failed.

    Parameters
    ----------
    job
        The job, with what was sent.
    error
        Its error, with all notes.
    load
        Loads the exception again that its node has sent, without the driver's notes; None if the error is one of ours.
    """
    position = item_of(error).number if job.options.count > 1 else 0
    index = number_of(job, position)
    size = sum(map(len, job.buffers))
    limit = MAX_BYTES if NODE not in os.environ else 0  # nobody looks at what failed in a pool inside a task
    sent = list(job.buffers) if size <= limit else None
    label = job.title if position < 0 else job.label
    load = load or partial(type(error), *error.args)
    notes = list(vars(error).get("__notes__", ()))
    return FailedTask(label, None if index < 0 else index, job.node, position, sent, size, load, notes)


last_failure = LastFailure()
