"""What is taken, what is computed anew, what is stored, and what the user is told."""

from __future__ import annotations

import functools
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skyward.core.blobs.array_cache import ArrayCache
from skyward.core.blobs.snapshots import Snapshots
from skyward.core.errors import PayloadError
from skyward.core.function import Chunk
from skyward.core.payload import pickling
from skyward.core.resume.journal import Journal, Submission
from skyward.core.resume.separately import OneCall
from skyward.core.resume.store import NewResult, ResultStore
from skyward.core.tasks.jobs import TaskGroup
from skyward.core.tasks.several_calls import SeveralCalls
from tests.core.resume.test_identity import compiled
from tests.core.resume.test_store import disk_is_full

_HOUR = 3600


class Run:
    """A run of a program, which computes what its calls say."""

    def __init__(self, file: Path, read: Callable[[Sequence[Any]], Any] | None = None) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []
        self.store = ResultStore(str(file))
        self.journal = Journal(
            self.store, read or _read, lambda text, w: (self.warned if w else self.said).append(text)
        )
        self.computed = 0

    def submit(self, task: SeveralCalls, group: TaskGroup | None = None) -> Submission | None:
        return self.journal.plan(task, group)

    def finish(self, task: SeveralCalls, submission: Submission | None, settled: bool = True) -> list[Any]:
        """What `ResumingDispatcher` does with a task's answer."""
        if submission is None or submission.plan.missing:
            missing = range(len(task.parts())) if submission is None else submission.plan.missing
            results = [function(*args, **kwargs) for function, args, kwargs in (task.parts()[n] for n in missing)]
            self.computed += len(results)
            if submission is None:
                return results
            rows = [
                (NewResult(submission.plan.keys[n], *about, 0.1, pickling.dumps(result)[:1]), submission.generation)
                for n, about, result in zip(missing, submission.rows, results, strict=True)
            ]
            self.journal.keep(rows if settled else [(row, -1) for row, _ in rows])
            return submission.plan.merge(results)
        return submission.plan.merge([])

    def call(self, function: Any, *args: Any, group: TaskGroup | None = None, **kwargs: Any) -> Any:
        task = OneCall(function, args, kwargs)
        return self.finish(task, self.submit(task, group))[0]


def _read(parts: Sequence[Any]) -> tuple[Any, BaseException | None]:
    return pickling.loads(bytes(parts[0]), parts[1:]), None


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "search.run"


@contextmanager
def run(file: Path, read: Callable[[Sequence[Any]], Any] | None = None) -> Iterator[Run]:
    made = Run(file, read)
    try:
        yield made
    finally:
        made.journal.close()


def double(x: Any) -> Any:
    return 2 * x


_drawn = itertools.count()


def draw() -> int:
    """Another result each time."""
    return next(_drawn)


def test_a_second_run_takes_everything(file: Path) -> None:
    with run(file) as first:
        assert [first.call(double, n) for n in range(5)] == [0, 2, 4, 6, 8]
    assert first.said == ["search.run: took 0 results, stored 5"]
    with run(file) as second:
        assert [second.call(double, n) for n in range(7)] == [0, 2, 4, 6, 8, 10, 12]
    assert (second.computed, second.said) == (2, ["search.run: took 5 results, stored 2"])


def test_batches_may_be_others(file: Path) -> None:
    """A batch of which a part is there computes the rest."""
    with run(file) as first:
        chunk = Chunk(double, [(n,) for n in range(4)])
        assert first.finish(chunk, first.submit(chunk)) == [0, 2, 4, 6]
    with run(file) as second:
        for batch in ([0], [1, 9, 2], [3, 8]):
            chunk = Chunk(double, [(n,) for n in batch])
            submission = second.submit(chunk)
            assert submission is not None
            assert submission.plan.seconds == pytest.approx(0.1 * len(set(batch) & set(range(4))))
            assert second.finish(chunk, submission) == [2 * n for n in batch]
        assert second.computed == 2


def test_equal_draws_are_results_of_their_own(file: Path) -> None:
    with run(file) as first:
        one = [first.call(draw) for _ in range(10)]
        assert len(set(one)) == 10
    with run(file) as second:
        assert [second.call(draw) for _ in range(10)] == one
        assert second.computed == 0
        assert second.call(draw) not in one


def test_an_order_for_each_named_thread(file: Path) -> None:
    """Equal calls of threads with names of their own keep apart, whichever is faster."""

    def turns(run: Run, order: list[str]) -> dict[str, list[int]]:
        got: dict[str, list[int]] = {"left": [], "right": []}
        for name in order:
            thread = threading.Thread(target=lambda name=name: got[name].append(run.call(draw)), name=name)
            thread.start()
            thread.join()
        return got

    with run(file) as first:
        one = turns(first, ["left", "right", "left", "right"])
    with run(file) as second:
        assert turns(second, ["right", "right", "left", "left"]) == one
        assert second.computed == 0


def test_a_failed_call_stores_nothing(file: Path) -> None:
    def fail() -> None:
        raise RuntimeError

    with run(file) as first, pytest.raises(RuntimeError):
        first.call(fail)
    assert first.said == []
    with run(file) as second, pytest.raises(RuntimeError):
        second.call(fail)


def test_what_a_partial_adds_are_arguments(file: Path) -> None:
    with run(file) as first:
        first.call(functools.partial(pow, 2), 3)
    with run(file) as second:
        assert second.call(functools.partial(pow, 2), 3) == 8
        assert second.call(functools.partial(pow, 3), 3) == 27
    assert second.computed == 1
    assert "call 2 of pow" not in "".join(second.said)


# --- what has changed ---


def test_changed_code_is_computed_anew_and_said_once(file: Path) -> None:
    with run(file) as first:
        for n in range(3):
            first.call(compiled("def f(x):\n    return x + 1"), n)
    with run(file) as second:
        assert [second.call(compiled("def f(x):\n    return x + 2"), n) for n in range(3)] == [2, 3, 4]
    assert second.said == [
        "search.run: 3 stored results of f can't be used, since its code, or what it uses, has changed; it is computed "
        "anew",
        "search.run: took 0 results, stored 3",
    ]
    with run(file) as third:  # both are there
        assert third.call(compiled("def f(x):\n    return x + 1"), 1) == 2
        assert third.call(compiled("def f(x):\n    return x + 2"), 1) == 3
    assert third.computed == 0


def test_changed_data_is_computed_anew_and_said_once(file: Path) -> None:
    with run(file) as first:
        for n in range(3):
            first.call(double, n)
    with run(file) as second:
        assert [second.call(double, n) for n in (0, 7, 8, 2)] == [0, 14, 16, 4]
    assert second.computed == 2
    (told, _) = second.said
    assert told.startswith("search.run: call 2 of double has other arguments than in the run before")


def test_more_calls_are_nothing_to_talk_about(file: Path) -> None:
    """A run that was cut off, or a search that goes further."""
    with run(file) as first:
        first.call(double, 0)
    with run(file) as second:
        for n in range(3):
            second.call(double, n)
    assert second.said == ["search.run: took 1 results, stored 2"]


def test_another_python_is_said(file: Path) -> None:
    with run(file) as first:
        first.call(double, 1)
        first.store._writer.execute("UPDATE runs SET python = '2.7'")
    with run(file) as second:
        here = f"{sys.version_info.major}.{sys.version_info.minor}"
        assert second.said == [f"search.run: its results are those of Python 2.7, and are computed anew with {here}"]


def test_an_edited_module_is_computed_anew(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A helper that the function's module imports; also while the program runs."""
    monkeypatch.syspath_prepend(str(tmp_path))
    helper, module = tmp_path / "journal_helper.py", tmp_path / "journal_module.py"

    def write(path: Path, text: str, age: int) -> None:
        path.write_text(text)
        os.utime(path, (time.time() - age, time.time() - age))

    write(module, "import journal_helper\ndef f(x):\n    return journal_helper.g(x)\n", 2 * _HOUR)
    write(helper, "def g(x):\n    return x\n", 2 * _HOUR)
    import journal_module  # type: ignore[import-not-found]

    with run(file) as first:
        first.call(journal_module.f, 1)
        group = TaskGroup()
        task = OneCall(journal_module.f, (2,), {})
        late = first.submit(task, group)
        write(helper, "def g(x):\n    return -x\n", _HOUR)
        first.finish(task, late)
        assert first.said == [
            "search.run: results of calls that were submitted while your code or data was being changed are not kept"
        ]
        first.call(journal_module.f, 3, group=TaskGroup())
    with run(file) as second:
        for n in (1, 2, 3):
            second.call(journal_module.f, n)
    assert second.computed == 2
    helper.touch()
    with run(file) as third:
        third.call(journal_module.f, 1)
        submission = third.submit(OneCall(journal_module.f, (9,), {}), None)
        assert submission is not None
        assert not submission.is_settled
    for name in ("journal_module", "journal_helper"):
        del sys.modules[name]


# --- what goes wrong ---


def test_a_call_without_identity_is_computed_and_said(file: Path) -> None:
    def take(_: Any) -> int:
        return 1

    lock = threading.Lock()
    for _ in range(2):
        with run(file) as each:
            assert each.call(take, lock) == 1
            assert each.call(take, lock) == 1
        assert (each.computed, len(each.said)) == (2, 1)
        assert each.said[0].startswith(
            "search.run: a call of test_a_call_without_identity_is_computed_and_said.<locals>.take has no identity, "
            "and is not kept: TypeError: cannot pickle"
        )


def test_a_stored_result_that_is_refused_is_computed_anew(file: Path) -> None:
    """A file that a pool with results="any" has written may contain what one with "data" does not accept."""

    def refuse(_: Sequence[Any]) -> tuple[Any, BaseException | None]:
        return None, PayloadError("it is no data")

    with run(file) as first:
        first.call(double, 1)
    with run(file, refuse) as second:
        assert [second.call(double, 1) for _ in range(2)] == [2, 2]
    assert second.warned == ["search.run: stored results of double are computed anew: it is no data"]
    with run(file) as third:
        assert third.call(double, 1) == 2
    assert third.computed == 0


def test_a_damaged_result_is_computed_anew_and_replaced(file: Path) -> None:
    with run(file) as first:
        first.call(double, 1)
        first.call(double, 2)
        first.store._writer.execute("UPDATE results SET data = 'x' WHERE place = 0")
    with run(file) as second:
        assert [second.call(double, n) for n in (1, 2)] == [2, 4]
    assert (second.computed, len(second.warned)) == (1, 1)
    assert "some stored results can't be read and are computed anew" in second.warned[0]
    with run(file) as third:
        assert [third.call(double, n) for n in (1, 2)] == [2, 4]
    assert third.computed == 0


def test_a_full_disk_costs_what_is_not_stored(file: Path) -> None:
    """The run goes on, and stores again as soon as it can."""
    big = bytes(50_000)
    with run(file) as first:
        first.call(double, 1)
        with disk_is_full(file):
            assert [first.call(double, big + bytes([n])) for n in range(3)] == [
                2 * (big + bytes([n])) for n in range(3)
            ]
        assert len(first.warned) == 1
        assert "results can't be stored: " in first.warned[0]
        assert "The run goes on" in first.warned[0]
        first.call(double, 2)
    assert first.said[-1:] == ["search.run: results are stored again"]
    assert first.warned[-1] == "search.run: took 0 results, stored 2, could not store 3"
    with run(file) as second:
        second.call(double, 1)
        second.call(double, 2)
    assert second.computed == 0


# --- arrays that are not read each time ---


def test_content_that_was_not_read_is_told(file: Path) -> None:
    """It must be compared with what was sent."""
    x = np.zeros(1 << 18)
    arrays = ArrayCache(Snapshots())
    group = TaskGroup(arrays=arrays)
    with run(file) as first:
        submission = first.submit(OneCall(double, (x,), {}), group)
        assert submission is not None
        assert submission.content == frozenset()
        name, _ = arrays.take(memoryview(x).cast("B"))
        submission = first.submit(OneCall(double, (x,), {}), group)
        assert submission is not None
        assert submission.content == frozenset([name])


def test_what_a_group_needed_is_forgotten_with_it(file: Path) -> None:
    with run(file) as first:
        first.call(double, 1, group=TaskGroup())
        first.call(double, 1, group=TaskGroup())
        first.call(double, 2)
        assert repr(first.journal._occurrences) == "<Occurrences of 2 calls in 1 series>"
