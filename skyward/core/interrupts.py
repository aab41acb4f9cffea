"""Ctrl-C only where it can be answered.

`KeyboardInterrupt` may come between any two steps of the main thread. Where one of two steps must not be left out, as
in "begin to give back, then wait for it", it has to wait until somebody is ready for it.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Self

__all__ = ["Interrupts"]


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
        """From here on `KeyboardInterrupt` is raised, at once if one waits; call it where that is caught."""
        self._open = True
        if self._waiting:
            self._waiting -= 1
            raise KeyboardInterrupt

    def hold(self) -> None:
        """From here on interrupts wait again."""
        self._open = False

    def _come(self, number: int, frame: FrameType | None) -> None:
        if self._open:
            raise KeyboardInterrupt
        self._waiting += 1
