"""What is taken, what is computed anew, what is stored, and what the user is told."""

from __future__ import annotations

import functools
import importlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skyward.core.blobs.array_cache import ArrayCache
from skyward.core.blobs.snapshots import Snapshots
from skyward.core.code.local_code import CodeSettings, CodeVersion, LocalCode
from skyward.core.errors import PayloadError
from skyward.core.function import Chunk
from skyward.core.payload import pickling
from skyward.core.resume.journal import Computed, Journal, Submission
from skyward.core.resume.separately import OneCall
from skyward.core.resume.store import NewResult, ResultStore
from skyward.core.tasks.jobs import TaskGroup
from skyward.core.tasks.several_calls import SeveralCalls
from tests.core.resume.functions import double, draw
from tests.core.resume.test_identity import compiled
from tests.core.resume.test_store import disk_is_full


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

    def finish(
        self, task: SeveralCalls, submission: Submission | None, code: CodeVersion | None = None, matches: bool = True
    ) -> list[Any]:
        """What `ResumingDispatcher` does with a task's answer."""
        if submission is None or submission.plan.missing:
            missing = range(len(task.parts())) if submission is None else submission.plan.missing
            results = [function(*args, **kwargs) for function, args, kwargs in (task.parts()[n] for n in missing)]
            self.computed += len(results)
            if submission is None:
                return results
            self.journal.keep(
                [
                    Computed(
                        NewResult(submission.plan.keys[n], *about, 0.1, pickling.dumps(result)[:1]),
                        submission,
                        code,
                        matches,
                    )
                    for n, about, result in zip(missing, submission.rows, results, strict=True)
                ]
            )
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


@pytest.mark.slow
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


def tell(*args: Any, **kwargs: Any) -> str:
    return f"{args} {list(kwargs.items())}"


@pytest.mark.slow
def test_calls_that_a_function_can_tell_apart_have_results_of_their_own(file: Path) -> None:
    """By the order of keywords too, and whatever a partial adds."""
    calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
        (tell, (), {"a": 1, "b": 2}),
        (tell, (), {"b": 2, "a": 1}),
        (functools.partial(tell, b=3, a=4), (), {"b": 2}),
        (tell, (), {"b": 2, "a": 4}),
        (functools.partial(tell, 1), (2,), {}),
        (tell, ((1,), {}, (2,)), {}),
        (tell, ((1,), {}, [2]), {}),
        (functools.partial(tell, 1, c=5), (2,), {}),
        (tell, (1, 2), {}),
    ]
    expected = [function(*args, **kwargs) for function, args, kwargs in calls]
    for number in range(len(calls)):
        ordered = calls[number:] + calls[:number]
        with run(file) as each:
            results = [each.call(function, *args, **kwargs) for function, args, kwargs in ordered]
        assert results == expected[number:] + expected[:number]
    assert each.computed == 0


@pytest.mark.skipif(sys.version_info < (3, 14), reason="has no Placeholder")
def test_where_a_partial_puts_an_argument_counts(file: Path) -> None:
    hole: Any = vars(functools)["Placeholder"]
    with run(file) as one:
        assert one.call(functools.partial(tell, hole, 1), 2) == tell(2, 1)
        assert one.call(tell, hole, 1, 2) == tell(hole, 1, 2)
        assert one.call(functools.partial(tell, hole, 2), 1) == tell(1, 2)


# --- what has changed ---


def test_changed_code_is_computed_anew_and_said_once(file: Path) -> None:
    with run(file) as first:
        for n in range(3):
            first.call(compiled("def f(x):\n    return x + 1"), n)
    with run(file) as second:
        assert [second.call(compiled("def f(x):\n    return x + 2"), n) for n in range(3)] == [2, 3, 4]
    assert second.said == [
        "search.run: 3 stored results of f can't be reused, because its code, or something that it uses, has changed; "
        "it is recomputed",
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
    assert told.startswith("search.run: call 2 of double has other arguments than in the last run")


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
        assert second.said == [f"search.run: its results are from Python 2.7, and are recomputed with {here}"]


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Writes the helper of a module of the user's own, and returns the module's function."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "journal_module.py").write_text("import journal_helper\ndef f(x):\n    return journal_helper.g(x)\n")

    def write(text: str) -> Any:
        (tmp_path / "journal_helper.py").write_text(f"def g(x):\n    return {text}\n")
        return importlib.import_module("journal_module").f

    yield write
    for name in ("journal_module", "journal_helper"):
        sys.modules.pop(name, None)


EDITED = "search.run: the results of some calls are not stored, since your code was changed after they were submitted"


def test_an_edited_module_is_computed_anew(file: Path, modules: Callable[[str], Any]) -> None:
    """A helper that the function's module imports, written a moment before."""
    f = modules("x")
    with run(file) as first:
        first.call(f, 1)
    modules("-x")
    with run(file) as second:
        second.call(f, 1)
    modules("x")
    with run(file) as third:
        third.call(f, 1)
    assert [each.computed for each in (first, second, third)] == [1, 1, 0]
    assert not any(each.warned for each in (first, second, third))


@pytest.mark.parametrize("grouped", [True, False])
def test_an_edit_while_a_call_runs_here_makes_its_result_nobodys(
    file: Path, modules: Callable[[str], Any], grouped: bool
) -> None:
    """Nodes on this machine read files when they need them."""
    f, group = modules("x"), TaskGroup() if grouped else None
    with run(file) as first:
        first.call(f, 1, group=group)
        task = OneCall(f, (2,), {})
        late = first.submit(task, group)
        modules("-x")
        first.finish(task, late)
        assert first.warned == [EDITED]
        first.call(f, 3, group=TaskGroup())  # a new call runs with the new code
        first.call(f, 4, group=group)
    with run(file) as second:
        for n in (1, 2, 3, 4):
            second.call(f, n)
    # Of the new code are 3, and 4 unless it belonged to a call that had begun with the old one.
    assert second.computed == (3 if grouped else 2)


def test_an_edit_means_nothing_to_calls_that_run_with_the_code_that_was_sent(
    file: Path, modules: Callable[[str], Any]
) -> None:
    """Who goes on working while a search of days runs elsewhere loses nothing, and gets no result of other code."""
    f, group = modules("x"), TaskGroup()
    with run(file) as first:
        first.journal.code = LocalCode(Snapshots(), CodeSettings(sent=True))
        first.call(f, 0, group=TaskGroup())
        task = OneCall(f, (1,), {})
        early = first.submit(task, group)
        version = group.code
        assert early is not None
        assert version is not None
        assert early.version is version
        modules("-x")
        first.finish(task, early, version)
        late = first.submit(OneCall(f, (2,), {}), group)
        assert late is not None
        assert late.version is version
        first.finish(OneCall(f, (2,), {}), late, version)
        again = TaskGroup()
        first.submit(OneCall(f, (3,), {}), again)
        assert again.code is not version
        other = first.submit(OneCall(f, (5,), {}), group)
        first.finish(OneCall(f, (5,), {}), other, again.code)  # it had to run with another version after all
        assert first.warned == [EDITED]
    modules("x")
    with run(file) as second:
        for n in (1, 2, 5):
            second.call(f, n)
    assert second.computed == 1


def test_an_array_that_changes_while_it_is_submitted_is_not_kept(file: Path) -> None:
    with run(file) as first:
        task = OneCall(double, (1,), {})
        assert first.finish(task, first.submit(task), matches=False) == [2]
        assert "an array was changed while they were submitted" in first.warned[0]
    with run(file) as second:
        second.call(double, 1)
    assert second.computed == 1


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
            "search.run: a call of test_a_call_without_identity_is_computed_and_said.<locals>.take "
            "can't be identified, and is not stored: TypeError: cannot pickle"
        )


@pytest.mark.slow
def test_a_stored_result_that_is_refused_is_computed_anew(file: Path) -> None:
    """A file that a pool with results="any" has written may contain what one with "data" does not accept."""

    def refuse(_: Sequence[Any]) -> tuple[Any, BaseException | None]:
        return None, PayloadError("it is no data")

    with run(file) as first:
        first.call(double, 1)
    with run(file, refuse) as second:
        assert [second.call(double, 1) for _ in range(2)] == [2, 2]
    assert second.warned == ["search.run: stored results of double are recomputed: it is no data"]
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
    assert "some stored results can't be read and are recomputed" in second.warned[0]
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
        assert "The run continues" in first.warned[0]
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


def test_what_only_nodes_have_counts(file: Path) -> None:
    """Another requirement for them may be another version."""
    counted = []
    for environment in (b"['x==1']", b"['x==1']", b"['x==2']"):
        with run(file) as it:
            it.journal.environment = environment
            assert it.call(double, 1) == 2
            counted.append(it.computed)
    assert counted == [1, 0, 1]
