"""Those who use a pool: each does one thing after another, drawn from a seed, and compares what comes with it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import itertools
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from joblib import Parallel, delayed, parallel_config

import skyward as sky
from skyward.core.tasks.futures import TaskFuture

__all__ = ["SETTLE", "MainUser", "Report", "User", "interrupted"]

SETTLE = 120.0
_OUT = 60  # tasks that a user has out before it submits no more, so that a small pool is done in seconds
_SIZES = (0, 1, 100, 5_000, 33_000, 100_000, 400_000, 1_200_000, 5_000_000)

type_of_work = tuple[int, bytes, float, int, bool]


@dataclass
class Report:
    """What happened."""

    seed: int
    rounds: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0
    """Seconds from the end of the load until everything had settled, in the slowest round."""
    memory: list[int] = field(default_factory=list)
    """MB that this process has in use, after each round."""

    def __str__(self) -> str:
        parts = [_listed(self.rounds), _listed(self.done), _listed(self.faults)]
        parts += [f"settled within {self.slowest:.1f} s", f"memory {self.memory} MB", f"{len(self.wrong)} wrong"]
        return f"seed {self.seed}: {'; '.join(filter(None, parts))}"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))


# --- tasks, which travel by value -----------------------------------------------------------------------------------


def work(number: int, data: bytes, seconds: float, size: int, fails: bool) -> tuple[int, str, bytes]:
    """Something whose result says whether the arguments came whole."""
    import hashlib
    import time

    time.sleep(seconds)
    name = hashlib.sha256(data).hexdigest()
    if fails:
        raise ValueError(number, name)
    if number % 7 == 0:
        print(f"task {number} says {'so ' * (size % 50)}")
    return number, name, bytes([number % 256]) * size


work.__module__ = "__main__"


def _expected(call: type_of_work) -> tuple[int, str, bytes]:
    number, data, _, size, _ = call
    return number, hashlib.sha256(data).hexdigest(), bytes([number % 256]) * size


class Refusal(Exception):
    """Raised by iterators and callbacks of users, who expect it back or nothing at all."""


# --- users ----------------------------------------------------------------------------------------------------------


class _Acts:
    """What a user may do, in any thread.

    Parameters
    ----------
    pool, report
        What is used, and where it is counted.
    name, seed
        Of the user.
    overlong
        Seconds that are beyond the pool's time limit of a task; 0 where it has none.
    """

    def __init__(self, pool: sky.Compute, report: Report, seed: str, overlong: float) -> None:
        self.pool, self.report, self.overlong = pool, report, overlong
        self.name = f"user {seed}"
        self.random = random.Random(seed)
        self.number = itertools.count(1)
        self.open: list[tuple[TaskFuture[Any], type_of_work]] = []
        self.asked: list[int] = []  # tasks whose futures have a callback
        self.told: Counter[int] = Counter()  # how often it was called
        self.acts: list[Callable[[], object]] = [
            self.submits, self.submits, self.submits, self.cancels, self.changes, self.calls_back, self.calls,
            self.maps, self.reads_slowly, self.leaves_early, self.iterator_raises, self.task_raises,
        ]  # fmt: skip

    def act(self) -> None:
        """One thing."""
        act = self.random.choice(self.acts)
        act()
        self.report.done[act.__name__.replace("_", " ")] += 1

    # what is asked for

    def _call(self, *, large: bool = True, fails: float = 0.0) -> type_of_work:
        choose = self.random
        seconds = choose.choice((0.0, 0.0, 0.001, 0.02, choose.uniform(0, 0.5)))
        sizes = _SIZES if large and choose.random() < 0.2 else _SIZES[:6]
        data = choose.randbytes(16) * (choose.choice(_SIZES if large else _SIZES[:6]) // 16)
        return next(self.number), data, seconds, choose.choice(sizes), choose.random() < fails

    def _some(self, most: int, **options: Any) -> list[type_of_work]:
        return [self._call(**options) for _ in range(self.random.choice((1, 3, most)))]

    def _submit(self, call: type_of_work) -> TaskFuture[Any]:
        return self._watch(self.pool.submit(work, *call), call)

    def _watch(self, future: TaskFuture[Any], call: type_of_work) -> TaskFuture[Any]:
        def tell(_: object) -> None:
            self.told[call[0]] += 1

        future.add_done_callback(tell)
        self.open.append((future, call))
        self.asked.append(call[0])  # last, since Ctrl-C may come anywhere here
        self.report.done["tasks"] += 1
        return future

    def _parallel(self, **options: Any) -> Parallel:
        options.setdefault("batch_size", self.random.choice(("auto", "auto", 1, 4)))
        options.setdefault("pre_dispatch", self.random.choice(("2 * n_jobs", "all", 3)))
        return Parallel(n_jobs=self.random.choice((-1, -1, 2)), **options)

    # acts

    def submits(self) -> None:
        for _ in range(0 if len(self.open) > _OUT else self.random.choice((1, 5, 40))):
            self._submit(self._call(fails=0.1))
        if self.overlong and self.random.random() < 0.1:
            number, data, _, size, _ = self._call()
            self._submit((number, data, self.overlong, size, False))

    def cancels(self) -> None:
        for future, _ in self.random.sample(self.open, min(len(self.open), self.random.choice((1, 3, 20)))):
            if future.cancel():
                self.report.done["cancelled"] += 1

    def changes(self) -> None:
        """The argument, after it was submitted: what was submitted counts."""
        number, data, seconds, size, _ = self._call()
        passed = bytearray(data)
        future = self.pool.submit(work, number, passed, seconds, size, False)
        passed[:] = bytes(len(passed))
        self._watch(future, (number, data, seconds, size, False))

    def calls_back(self) -> None:
        """A callback submits, and raises."""
        future = self._submit(self._call(large=False))

        def again(_: object) -> None:
            with contextlib.suppress(sky.PoolNotActive):
                self._submit(self._call(large=False))
            raise Refusal

        future.add_done_callback(again)

    def calls(self) -> None:
        calls = self._some(30)
        with parallel_config(backend="skyward"):  # which joblib keeps for each thread
            results = self._parallel()(delayed(work)(*call) for call in calls)
        self._compare(results, calls)

    def maps(self) -> None:
        calls = self._some(30)
        results = self.pool.map(work, *zip(*calls, strict=True), chunksize=self.random.choice((1, 4)))
        self._compare(list(results), calls)

    def reads_slowly(self) -> None:
        calls = self._some(20)
        order = self.random.choice(("generator", "generator_unordered"))
        results = []
        with parallel_config(backend="skyward"):
            for result in self._parallel(return_as=order)(delayed(work)(*call) for call in calls):
                results.append(result)
                time.sleep(self.random.choice((0.0, 0.0, 0.05)))
        if order == "generator_unordered":
            results.sort()
        self._compare(results, calls)

    def leaves_early(self) -> None:
        calls = self._some(20)
        with parallel_config(backend="skyward"):
            results = self._parallel(return_as="generator")(delayed(work)(*call) for call in calls)
        first = next(results)
        results.close()
        self._compare([first], calls[:1])
        mapped = self.pool.map(work, *zip(*calls, strict=True))
        self._compare([next(mapped)], calls[:1])
        del mapped

    def iterator_raises(self) -> None:
        calls = self._some(20, large=False)

        def broken() -> Iterator[Any]:
            yield from calls
            raise Refusal

        try:
            if self.random.random() < 0.5:
                self.pool.map(lambda call: work(*call), broken())
            else:
                with parallel_config(backend="skyward"):
                    self._parallel()(delayed(work)(*call) for call in broken())
        except Refusal:
            return
        self._wrong("an iterator's error was lost")

    def task_raises(self) -> None:
        calls = self._some(20, large=False)
        calls[-1] = (*calls[-1][:4], True)
        try:
            with parallel_config(backend="skyward"):
                self._parallel()(delayed(work)(*call) for call in calls)
        except ValueError as error:
            if error.args[0] != calls[-1][0]:
                self._wrong(f"the error of another task: {error!r}")
            return
        self._wrong("a task's error was lost")

    # the oracle

    def take(self, patience: float) -> None:
        """Look at what is done; with patience, wait for all of it."""
        end = time.monotonic() + patience
        left = []
        asked, self.open = self.open, []  # to which callbacks add, in threads of their own
        for future, call in asked:
            if patience:
                concurrent.futures.wait([future], max(0.0, end - time.monotonic()))
            if future.done():
                self._look(future, call)
            else:
                left.append((future, call))
        self.open += left
        if patience and left:
            self._wrong(f"{len(left)} tasks never settled, the first is {left[0][1][0]}: {left[0][0]}")

    def untold(self) -> list[int]:
        """Tasks whose futures have not told once that they are done."""
        return [number for number in self.asked if self.told[number] != 1]

    def _look(self, future: TaskFuture[Any], call: type_of_work) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            self._compare([future.result()], [call])
        elif isinstance(error, ValueError) and call[4]:
            if error.args != _expected(call)[:2]:
                self._wrong(f"task {call[0]} raised the error of another one: {error!r}")
        elif not (isinstance(error, sky.TaskTimeout) and call[2] == self.overlong > 0):
            self._wrong(f"task {call[0]}: {type(error).__name__}: {error}")

    def _compare(self, results: Sequence[Any], calls: Sequence[type_of_work]) -> None:
        self.report.done["results"] += len(results)
        if len(results) != len(calls):
            self._wrong(f"{len(results)} results of {len(calls)} tasks")
        for result, call in zip(results, calls, strict=False):
            if call[4] or result != _expected(call):
                self._wrong(f"task {call[0]} has a wrong result")

    def _wrong(self, text: str) -> None:
        self.report.wrong.append(f"{self.name}: {text}")


class User(_Acts, threading.Thread):
    """Acts in a thread until it is told to stop, then waits for what is out."""

    def __init__(self, pool: sky.Compute, report: Report, seed: str, overlong: float, stop: threading.Event) -> None:
        threading.Thread.__init__(self, daemon=True)
        _Acts.__init__(self, pool, report, seed, overlong)
        self.stop = stop

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                self.act()
                self.take(0.0)
                self.stop.wait(self.random.uniform(0.0, 0.1))
        except BaseException as error:
            closed = isinstance(error, (concurrent.futures.CancelledError, sky.PoolNotActive))
            if not (closed and self.stop.is_set()):
                self._wrong(f"its thread ended with {error!r}")


class MainUser(_Acts):
    """Acts in the main thread, where Ctrl-C arrives."""

    def interrupted(self) -> None:
        """One thing, and Ctrl-C somewhere in it."""
        if interrupted(self.act, self.random):
            self.report.done["interrupts"] += 1


def interrupted(action: Callable[[], object], choose: random.Random) -> bool:
    """Run something in the main thread with Ctrl-C at any moment; return whether it came before the end."""
    ended, main = threading.Event(), threading.main_thread().ident
    assert main is not None
    seconds = choose.choice((0.0, 0.001, 0.01, 0.1, 0.5))

    def send() -> None:
        if not ended.wait(seconds):
            signal.pthread_kill(main, signal.SIGINT)

    sender = threading.Thread(target=send, name="soak-interrupt")
    try:
        sender.start()
        action()
        ended.set()
        sender.join()
        for _ in range(1000):  # a signal that was sent just now arrives here
            pass
    except KeyboardInterrupt:
        sender.join()
        return True
    return False
