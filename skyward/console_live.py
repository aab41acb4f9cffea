"""A line at the bottom of a terminal, redrawn several times a second, with all other output above it.

Import it only if there is a terminal, since it needs rich. It knows nothing about pools: a function supplies the text.
"""

from __future__ import annotations

import builtins
import os
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.text import Text

__all__ = ["LiveLine"]

_PER_SECOND = 8

# Held by the one line drawn in this process; two on one terminal would overwrite each other.
_taken = threading.Lock()


class LiveLine:
    """The line, from `start` until `stop`.

    While it is shown, `sys.stdout` and `sys.stderr` are replaced, if they are that terminal, by streams that write
    above the line. A stream that goes elsewhere (``python script.py > file``) is left alone. So is `builtins.input`
    replaced, by one that removes the line while the user types, since what Python and pdb read there they write
    themselves.
    """

    def __init__(self, stream: TextIO, text: Callable[[], str]) -> None:
        self._text = text
        self._console = Console(file=stream, highlight=False, markup=False)
        self._above: dict[str, _Above] = {}
        self._live = self._make_live()
        self._stream = stream
        self._input = builtins.input
        self._process = os.getpid()
        # Guards what follows and `_live`: a pool may end while a thread asks the user.
        self._lock = threading.Lock()
        self._asking = 0
        self._stopped = False

    @classmethod
    def start(cls, stream: TextIO, text: Callable[[], str]) -> LiveLine | None:
        """Start drawing on `stream`; returns None if another line is already shown."""
        if not _taken.acquire(blocking=False):
            return None
        line = cls(stream, text)
        try:
            for name in ("stdout", "stderr"):
                original = getattr(sys, name)
                if _same_terminal(original, stream):
                    line._above[name] = above = _Above(original, line._console)
                    setattr(sys, name, above)
            line._live.start()
            builtins.input = line._ask
        except BaseException:
            line.stop()
            raise
        return line

    def stop(self) -> None:
        """Remove the line and restore the streams."""
        if builtins.input == self._ask:
            builtins.input = self._input
        try:
            with self._lock:
                self._stopped = True
                self._live.stop()
        finally:
            for name, above in self._above.items():
                above.pause()
                if getattr(sys, name) is above:  # otherwise someone has replaced it, and may restore it later
                    setattr(sys, name, above.original)
            _taken.release()

    def _make_live(self) -> Live:
        return Live(
            get_renderable=self._render,
            console=self._console,
            refresh_per_second=_PER_SECOND,
            transient=True,
            redirect_stdout=False,  # rich would send stdout to stderr and break long lines
            redirect_stderr=False,
        )

    def _ask(self, prompt: object = "", /) -> str:
        """Stands in for `input`."""
        if os.getpid() != self._process or not _is_terminal(sys.stdin):
            return self._input(prompt)
        with self._lock:
            self._asking += 1
            if self._asking == 1 and not self._stopped:
                self._live.stop()
                for above in self._above.values():
                    above.pause()
        try:
            return self._input(prompt)
        finally:
            with self._lock:
                self._asking -= 1
                if not self._asking and not self._stopped:
                    for above in self._above.values():
                        above.resume(self._console)
                    self._live = self._make_live()  # one that was stopped believes that its line is still there
                    self._live.start()

    def _render(self) -> RenderableType:
        line = Text(self._text(), no_wrap=True, overflow="crop")
        line.stylize("bold", 0, len("skyward"))
        line.highlight_regex(r"\d+ (failed|lost)", "red")
        unfinished = [Text(above.tail, no_wrap=True, overflow="crop") for above in self._above.values() if above.tail]
        return Group(*unfinished, line)


class _Above:
    """A text stream whose complete lines appear above the live line; an unfinished line is shown directly above it."""

    def __init__(self, original: TextIO, console: Console) -> None:
        self.original = original
        self._console: Console | None = console
        self._process = os.getpid()
        # Guards `_pending`, which is appended to by print calls in several threads.
        self._lock = threading.Lock()
        self._pending = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)

    @property
    def tail(self) -> str:
        """The unfinished line, as a terminal would show it after its carriage returns."""
        return self._pending.rstrip("\r").rpartition("\r")[2]

    def write(self, text: str) -> int:
        console = self._console
        if console is None or os.getpid() != self._process:  # while it is paused, or in a fork, where no line is drawn
            return self.original.write(text)
        with self._lock:
            whole, newline, self._pending = (self._pending + text).rpartition("\n")
            if newline:
                console.print(_Raw(whole + newline), soft_wrap=True, end="")
        return len(text)

    def write_lines(self, text: str) -> None:
        """Write complete lines above the unfinished line rather than after it."""
        console = self._console
        if console is None:
            self.original.write(text)
        else:
            console.print(_Raw(text), soft_wrap=True, end="")

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if self._console is None or os.getpid() != self._process:
            self.original.flush()

    def resume(self, console: Console) -> None:
        """Write above the line again."""
        with self._lock:
            self._console = console

    def pause(self) -> None:
        """Write the unfinished line, and pass everything through from now on."""
        with self._lock:
            self._console = None
            pending, self._pending = self._pending, ""
            self.original.write(pending)
            self.original.flush()


class _Raw:
    """Text printed to the terminal verbatim: escape sequences, tabs and long lines are left alone."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Segment(self._text)


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # there is none, or it is closed
        return False


def _same_terminal(stream: Any, terminal: TextIO) -> bool:
    if stream is terminal:
        return True
    try:
        return bool(stream.isatty()) and os.path.sameopenfile(stream.fileno(), terminal.fileno())
    except (AttributeError, OSError, ValueError):
        return False
