"""From a call to a job: pickles in the thread that submits, and copies large buffers as they are at that moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from skyward.core.blobs.array_cache import ArrayCache
from skyward.core.blobs.snapshots import Snapshot, Snapshots
from skyward.core.code.local_code import LocalCode
from skyward.core.errors import PayloadError
from skyward.core.labels import label as label_of
from skyward.core.payload import pickling
from skyward.core.payload.forerunners import preceded
from skyward.core.payload.memory_maps import Named
from skyward.core.payload.surroundings import Surroundings, Within
from skyward.core.protocol import wire
from skyward.core.tasks.futures import TaskFuture
from skyward.core.tasks.jobs import Job, TaskGroup, TaskOptions
from skyward.core.tasks.listening_sockets import Listeners
from skyward.core.tasks.pool_context import PoolContext

__all__ = ["JobMaker"]

_MAX_SIZE = wire.SizeLimits().message


class JobMaker:
    """Makes jobs for one pool. Thread-safe.

    Parameters
    ----------
    snapshots
        Where copies of large buffers are kept.
    surroundings
        What tasks find on this machine's nodes as it is here.
    named
        Which memory maps of files are sent as the file's name; see `pickling.dumps`.
    listeners
        Learns which Managers' proxies have been sent.
    code
        The user's own code; None if nodes have it.
    timeout
        The pool's default for `TaskOptions.timeout`, in seconds.
    """

    def __init__(
        self,
        snapshots: Snapshots,
        surroundings: Surroundings,
        named: Named,
        listeners: Listeners,
        code: LocalCode | None,
        timeout: float | None,
    ) -> None:
        self._snapshots = snapshots
        self._surroundings = surroundings
        self._named = named
        self._listeners = listeners
        self._code = code
        self._timeout = timeout
        self.common = TaskGroup()
        """The group of tasks that are submitted by themselves."""
        self.context: PoolContext | None = None

    def make(
        self,
        task: int,
        future: TaskFuture[Any],
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: TaskOptions,
    ) -> Job:
        """Make a job of a call.

        Parameters
        ----------
        task, future
            Its number and its future, whose `size` is set.
        function, args, kwargs
            The call.
        options
            How it is to run.

        Raises
        ------
        PayloadError
            The call can't be pickled, or is too large.
        ConfigError
            The user's own code can't be sent.
        Exception
            There was no memory for copies, or a ``__getattr__`` of the user's raised an exception.
        """
        proxies = list(options.proxies)
        label = label_of(function)
        group = options.group or self.common
        head, buffers = pickling.dumps(
            preceded(Within.of((function, args, kwargs), group.change or self._surroundings.now()), self.context),
            "the call",
            large=options.large,
            mode=options.mode,
            named=self._named,
            on_proxy=proxies.append,
            pool=self.context,
        )
        code = (
            group.code if self._code is None else self._code.of_job(group.code, head)
        )  # pickling may have imported more
        future.label = label
        size = len(head) + sum(map(len, buffers))
        if size > _MAX_SIZE:
            raise PayloadError(f"the call of {label} is larger than {_MAX_SIZE:,} bytes; send less data with it")
        min_blob = pickling.LARGE if options.large is None else min(pickling.LARGE, options.large)
        parts, blobs = self._keep(buffers, min_blob, group.arrays)
        future.size = size - sum(len(buffers[index]) for index in blobs) if blobs else size
        timeout = self._timeout if options.timeout == "pool" else options.timeout
        if timeout is not None:
            timeout *= options.count  # the limit is for each of the user's tasks
        job = Job(task, label, future, options, group, timeout, [head, *parts], blobs)
        job.code = code
        if proxies:
            job.authkey = self._listeners.sent(proxies)
        return job

    def _keep(
        self, buffers: list[memoryview], min_blob: int, arrays: ArrayCache | None
    ) -> tuple[list[Snapshot], dict[int, bytes]]:
        """Copy the buffers; return the copies, and by index the digests of those that are blobs."""
        source = self._snapshots if arrays is None else arrays
        parts: list[Snapshot] = []
        blobs: dict[int, bytes] = {}
        for index, view in enumerate(buffers):
            if len(view) < min_blob:
                parts.append(bytes(view))
            else:
                blobs[index], data = source.take(view)
                parts.append(data)
        return parts, blobs
