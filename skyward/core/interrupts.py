"""Ctrl-C only where it can be answered.

`KeyboardInterrupt` may come between any two steps of the main thread. Where one of two steps must not be left out, as
in "begin to give back, then wait for it", it has to wait until somebody is ready for it.
"""

from __future__ import annotations

import functools
import signal
import threading
import types
from types import FrameType
from typing import Any, NoReturn, Self

__all__ = ["Interrupts", "is_interrupt"]


def is_interrupt(error: BaseException) -> bool:
    """Whether an exception is meant for the program, not for the user's code that happened to run.

    That is Ctrl-C, or what the handler of a signal raises, such as that of SIGTERM which calls `sys.exit`.
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
    """What Python runs when a handler is called."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    if isinstance(handler, (types.FunctionType, types.MethodType)):
        return handler
    return getattr(type(handler), "__call__", None)  # noqa: B004  not whether it can be called, but the code of it


class Interrupts:
    """A block in which Ctrl-C waits, except where it is `let_in`; what was not, comes at the block's end.

    Elsewhere than in the main thread, and where the program has a handler of its own for SIGINT, nothing is changed.
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
            signal.signal(signal.SIGINT, self._come)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._holds:
            self._open = False
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if self._waiting and error is None:
                raise KeyboardInterrupt

    def let_in(self) -> None:
        """From here on `KeyboardInterrupt` is raised, once, at once if one waits; call it where that is caught."""
        self._open = True
        if self._waiting:
            self._waiting -= 1
            self._come_in()

    def hold(self) -> None:
        """From here on interrupts wait again."""
        self._open = False

    def _come(self, number: int, frame: FrameType | None) -> None:
        if self._open:
            self._come_in()
        self._waiting += 1

    def _come_in(self) -> NoReturn:
        self._open = False  # a second one must not meet whoever handles this one
        raise KeyboardInterrupt
