"""Ctrl-C waits where it would leave something half done, and is never lost."""

from __future__ import annotations

import functools
import signal
import sys
import threading
from types import FrameType

import pytest

from skyward.core.interrupts import Interrupts, is_interrupt


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
