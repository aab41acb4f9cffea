"""`sky.Compute` with the arguments and the inner parts of other executors, as far as their tests look at them."""

from __future__ import annotations

import os
import signal
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import skyward as sky
from tests.processes import comm, descendants

__all__ = ["ProcessPoolExecutor", "ThreadPoolExecutor", "get_reusable_executor"]

_ran: set[bytes] = set()  # in a slot: initializers
_lock = threading.Lock()  # guards _ran


class _Executor(sky.Compute):
    executor = "process"

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: object = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        env: dict[str, str] | None = None,
        **others: object,  # context, timeout, thread_name_prefix, max_tasks_per_child, reducers
    ) -> None:
        count = len(os.sched_getaffinity(0)) if max_workers is None else max_workers
        worker = sky.Worker(concurrency=count, executor=self.executor, attempts=1)  # nobody else tries again
        super().__init__(worker=worker, image=sky.Image(env=env or {}), console=False)
        self._max_workers = count
        self._first = (os.urandom(8), initializer, initargs) if initializer is not None else None
        before = descendants(os.getpid())
        self.start()
        agents = [pid for pid in descendants(os.getpid()) if pid not in before and comm(pid) == "skyward-agent"]
        self._processes = {
            pid: _Process(pid) for agent in agents for pid in descendants(agent) if comm(pid) == "skyward-slot"
        }
        self._executor_manager_thread = self._call_queue = _End(self)
        self._threads = [self._executor_manager_thread]
        self._flags = _Flags(self._executor_manager_thread)
        self._given: weakref.WeakSet[Any] = weakref.WeakSet()

    def __enter__(self) -> Self:
        return self  # it has started, as theirs have

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        if self._first is not None:
            fn, args, kwargs = _begun, (self._first, fn, args, kwargs), {}
        future = super().submit(fn, *args, **kwargs)
        self._given.add(future)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, kill_workers: bool = False) -> None:
        if cancel_futures and self._given:  # in theirs a few tasks run as soon as they are submitted
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline and not any(each.running() or each.done() for each in list(self._given)):
                time.sleep(0.001)
        if kill_workers:
            self.close(cancel=True)
        super().shutdown(wait, cancel_futures=cancel_futures)


class ProcessPoolExecutor(_Executor):
    """Slots that are processes."""


class ThreadPoolExecutor(_Executor):
    """Slots that are threads of one process."""

    executor = "thread"


def _begun(first: tuple[bytes, Callable[..., object], tuple[Any, ...]], fn: Any, args: Any, kwargs: Any) -> Any:
    """What runs in a slot: the initializer if it has not run there yet, then the call."""
    key, initializer, initargs = first
    with _lock:
        if key not in _ran:
            initializer(*initargs)
            _ran.add(key)
    return fn(*args, **kwargs)


class _Process:
    """A slot's process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def join(self, timeout: float = 30) -> None:
        """Fails where it goes on running."""
        end = threading.Event()
        for _ in range(int(timeout * 100)):
            if not Path(f"/proc/{self.pid}").exists():
                return
            end.wait(0.01)
        raise AssertionError(f"process {self.pid} has not ended")


class _End:
    """The thread that others' executors have: it ends when the pool has ended."""

    def __init__(self, pool: sky.Compute) -> None:
        self.ended = pool._open._ended  # and not the pool, which must be dropped when its user drops it

    def join(self, timeout: float = 60) -> None:
        assert self.ended.wait(timeout), "the pool has not ended"

    join_thread = join


class _Flags:
    """loky's, of which it keeps nothing else."""

    broken = None

    def __init__(self, end: _End) -> None:
        self._end = end

    @property
    def shutdown(self) -> bool:
        return self._end.ended.wait(10)  # a pool ends some time after it was dropped, and is not used meanwhile


_shared: tuple[object, ProcessPoolExecutor] | None = None


def get_reusable_executor(max_workers: int = 2, *, kill_workers: bool = False, **options: Any) -> ProcessPoolExecutor:
    """The last one if it is as asked for and was not shut down, as loky's function does."""
    global _shared  # noqa: PLW0603  # loky has one for a process
    key = max_workers, sorted(options.items())
    if _shared is None or _shared[0] != key or not _shared[1].is_active:
        if _shared is not None:
            _shared[1].shutdown(kill_workers=kill_workers)
        _shared = key, ProcessPoolExecutor(max_workers, **options)
    return _shared[1]
