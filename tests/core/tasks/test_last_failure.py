"""Which task `sky.last_failure` is about, and what is kept of it."""

from __future__ import annotations

import gc
import pickle
import weakref
from typing import Any

import pytest

from skyward.core.errors import NoFailure, WorkerCrashed
from skyward.core.payload import exceptions, surroundings
from skyward.core.tasks import last_failure
from skyward.core.tasks.futures import TaskFuture
from skyward.core.tasks.jobs import Job, TaskGroup, TaskOptions
from skyward.core.tasks.last_failure import LastFailure


def divide(a: int, b: int = 0) -> float:
    return a / b


def job(
    number: int, *, first: int = -1, head: bytes | None = None, group: TaskGroup | None = None, **options: Any
) -> Job:
    head = head or pickle.dumps((divide, (number,), {"b": 0}))
    made = Job(
        number,
        "divide",
        TaskFuture(lambda _: None, 1),
        TaskOptions(group=group, **options),
        TaskGroup(),
        None,
        [head],
        {},
    )
    made.first, made.node = first, "node-1"
    return made


def failure() -> BaseException:
    return exceptions.load(*exceptions.dump(ZeroDivisionError("x")))


def keep(last: LastFailure, failed: Job) -> None:
    last.keep(last_failure.record(failed, failure(), failure), failed)


def test_there_was_none() -> None:
    last = LastFailure()
    assert "none yet" in repr(last)
    for name in ("label", "index", "node", "error", "traceback", "calls", "args", "kwargs"):
        with pytest.raises(NoFailure, match="no task has failed in this process yet"):
            getattr(last, name)
    for method in (last.run, last.debug):
        with pytest.raises(NoFailure):
            method()


def test_what_is_known_of_it() -> None:
    last = LastFailure()
    keep(last, job(3, first=3))
    assert (last.label, last.index, last.node, last.args, last.kwargs) == ("divide", 3, "node-1", (3,), {"b": 0})
    assert isinstance(last.error, ZeroDivisionError)
    assert last.error is not last.error
    assert last.traceback.endswith("ZeroDivisionError: x\n")
    assert last.traceback.count("ZeroDivisionError") == 1
    assert repr(last) == "<last failure: item 3, divide on node-1; see its .error, .args, .run() and .debug()>"


def test_it_runs_here_and_is_debugged_where_it_raises(capsys: pytest.CaptureFixture[str]) -> None:
    last = LastFailure()
    keep(last, job(3))
    with pytest.raises(ZeroDivisionError):
        last.run()
    frames: list[str] = []
    assert last.debug(lambda trace: frames.append(trace.tb_frame.f_code.co_name)) is None
    assert frames == ["divide"]
    assert "ZeroDivisionError" in capsys.readouterr().err
    keep(last, job(3, head=pickle.dumps((divide, (3, 2), {}))))
    assert last.debug() == 1.5
    assert "does not fail here" in capsys.readouterr().err


def test_the_next_failure_replaces_it() -> None:
    last = LastFailure()
    for number in range(3):
        keep(last, job(number))
        assert last.args == (number,)


def test_of_one_parallel_the_first_counts_since_that_is_raised() -> None:
    last = LastFailure()
    groups = [TaskGroup(), TaskGroup()]
    for group in groups:
        for first in (5, 2, 7):
            keep(last, job(first, first=first, group=group))
        assert last.index == 5


def test_of_one_map_the_lowest_item_counts_since_that_is_raised() -> None:
    last = LastFailure()
    for whole in (object(), object()):
        for first in (5, 2, 7):
            keep(last, job(first, first=first, whole=whole))
        assert last.index == 2
    keep(last, job(8))
    assert last.args == (8,)


def test_a_call_that_is_over_is_not_kept_alive() -> None:
    last, group = LastFailure(), TaskGroup()
    alive = weakref.ref(group)
    keep(last, job(1, group=group))
    del group
    gc.collect()
    assert alive() is None
    keep(last, job(2, group=TaskGroup()))
    assert last.args == (2,)


def test_the_exception_and_its_frames_are_not_kept() -> None:
    class Large:
        pass

    def fail(large: Large) -> None:
        raise WorkerCrashed("it died")

    last, large = LastFailure(), Large()
    alive = weakref.ref(large)
    failed = job(1)
    try:
        fail(large)
    except WorkerCrashed as error:
        last.keep(last_failure.record(failed, error, None), failed)
    del large
    gc.collect()
    assert alive() is None
    assert str(last.error) == "it died"


def test_very_large_arguments_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_failure, "MAX_BYTES", 10)
    last = LastFailure()
    keep(last, job(3))
    assert last.label == "divide"
    with pytest.raises(NoFailure, match=r"the arguments of divide were not kept: they take \d\d bytes"):
        last.run()


def test_loading_it_changes_nothing_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot takes over the folder and the variables of the driver; the driver itself has them."""
    change = surroundings.Change(7, b"not a pickle")
    within = surroundings.Within.of((divide, (3,), {}), change)
    last = LastFailure()
    keep(last, job(3, head=pickle.dumps(within, protocol=5)))
    assert last.args == (3,)
