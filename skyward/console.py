"""What a pool shows its user: the output of tasks, and on a terminal also a live line and a closing summary.

It listens to `skyward.core.events` and knows nothing else about the pool. `Tally` counts and is pure: time is an
argument. `Console` connects a tally to the terminal. Drawing is in `skyward.console_live`, which needs rich and is
imported only if there is a terminal to draw on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from skyward.core.events import (
    Event,
    Machines,
    NodeGone,
    NodeReady,
    NodeStep,
    Note,
    PoolStarted,
    Printed,
    TaskEnded,
    TasksQueued,
)
from skyward.core.visible import printed, shown

if TYPE_CHECKING:
    from skyward.console_live import LiveLine

__all__ = ["Console", "Rate", "Tally", "live_text", "summary_text", "terminal"]

_log = logging.getLogger("skyward")

_MAX_PENDING = 32 * 1024 * 1024  # characters of output that may wait for a reader that is slow or stopped
_SHORT = 0.1  # seconds; shorter tasks can't keep a slot busy, whoever sends them
_RATE_WINDOW = 5.0  # seconds over which the live rate is measured


# --- counting -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Tally:
    """What the events of one pool add up to.

    Each event is added with the time at which it arose. Times come from one clock and need not be strictly in order, as
    events come from several threads. Not thread-safe.

    Notes
    -----
    *Wall* time runs from when the first task was queued until the last task ended. *Slot-seconds* are the integral of
    the ready slots over the wall time, so a node that joined late or was lost counts for the time it was there.
    *Efficiency* is the total time that tasks ran, divided by the slot-seconds. A task that was lost with its node and
    run again counts once. What the driver does between two batches of work is part of the wall time.

    Nodes do not report *busy* slots. One submission occupies one slot, and no slot is idle while a submission waits
    that could run there, so busy = min(slots, submissions that have not ended).
    """

    provider: str = ""
    wanted: int = 0
    nodes: dict[str, int] = field(default_factory=dict)  # nodes that are ready -> their slots
    steps: dict[str, str] = field(default_factory=dict)  # nodes that are starting -> what they are doing
    machines: Machines = field(default_factory=Machines)
    lost: int = 0
    slots: int = 0
    queued: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    busy_seconds: float = 0.0
    _out: int = 0  # submissions (each a task or a batch) that have not ended
    _first_queued: float | None = None
    _last_ended: float | None = None
    _slot_seconds: float = 0.0  # from the first queued task until `_slots_since`
    _slots_since: float = 0.0
    _slot_seconds_at_end: float = 0.0

    def add(self, event: Event, now: float) -> None:
        """Count one event, in constant time. Output and notes are ignored."""
        match event:
            case TaskEnded():
                self._task_ended(event, now)
            case TasksQueued():
                self.queued += event.count
                self._out += 1
                self._begin(now)
            case NodeReady():
                self.steps.pop(event.node, None)
                self._set_slots(event.node, event.slots, now)
            case NodeGone():
                self.steps.pop(event.node, None)
                self.lost += event.reason is not None
                self._set_slots(event.node, 0, now)
            case Machines():
                self.machines = event
            case NodeStep():
                self.steps[event.node] = event.step
            case PoolStarted():
                self.provider, self.wanted = event.provider, event.nodes
            case _:
                pass

    @property
    def busy(self) -> int:
        """Number of slots that are running a task."""
        return max(0, min(self.slots, self._out))

    @property
    def wall(self) -> float:
        """Seconds from when the first task was queued until the last one ended; 0 before any has ended."""
        if self._first_queued is None or self._last_ended is None:
            return 0.0
        return max(0.0, self._last_ended - self._first_queued)

    @property
    def throughput(self) -> float:
        """Tasks done per second of wall time; 0 before any has ended."""
        return self.done / self.wall if self.wall else 0.0

    @property
    def efficiency(self) -> float | None:
        """Total time that tasks ran / slot-seconds, from 0 to 1; None before a task has ended on a slot."""
        return self.busy_seconds / self._slot_seconds_at_end if self._slot_seconds_at_end > 0 else None

    @property
    def could_be_efficient(self) -> bool:
        """Whether the work could have kept the slots busy: enough tasks for all slots, and not too short on average."""
        ended = self.done + self.failed
        return ended * self.wall >= 2 * self._slot_seconds_at_end > 0 and self.busy_seconds >= ended * _SHORT

    def _task_ended(self, event: TaskEnded, now: float) -> None:
        # The end of a quick task may be reported before the thread that submitted it reports the submission.
        self._begin(now - event.seconds)
        self._out -= 1
        self.busy_seconds += event.seconds
        if event.ok:
            self.done += event.count
        elif event.cancelled:
            self.cancelled += event.count
        else:
            self.failed += event.count
        self._last_ended = max(now, self._last_ended or now)
        self._slot_seconds_at_end = self._slot_seconds + self.slots * max(0.0, now - self._slots_since)

    def _begin(self, now: float) -> None:
        if self._first_queued is None:
            self._first_queued = self._slots_since = now

    def _set_slots(self, node: str, slots: int, now: float) -> None:
        if self._first_queued is not None:
            self._slot_seconds += self.slots * max(0.0, now - self._slots_since)
            self._slots_since = now
        self.slots += slots - self.nodes.pop(node, 0)
        if slots:
            self.nodes[node] = slots


class Rate:
    """Tasks per second over the last few seconds, from occasional samples. Time is an argument."""

    def __init__(self, window: float = _RATE_WINDOW) -> None:
        self._window = window
        self._samples: deque[tuple[float, int]] = deque()

    def sample(self, now: float, count: int) -> float:
        """Add a sample of a growing count; return how fast it has grown since the oldest sample in the window."""
        while len(self._samples) > 1 and self._samples[1][0] <= now - self._window:
            self._samples.popleft()
        self._samples.append((now, count))
        then, before = self._samples[0]
        return (count - before) / (now - then) if now > then else 0.0


# --- wording --------------------------------------------------------------------------------------------------------


def live_text(tally: Tally, rate: float, elapsed: float) -> str:
    """The live line: what the nodes are doing until the first task is submitted, then the progress of the tasks.

    Parameters
    ----------
    tally
        The counts so far.
    rate
        Tasks per second, lately.
    elapsed
        Seconds since the pool was entered.
    """
    parts = [f"nodes {len(tally.nodes)}/{tally.wanted}"]
    if tally.lost:
        parts.append(f"{tally.lost} lost")
    machines = tally.machines
    counts = ((machines.ordered, "ordered"), (machines.booting, "booting"), (machines.ending, "releasing"))
    parts += [f"{count} {what}" for count, what in counts if count]
    if tally.queued or (tally.nodes and not tally.steps):
        parts.append(f"slots {tally.busy}/{tally.slots} busy")
    if tally.queued:
        parts += [f"tasks {tally.done}/{tally.queued}", f"{_number(rate)} tasks/s", *_other_ends(tally)]
    elif len(tally.steps) <= 1:
        parts += tally.steps.values()
    else:  # "connecting to 10.0.0.5" and "connecting to 10.0.0.6" become "2 connecting"
        verbs = Counter(step.partition(" ")[0] for step in tally.steps.values())
        parts += [f"{count} {verb}" for verb, count in verbs.most_common()]
    return shown(f"skyward {tally.provider}: {' | '.join(parts)} | {elapsed:.0f} s", lines=False)


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
    stream
        The terminal to draw on; None finds one.

    Notes
    -----
    The output of tasks is written whether or not `live`, to what `sys.stdout` and `sys.stderr` are at that moment. A
    separate thread writes it, so that a stopped terminal or a pipe that nobody reads never holds up the pool.
    """

    def __init__(self, *, live: bool, stream: TextIO | None = None) -> None:
        self.tally = Tally()
        self._began = time.monotonic()
        self._rate = Rate()
        # Guards `tally`, which is changed from several threads and read by the live line's.
        self._lock = threading.Lock()
        self._writer = _Writer()
        self._closed = False
        self._live = live
        self._terminal = (stream or terminal()) if live else None
        self._line: LiveLine | None = _start_line(self._terminal, self._text)

    def __repr__(self) -> str:
        return f"<Console {'live' if self._line else 'quiet'}; {summary_text(self.tally)}>"

    def handle(self, event: Event) -> None:
        """Show one event; from any thread. Waits for nothing but other events."""
        if isinstance(event, Printed):
            self._writer.put("stdout" if event.stream == 1 else "stderr", mark(event.node, event.text))
        elif isinstance(event, Note):
            self._note(event)
        else:
            with self._lock:
                self.tally.add(event, time.monotonic())

    def close(self) -> None:
        """Write pending output, remove the live line and print the summary. May be repeated."""
        if self._closed:
            return
        self._closed = True
        try:
            self._writer.close()
        finally:  # Ctrl-C may interrupt the wait
            if self._line is not None:
                self._line.stop()
        with self._lock:
            ended = self.tally.done + self.tally.failed + self.tally.cancelled
            summary = summary_text(self.tally)
        if self._terminal is not None and ended:
            with contextlib.suppress(OSError, ValueError):  # the terminal is gone
                self._terminal.write(f"{summary}\n")
                self._terminal.flush()

    def _note(self, note: Note) -> None:
        # Purchases are reported even without a terminal (nohup, a batch system, a notebook): if logging is not set up,
        # a log record would be lost.
        text = shown(note.text)
        if self._terminal is not None or (self._live and not _log.hasHandlers()):
            self._writer.put("stderr", f"skyward: {'warning: ' if note.warning else ''}{text}\n")
        else:
            self._writer.put("warning" if note.warning else "info", text)

    def _text(self) -> str:
        now = time.monotonic()
        with self._lock:
            rate = self._rate.sample(now, self.tally.done) if self.tally.queued else 0.0
            return live_text(self.tally, rate, now - self._began)


def _start_line(stream: TextIO | None, text: Callable[[], str]) -> LiveLine | None:
    if stream is None or os.environ.get("TERM") in ("dumb", "unknown"):
        return None
    from skyward.console_live import LiveLine  # noqa: PLC0415  needs rich, which is only worth loading for a terminal

    return LiveLine.start(stream, text)


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
