"""Ctrl-C waits where it would leave something half done, and is never lost."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import pytest

from skyward.core.interrupts import Interrupts


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


def test_where_it_is_let_in_it_comes_at_once() -> None:
    with Interrupts() as interrupts:
        interrupts.let_in()
        with pytest.raises(KeyboardInterrupt):
            _ctrl_c()


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
