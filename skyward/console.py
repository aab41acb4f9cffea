"""What a pool shows its user: the output of tasks, and on a terminal also a live line and a closing summary.

It listens to `skyward.core.events`, and the figures are those of `skyward.core.tally`; it knows nothing else about the
pool. Drawing is in `skyward.console_live`, which needs rich and is imported only if there is a terminal to draw on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sys
import threading
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from skyward.core.events import AtPrompt, Event, Note, Printed, TasksQueued
from skyward.core.facts import Facts
from skyward.core.status import duration
from skyward.core.tally import Tally
from skyward.core.visible import printed, shown

if TYPE_CHECKING:
    from skyward.console_cell import Cell
    from skyward.console_live import LiveLine
    from skyward.console_marimo import MarimoCell
    from skyward.core.status import PoolStatus

__all__ = ["Console", "live_text", "summary_text", "terminal"]

_log = logging.getLogger("skyward")

_SOON = 5.0  # seconds; a shorter remaining time is not shown
_MAX_PENDING = 32 * 1024 * 1024  # characters of output that may wait for a reader that is slow or stopped


# --- wording --------------------------------------------------------------------------------------------------------


def live_text(tally: Tally, now: float) -> str:
    """The live line: what the nodes are doing until the first task is submitted, then the progress of the tasks."""
    parts = [f"nodes {len(tally.nodes)}/{tally.wanted}{' draining' if tally.draining else ''}"]
    if tally.lost:
        parts.append(f"{tally.lost} lost")
    machines = tally.machines
    counts = ((machines.ordered, "ordered"), (machines.booting, "booting"), (machines.ending, "releasing"))
    parts += [f"{count} {what}" for count, what in counts if count]
    if tally.queued or (tally.nodes and not tally.steps):
        parts.append(f"slots {tally.busy}/{tally.slots} busy")
    if tally.queued:
        parts += [f"tasks {tally.done}/{tally.queued}", f"{_number(tally.rate(now))} tasks/s", *_other_ends(tally)]
        parts += [f"{duration(left)} left"] if (left := tally.left(now)) and left >= _SOON else []
    elif len(tally.steps) <= 1:
        parts += tally.steps.values()
    else:  # "connecting to 10.0.0.5" and "connecting to 10.0.0.6" become "2 connecting"
        verbs = Counter(step.partition(" ")[0] for step in tally.steps.values())
        parts += [f"{count} {verb}" for verb, count in verbs.most_common()]
    parts += [f"${cost:.2f}"] if (cost := tally.money.cost(now)) else []
    return shown(f"skyward {tally.provider}: {' | '.join(parts)} | {tally.elapsed(now):.0f} s", lines=False)


def summary_text(tally: Tally) -> str:
    """The line that closes a block in which tasks ended."""
    parts = [f"{tally.done} tasks in {tally.wall:.2f} s", f"{_number(tally.throughput)} tasks/s"]
    if tally.efficiency is not None:
        # A second of work on a hundred slots would show a tiny percentage, which is nobody's fault.
        is_meaningful = tally.could_be_efficient
        total = f"total task time {tally.busy_seconds:.2f} s"
        parts.append(f"efficiency {tally.efficiency:.1%}" if is_meaningful else total)
    parts += _other_ends(tally)
    if tally.lost:
        parts.append(f"{tally.lost} nodes lost")
    return shown(f"skyward {tally.provider}: {' | '.join(parts)}", lines=False)


def _other_ends(tally: Tally) -> list[str]:
    """How many tasks failed or were cancelled, if any."""
    return [f"{count} {how}" for count, how in ((tally.failed, "failed"), (tally.cancelled, "cancelled")) if count]


def mark(node: str, text: str) -> str:
    """Prefix each line with the name of its node."""
    return "".join(f"[{shown(node)}] {line}\n" for line in printed(text).removesuffix("\n").split("\n"))


def _number(rate: float) -> str:
    return f"{rate:.1f}" if rate < 100 else f"{rate:.0f}"


# --- showing --------------------------------------------------------------------------------------------------------


def terminal() -> TextIO | None:
    """The stream to draw on: stderr if it is a terminal, otherwise stdout if that is; None if neither is."""
    for stream in (sys.stderr, sys.stdout):
        try:
            if stream.isatty():
                return stream
        except (AttributeError, ValueError):  # there is no stream, or it is closed
            continue
    return None


class Console:
    """Shows the events of one pool. Subscribe `handle`; call `close` once the pool has ended.

    Parameters
    ----------
    live
        Whether to show the live line and the summary, if there is a terminal.
    facts
        The pool's running totals.
    stream
        The terminal to draw on; None finds one.

    Notes
    -----
    The output of tasks is written whether or not `live`, to what `sys.stdout` and `sys.stderr` are at that moment. A
    separate thread writes it, so that a stopped terminal or a pipe that nobody reads never holds up the pool.
    """

    kinds: tuple[type[Event], ...] = (Printed, Note, AtPrompt)
    """The events that it handles."""

    def __init__(self, *, live: bool, facts: Facts, stream: TextIO | None = None) -> None:
        self._facts = facts
        self._writer = _Writer()
        self._closed = False
        self._live = live
        self._terminal = (stream or terminal()) if live else None
        self._line: LiveLine | None = _start_line(self._terminal, self._text)
        self._cell = _start_cell(facts.status) if live and self._terminal is None else None
        if self._cell is not None:
            self.kinds = (*self.kinds, TasksQueued)

    def __repr__(self) -> str:
        return f"<Console {'live' if self._line else 'quiet'}>"

    def handle(self, event: Event) -> None:
        """Show one event; from any thread. Waits for nothing but other events."""
        if isinstance(event, Printed):
            self._writer.put("stdout" if event.stream == 1 else "stderr", mark(event.node, event.text))
        elif isinstance(event, Note):
            self._note(event)
        elif isinstance(event, AtPrompt):
            line, self._line = self._line, None
            if line is not None:
                line.stop()
        elif isinstance(event, TasksQueued) and self._cell is not None:
            self._cell.submitted()

    def close(self) -> None:
        """Write pending output, remove the live line and print the summary. May be repeated."""
        if self._closed:
            return
        self._closed = True
        try:
            self._writer.close()
        finally:  # Ctrl-C may interrupt the wait
            for shown_line in (self._line, self._cell):
                if shown_line is not None:
                    shown_line.stop()
        summary = self._facts.read(_summary)
        if self._terminal is not None and summary:
            with contextlib.suppress(OSError, ValueError):  # the terminal is gone
                self._terminal.write(f"{summary}\n")
                self._terminal.flush()

    def _note(self, note: Note) -> None:
        # Purchases are reported even without a terminal (nohup, a batch system, a notebook): if logging is not set up,
        # a log record would be lost.
        text = shown(note.text)
        if self._terminal is not None or self._cell is not None or (self._live and not _log.hasHandlers()):
            self._writer.put("stderr", f"skyward: {'warning: ' if note.warning else ''}{text}\n")
        else:
            self._writer.put("warning" if note.warning else "info", text)

    def _text(self) -> str:
        return self._facts.read(live_text)


def _summary(tally: Tally, _: float) -> str:
    """The closing line; empty if no task has ended."""
    return summary_text(tally) if tally.done or tally.failed or tally.cancelled else ""


def _start_line(stream: TextIO | None, text: Callable[[], str]) -> LiveLine | None:
    if stream is None or os.environ.get("TERM") in ("dumb", "unknown"):
        return None
    from skyward.console_live import LiveLine  # noqa: PLC0415  needs rich, which is only worth loading for a terminal

    return LiveLine.start(stream, text)


def _start_cell(status: Callable[[], PoolStatus]) -> Cell | MarimoCell | None:
    if "ipykernel" in sys.modules:
        from skyward.console_cell import Cell  # noqa: PLC0415  needs IPython

        return Cell.start(status)
    if "marimo" in sys.modules:
        from skyward.console_marimo import MarimoCell  # noqa: PLC0415  needs marimo

        return MarimoCell.start(status)
    return None


class _Writer:
    """A thread that writes texts in the order they arrive; started by the first."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[str, str] | None] = queue.SimpleQueue()
        # Guards what follows; only held briefly, never while writing.
        self._lock = threading.Lock()
        self._pending = 0
        self._dropped = 0
        self._thread: threading.Thread | None = None
        self._closed = False

    def put(self, target: str, text: str) -> None:
        """Write `text` to ``"stdout"`` or ``"stderr"``, or log it as ``"info"`` or ``"warning"``. Never waits."""
        with self._lock:
            if self._closed:
                return
            if self._pending > _MAX_PENDING:
                self._dropped += 1
                return
            self._pending += len(text)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="skyward-output", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the interpreter is shutting down
                    _write(target, text)
                    return
                self._thread = thread
            self._queue.put((target, text))

    def close(self) -> None:
        """Wait until everything is written."""
        with self._lock:
            self._closed = True
            thread = self._thread
        if thread is not None:
            self._queue.put(None)
            thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            _write(*item)
            with self._lock:
                self._pending -= len(item[1])
                dropped, self._dropped = (self._dropped, 0) if self._pending == 0 else (0, self._dropped)
            if dropped:
                _write(
                    "stderr", f"skyward: dropped {dropped} pieces of output that arrived faster than they were read\n"
                )


def _write(target: str, text: str) -> None:
    if target in ("info", "warning"):
        _log.log(logging.WARNING if target == "warning" else logging.INFO, "%s", text)
        return
    stream = getattr(sys, target)  # looked up now: a notebook or a test may have replaced it
    try:
        write = getattr(stream, "write_lines", stream.write)  # the live line's way to write above an unfinished line
        try:
            write(text)
        except UnicodeEncodeError:
            encoding = stream.encoding or "ascii"
            write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except (AttributeError, OSError, ValueError):  # there is no stream, its reader is gone, or it is closed
        pass
