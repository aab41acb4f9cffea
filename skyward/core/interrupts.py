"""Defers Ctrl-C to where it can be handled.

`KeyboardInterrupt` may be raised between any two steps of the main thread. If neither of two steps may be skipped, as
in "start to release, then wait for it", the interrupt has to wait until the code is ready for it.
"""

from __future__ import annotations

import functools
import signal
import threading
import types
from concurrent.futures import Future
from types import FrameType
from typing import Any, NoReturn, Self, TypeVar

__all__ = ["INTERRUPT_SECONDS", "Interrupts", "is_interrupt", "result_of", "wait_for"]

_T = TypeVar("_T")
INTERRUPT_SECONDS = 0.5
"""How long the main thread may wait in one go, since it may see an interrupt only afterwards; see `wait_for`."""


def is_interrupt(error: BaseException) -> bool:
    """Whether an exception is meant for the whole program, not for the user's code that happened to be running.

    That is the case for Ctrl-C, and for what a signal handler raises, such as a handler of SIGTERM that calls
    `sys.exit`.
    """
    if isinstance(error, Exception):
        return False
    if isinstance(error, KeyboardInterrupt):
        return True
    handlers = {getattr(_function(signal.getsignal(number)), "__code__", None) for number in signal.valid_signals()}
    frame = error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code in handlers:
            return True
        frame = frame.tb_next
    return False


def _function(handler: Any) -> Any:
    """The function that Python runs when a handler is called."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    if isinstance(handler, (types.FunctionType, types.MethodType)):
        return handler
    return getattr(type(handler), "__call__", None)  # noqa: B004  its code is wanted, not whether it is callable


class Interrupts:
    """A block that holds Ctrl-C back, except where it is `let_in`; a pending one is raised at the end of the block.

    Outside the main thread, and if the program has its own handler for SIGINT, the block changes nothing.
    """

    def __init__(self) -> None:
        self._waiting = 0
        self._open = False
        self._holds = False

    def __repr__(self) -> str:
        return f"<Interrupts {self._waiting} waiting, {'let in' if self._open else 'held'}>"

    def __enter__(self) -> Self:
        here = threading.current_thread() is threading.main_thread()
        if here and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._holds = True
            signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._holds:
            self._open = False
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if self._waiting and error is None:
                raise KeyboardInterrupt

    def let_in(self) -> None:
        """Raise the next interrupt, or immediately one that is pending; call this where the exception is caught."""
        self._open = True
        if self._waiting:
            self._waiting -= 1
            self._raise()

    def hold(self) -> None:
        """Hold interrupts back again."""
        self._open = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._open:
            self._raise()
        self._waiting += 1

    def _raise(self) -> NoReturn:
        self._open = False  # a second one must not hit the handler of this one
        raise KeyboardInterrupt


def wait_for(event: threading.Event) -> None:
    """Wait for an event; an interrupt is answered within half a second.

    The kernel may deliver a signal to another thread, or between Python's last check for signals and the system call in
    which the main thread then waits. In both cases Python runs the handler only after that wait, which must therefore
    end now and then.
    """
    while not event.wait(INTERRUPT_SECONDS):
        pass


def result_of(future: Future[_T]) -> _T:
    """Return a future's result, or raise its error; an interrupt is answered as in `wait_for`."""
    while True:
        try:
            return future.result(INTERRUPT_SECONDS)
        except TimeoutError:
            if future.done():  # perhaps the error is its own
                return future.result()
