"""Counts the tasks of a call and runs a few of them, instead of all: in a slot, for `explaining`.

joblib gets a backend that takes every task and answers none. When the caller's iterator has ended, some of the tasks
are run, and the call is ended with an exception. Whatever it has changed by then, it has changed in this process only.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from joblib import parallel_config
from joblib.parallel import ParallelBackendBase, SequentialBackend

from skyward.core.errors import ConfigError
from skyward.core.function import run_pending
from skyward.core.machines.forecast import TaskSample, Workload
from skyward.core.payload import pickling
from skyward.joblib_ext import joblib_private

__all__ = ["record"]

_MANY = 20  # tasks that are run if they are short
_FEW = 3  # tasks that are run in any case, as time allows
_SHORT = 2.0  # seconds that more than a few tasks may take together
_LIGHT = 1 << 20  # bytes of arguments of which many may be held
_PICKLED = 500  # tasks that are pickled to learn their size; beyond that, only some are


class _Stop(BaseException):
    """Ends the call; as a BaseException it passes any `except Exception` in it."""


class _Held(NamedTuple):
    """A task that may be run."""

    weight: float
    run: Callable[[], Any]


class _Recorder:
    """What is learned of one ``Parallel`` call."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.before: float | None = None
        self.calls = 0
        self.counting = 0.0  # seconds between two tasks
        self._taken = 0.0  # when the last one was
        self.weights: list[float] = []
        self.sizes: list[int] = []
        self.pickling = 0.0
        self.shared: dict[tuple[int, int], int] = {}
        self.held: list[_Held] = []  # evenly spaced
        self._every = 1  # distance between them, in tasks
        self.last: _Held | None = None
        self.largest: _Held | None = None
        self.samples: list[TaskSample] = []
        self.failure: BaseException | None = None

    def take(self, calls: Any) -> None:
        """Count a batch, which has one call unless the caller says how many."""
        began = time.perf_counter()
        if self.before is None:
            self.before = began - self.began
        else:
            self.counting += began - self._taken
        self.calls += len(calls)
        weight = sum(map(_weight, _arguments(calls)))
        held = self.last = _Held(weight, calls)
        if self.largest is None or weight > self.largest.weight:
            self.largest = held
        number = len(self.weights)
        self.weights.append(weight)
        if number < _PICKLED or number % (number // _PICKLED + 1) == 0:
            self.sizes.append(self._size(calls))
        if number % self._every == 0:
            self.held.append(held)
            if len(self.held) > (_MANY if max(self.sizes) < _LIGHT else _FEW):
                del self.held[1::2]
                self._every *= 2
        self._taken = time.perf_counter()

    def _size(self, calls: Any) -> int:
        """Bytes that are sent with each task; larger buffers are sent once."""
        began = time.perf_counter()
        items = getattr(calls, "items", calls)
        head, buffers = pickling.dumps(items, "the call")
        self.pickling += time.perf_counter() - began
        size = len(head)
        for buffer in buffers:
            if len(buffer) < pickling.LARGE:
                size += len(buffer)
            else:
                self.shared[_place(buffer), len(buffer)] = len(buffer)
        return size

    def run(self, seconds: float, share: int, shares: int) -> None:
        """Run this process's share of some tasks, for about `seconds`; other processes run the others."""
        few = -(-_FEW // shares)
        began = time.perf_counter()
        spread = sorted(range(1, len(self.held)), key=lambda index: int(f"{index:08b}"[::-1], 2))
        first = [self.held[0], self.largest, self.last, *(self.held[index] for index in spread)]
        todo = list({id(held.run): held for held in first if held is not None}.values())[share::shares]
        for number, held in enumerate(todo):
            passed = time.perf_counter() - began
            if number and passed * (number + 1) / number > (seconds if number < few else min(_SHORT, seconds)):
                return
            wall, cpu = time.perf_counter(), time.process_time()
            results = [run_pending(result) for result in held.run()]
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            head, buffers = pickling.dumps(results, "result", large=None)
            self.samples.append(TaskSample(held.weight, wall, cpu, len(head) + sum(map(len, buffers)), not number))

    def workload(self, memory: int) -> Workload:
        """Return what was learned."""
        count = len(self.weights)
        pickled = self.pickling / max(len(self.sizes), 1)
        return Workload(
            calls=self.calls,
            weights=self.weights,
            samples=self.samples,
            before=self.before or 0.0,
            making=self.counting / max(count - 1, 1) + pickled,
            bytes=sum(self.sizes) / max(len(self.sizes), 1),
            shared=float(sum(self.shared.values())),
            memory=memory,
        )


class RecordingBackend(ParallelBackendBase):  # type: ignore[misc]
    """Takes every task of the first ``Parallel`` call and answers none.

    Parameters
    ----------
    recorder
        Learns of each task.
    slots
        How many tasks could run at once.
    run
        Runs some of the tasks, once all have been taken.
    """

    supports_retrieve_callback = True
    supports_return_generator = True
    uses_threads = False
    supports_sharedmem = False

    def __init__(self, recorder: _Recorder, slots: int, run: Callable[[], object], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._recorder = recorder
        self._slots = slots
        self._run = run
        self._call: tuple[Any, Any] | None = None

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many slots there would be, at least two: for one, joblib would run all tasks itself."""
        return 1 if n_jobs in (None, 1) else max(self._slots, 2)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **_: Any) -> int:
        """Prepare for a call."""
        self.parallel = parallel
        return self.effective_n_jobs(n_jobs)

    def compute_batch_size(self) -> int:
        """Return 1, so that each task is counted by itself."""
        return 1

    def submit(self, func: Any, callback: Any = None) -> Any:
        """Take a task."""
        self._recorder.take(func)
        self._call = callback.parallel, callback.parallel_call_id
        return None

    def apply_async(self, func: Any, callback: Any = None) -> Any:
        """`submit`, under the name that joblib used before 1.5."""
        return self.submit(func, callback)

    def retrieve_result_callback(self, out: Any) -> Any:
        """Return the outcome, which is the exception that ends the call."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Nothing runs."""

    def get_nested_backend(self) -> tuple[Any, None]:
        """Calls within tasks are sequential, as in a pool."""
        return SequentialBackend(nesting_level=(self.nesting_level or 0) + 1), None

    @contextlib.contextmanager
    def retrieval_context(self) -> Iterator[None]:
        """Start when joblib has sent its first tasks and waits for results."""
        if self._call is not None:  # otherwise there are no tasks
            threading.Thread(target=self._drain, args=self._call, name="skyward-explain", daemon=True).start()
        yield

    def _drain(self, parallel: Any, call: Any) -> None:
        """Take all tasks from the caller's iterator, run some, and end the call."""
        error: BaseException = _Stop()
        try:
            while joblib_private.take_batch(parallel, call):
                pass
            self._run()
        except BaseException as problem:  # of the iterator, or of a task
            self._recorder.failure = error = problem
        joblib_private.raise_in_caller(parallel, call, error)


def record(call: Callable[[], object], slots: int, seconds: float, share: int = 0, shares: int = 1) -> Workload:
    """Run a call up to its first tasks, run some of these, and return what was learned.

    Parameters
    ----------
    call
        The call.
    slots
        How many tasks could run at once.
    seconds
        How long tasks may be run; the first one is in any case.
    share, shares
        Number of this process, from 0, and how many processes share the tasks that are run.

    Raises
    ------
    ConfigError
        It makes no ``Parallel`` call that a pool would run.
    Exception
        Whatever the call, or a task, raises.
    """
    recorder = _Recorder()
    _reset_peak()
    backend = RecordingBackend(recorder, slots, lambda: recorder.run(seconds, share, shares))
    with contextlib.suppress(_Stop), parallel_config(backend=backend, n_jobs=None):
        call()
    if recorder.failure is not None:
        raise recorder.failure
    if not recorder.weights:
        raise ConfigError(
            "explain: the call has no tasks for a pool: it makes no Parallel(n_jobs=-1) call, or gives it another "
            "backend by name; for scikit-learn set n_jobs=-1"
        )
    return recorder.workload(_peak())


def _arguments(calls: Any) -> Sequence[Any]:
    return [part for _, args, kwargs in getattr(calls, "items", ()) for part in (*args, *kwargs.values())]


def _weight(value: Any, depth: int = 2) -> float:
    """How much work an argument suggests: from the magnitudes of its numbers and the sizes of its arrays."""
    kind = type(value)
    if kind in (int, float):
        return math.log1p(min(abs(value), 1e12)) if value == value else 0.0  # noqa: PLR0124 - not a number
    if kind in (list, tuple, dict) and depth and len(value) <= 16:
        return sum(_weight(part, depth - 1) for part in (value.values() if kind is dict else value))
    if kind in (list, tuple, dict, str, bytes):
        return math.log1p(len(value))
    size = getattr(value, "nbytes", 0) if kind.__module__ == "numpy" else 0
    return math.log1p(size) if isinstance(size, int) else 0.0


def _place(buffer: memoryview) -> int:
    owner: Any = buffer.obj
    interface = getattr(owner, "__array_interface__", None)
    return int(interface["data"][0]) if isinstance(interface, dict) else id(owner)


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """Peak memory of this process since then, in bytes."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
