"""The cases in which a remote ``Parallel`` is known to wait for ever: each ends soon in the right error.

After each the pool works on, which the fixture checks.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator

import joblib.parallel
import pytest
from joblib import Parallel, delayed

import skyward as sky
from skyward.core.tasks import dispatch
from skyward.integrations import SkywardBackend
from tests.joblib_ext.calls import (
    ExitsWhenPickled,
    Fickle,
    Homesick,
    Unbearable,
    die,
    make_homesick,
    make_lock,
    pause,
    raise_fickle,
    raise_unbearable,
    recurse,
    square,
)

LIMIT = 60  # seconds; they take well under one where nothing is waited for, on an idle machine


@pytest.fixture(autouse=True)
def _ends_and_the_pool_works_on(pool) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < LIMIT
    assert Parallel(n_jobs=-1)(delayed(square)(i) for i in range(20)) == [i**2 for i in range(20)]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "word"), [("exit", "3"), ("kill", "SIGKILL"), ("segfault", "SIGSEGV")])
def test_a_task_that_kills_its_worker(how, word):
    with pytest.raises(sky.WorkerCrashed, match=word):
        Parallel(n_jobs=2)(delayed(die)(how) for _ in range(2))


def test_a_task_that_exits():
    with pytest.raises(SystemExit):
        Parallel(n_jobs=2)(delayed(sys.exit)(4) for _ in range(2))


def test_an_argument_that_cannot_be_pickled():
    with pytest.raises(sky.PayloadError, match="lock"):
        Parallel(n_jobs=2)(delayed(id)(threading.Lock()) for _ in range(4))


@pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
def test_an_argument_that_cannot_be_pickled_late(return_as):
    """By then it is pickled in the thread that delivers, where an exception would be lost."""
    calls = (delayed(id)(threading.Lock() if i == 30 else i) for i in range(60))
    with pytest.raises(sky.PayloadError, match="lock"):
        list(Parallel(n_jobs=2, batch_size=1, return_as=return_as)(calls))


def test_an_argument_whose_pickling_exits_late():
    with pytest.raises(sky.PayloadError, match=r"ExitsWhenPickled.*SystemExit"):
        Parallel(n_jobs=2, batch_size=1)(delayed(id)(ExitsWhenPickled() if i == 30 else i) for i in range(60))


def test_an_argument_that_cannot_be_loaded_there():
    with pytest.raises(sky.PayloadError, match="not on this side"):
        Parallel(n_jobs=2)(delayed(id)(Homesick()) for _ in range(4))


def test_a_result_that_cannot_be_pickled():
    with pytest.raises(sky.PayloadError, match="lock"):
        Parallel(n_jobs=2)(delayed(make_lock)(i) for i in range(4))


def test_a_result_that_cannot_be_loaded_here():
    with pytest.raises(sky.PayloadError, match="not on this side"):
        Parallel(n_jobs=2)(delayed(make_homesick)(i) for i in range(4))


def test_an_exception_that_cannot_be_pickled():
    with pytest.raises(Fickle, match="fickle"):
        Parallel(n_jobs=2)(delayed(raise_fickle)(i) for i in range(4))
    with pytest.raises((Unbearable, sky.TaskFailed), match="to be told anyway"):
        Parallel(n_jobs=2)(delayed(raise_unbearable)(i) for i in range(4))


def test_recursion_without_end():
    with pytest.raises(RecursionError):
        Parallel(n_jobs=2)(delayed(recurse)(i) for i in range(2))


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("return_as", ["list", "generator_unordered"])
def test_an_iterator_that_fails_late(error, return_as):
    """joblib pulls it in the thread that delivers, and expects nothing but Exception there."""

    def calls():
        for i in range(60):
            if i == 40:
                raise error("late")
            yield delayed(square)(i)

    with pytest.raises(error, match="late"):
        list(Parallel(n_jobs=2, batch_size=1, return_as=return_as)(calls()))


class Full:
    """A standard error that breaks after a few lines."""

    def __init__(self):
        self.left = 8

    def write(self, text):
        self.left -= 1
        if self.left < 0:
            raise BrokenPipeError("nobody reads")

    def flush(self):
        pass


def test_progress_that_cannot_be_printed(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Full())
    with pytest.raises(BrokenPipeError):
        Parallel(n_jobs=2, batch_size=1, verbose=20)(delayed(square)(i) for i in range(60))


def test_an_abort_stops_long_tasks():
    began = time.monotonic()
    with pytest.raises(TypeError):
        Parallel(n_jobs=4, batch_size=1)(delayed(time.sleep)(s) for s in ["a"] + [60] * 100)
    assert Parallel(n_jobs=4, batch_size=1)([delayed(square)(2)] * 8) == [4] * 8
    assert time.monotonic() - began < 10


def test_an_abort_touches_only_its_own_call(pool):
    results: list[object] = []
    other = threading.Thread(
        target=lambda: results.extend(
            Parallel(n_jobs=2, batch_size=1, backend="skyward")(delayed(pause)(i) for i in range(10))
        )
    )
    other.start()
    for _ in range(3):
        with pytest.raises(TypeError):
            Parallel(n_jobs=2, batch_size=1)(delayed(time.sleep)(s) for s in ["a"] + [60] * 10)
    other.join(LIMIT)
    assert results == list(range(10))


@pytest.mark.slow
def test_an_interrupt_of_the_caller_stops_the_tasks():
    main = threading.main_thread()
    timer = threading.Timer(0.5, lambda: signal.pthread_kill(main.ident, signal.SIGINT))
    timer.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        Parallel(n_jobs=4)(delayed(time.sleep)(60) for _ in range(8))
    timer.join()
    assert time.monotonic() - began < 30


@pytest.mark.slow
def test_calls_within_callbacks(pool):
    """The iterator is pulled in the thread that delivers; there it may well use the pool itself."""

    def calls():
        for i in range(12):
            yield delayed(square)(sum(Parallel(n_jobs=2, backend="skyward")(delayed(square)(j) for j in range(3))) + i)

    assert Parallel(n_jobs=2, batch_size=1)(calls()) == [(5 + i) ** 2 for i in range(12)]


@pytest.mark.slow
def test_tasks_that_end_before_their_callback_is_there(monkeypatch):
    """Such a callback runs inside `submit`, which would submit the next one, and so on."""
    submit = dispatch.Dispatcher.submit

    def slow_submit(self, *args, **kwargs):
        future = submit(self, *args, **kwargs)
        with contextlib.suppress(Exception):
            future.exception(5)
        return future

    monkeypatch.setattr(dispatch.Dispatcher, "submit", slow_submit)
    count = sys.getrecursionlimit() // 2
    assert Parallel(n_jobs=2, batch_size=1)(delayed(square)(i) for i in range(count)) == [i**2 for i in range(count)]


@pytest.mark.slow
def test_a_pool_that_is_closed_under_a_running_call():
    with sky.Compute(concurrency=2, console=False) as pool:
        timer = threading.Timer(0.5, lambda: pool.close(cancel=True))
        timer.start()
        with pytest.raises(sky.PoolNotActive), joblib.parallel.parallel_config(backend=SkywardBackend(pool)):
            Parallel(n_jobs=2)(delayed(time.sleep)(60) for _ in range(4))
        timer.join()
