"""Ctrl-C waits where it would leave something half done, and is never lost."""

from __future__ import annotations

import functools
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import FrameType

import pytest

from skyward.core import interrupts
from skyward.core.interrupts import Interrupts, is_interrupt, result_of, wait_for
from skyward.core.tasks.futures import TaskFuture


def _ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def test_an_interrupt_waits_until_it_is_let_in() -> None:
    steps = []
    with Interrupts() as interrupts:
        _ctrl_c()
        steps.append("begun")
        with pytest.raises(KeyboardInterrupt):
            interrupts.let_in()
        interrupts.hold()
        _ctrl_c()
        steps.append("ended")
        with pytest.raises(KeyboardInterrupt):
            interrupts.let_in()
    assert steps == ["begun", "ended"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_where_it_is_let_in_it_is_raised_at_once() -> None:
    with Interrupts() as interrupts:
        interrupts.let_in()
        with pytest.raises(KeyboardInterrupt):
            _ctrl_c()


def test_a_second_one_does_not_meet_who_handles_the_first() -> None:
    """It waits, whether the first came at once or had waited itself."""
    handled = []
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
        for early in (True, False):
            try:
                if early:
                    _ctrl_c()
                interrupts.let_in()
                _ctrl_c()
            except KeyboardInterrupt:
                _ctrl_c()
                handled.append(early)
            if early:
                with pytest.raises(KeyboardInterrupt):
                    interrupts.let_in()
    assert handled == [True, False]


def test_what_is_meant_for_the_program() -> None:
    """Ctrl-C, and what a handler of a signal raises while it is one; not what the user's code raises by itself."""

    class Handler:
        def method(self, *_: object) -> None:
            sys.exit(1)

        def __call__(self, *_: object) -> None:
            sys.exit(1)

    seen = []
    for handler in (lambda *_: sys.exit(1), Handler().method, Handler(), functools.partial(Handler().method, 1)):
        before = signal.signal(signal.SIGTERM, handler)
        try:
            signal.raise_signal(signal.SIGTERM)
        except SystemExit as error:
            seen.append(is_interrupt(error))
        finally:
            signal.signal(signal.SIGTERM, before)
    assert seen == [True] * 4
    assert is_interrupt(KeyboardInterrupt())
    assert not is_interrupt(ValueError())
    with pytest.raises(SystemExit) as caught:
        sys.exit(1)
    assert not is_interrupt(caught.value)


def test_what_was_not_let_in_comes_at_the_end() -> None:
    done = False
    with pytest.raises(KeyboardInterrupt), Interrupts():
        _ctrl_c()
        done = True
    assert done


def test_it_does_not_hide_an_error() -> None:
    with pytest.raises(LookupError), Interrupts():
        _ctrl_c()
        raise LookupError


def test_a_handler_of_the_program_stays() -> None:
    came = []

    def ours(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before = signal.signal(signal.SIGINT, ours)
    try:
        with Interrupts() as interrupts:
            _ctrl_c()
            interrupts.let_in()
    finally:
        signal.signal(signal.SIGINT, before)
    assert came == [signal.SIGINT]


def test_other_threads_are_left_alone() -> None:
    def close() -> None:
        with Interrupts() as interrupts:
            interrupts.let_in()

    thread = threading.Thread(target=close)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    "wait",
    [
        lambda: wait_for(threading.Event()),
        lambda: result_of(Future[None]()),
        lambda: TaskFuture[None](lambda _: None, 0).result(),
    ],
)
def test_an_interrupt_that_another_thread_got_ends_a_wait(wait: Callable[[], object]) -> None:
    """The handler is to run in the main thread, but the kernel's signal wakes only the thread that gets it."""
    started = threading.Event()

    def elsewhere() -> None:
        started.wait()
        _eventually_waits(threading.main_thread())
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        started.set()
        wait()
    thread.join()


WAITS = ("threading", "skyward.core.tasks.future_condition")


def _eventually_waits(thread: threading.Thread) -> None:
    assert thread.ident is not None
    while True:
        frame = sys._current_frames()[thread.ident]
        if frame.f_code.co_name == "wait" and frame.f_globals["__name__"] in WAITS:
            return
        time.sleep(0.001)


def test_a_result_is_awaited_as_long_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is, also an error that looks like the end of a wait."""
    monkeypatch.setattr(interrupts, "INTERRUPT_SECONDS", 0.001)
    future = Future[str]()
    thread = threading.Timer(0.05, future.set_result, ["value"])
    thread.start()
    assert result_of(future) == "value"
    thread.join()
    failed = Future[str]()
    failed.set_exception(TimeoutError("its own"))
    with pytest.raises(TimeoutError, match="its own"):
        result_of(failed)
