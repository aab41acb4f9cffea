"""What the page shows beyond a pool's status: the history of its tasks, nodes, failures and output, in bounded memory.

Events are only queued when they occur, since most of them do so in the pool's I/O thread; `Recording.digest` processes
them about once a second in the page's own. Time is an argument, in seconds of ``time.monotonic()``.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field

from skyward.core.events import (
    Event,
    MachineInfo,
    NodeGone,
    NodeLoad,
    NodeReady,
    Note,
    Printed,
    TaskEnded,
    Transferred,
)
from skyward.core.gpus import Gpu
from skyward.core.payload.exceptions import traceback_text
from skyward.core.status import NodeStatus, PoolStatus
from skyward.core.visible import printed, shown
from skyward.dashboard.blocks import Block, Blocks

__all__ = ["MAX_LABELS", "OTHER", "Bins", "FailureKind", "Node", "Recording", "SaidLine"]

MAX_LABELS = 100
OTHER = "other"
"""Name under which functions beyond the first `MAX_LABELS` are shown."""

_MAX_ROWS = 16_384
_MAX_NODES = 5000  # beyond this, nodes that are gone are forgotten
_MAX_LOADS = 60  # for each node: a quarter of an hour and more
_MAX_KINDS = 100  # of failures
_MAX_EXAMPLES = 5  # of each kind
_MAX_LINES = 1000
_MAX_TRANSFERS = 5000
_MAX_TEXT = 1000  # characters of a piece of output
_MAX_TEXTS = 200  # pieces of output kept from one digest to the next, the latest
_MAX_TRACEBACK = 12_000  # characters
_MAX_BINS = 600
_MAX_ARRIVALS = 100_000  # ends of tasks that are queued: those of many seconds


@dataclass(slots=True)
class Node:
    """A node that events were about. Times are in ms since the recording began.

    Attributes
    ----------
    number
        Its number in messages; given to another node once this one is forgotten.
    rows
        Numbers of its slots' rows; None for a slot that is not drawn.
    since, until
        When it was ready and when it was gone; None if that has not happened.
    reason
        Why it was lost; None if it was not.
    info, gpus, load
        Its machine, and its latest report.
    done, failed
        How many tasks ended there.
    transfers, moved
        Large data that has arrived there: number of transfers, and total bytes.
    loads
        Time, CPU and memory in hundredths, or None where that is not known.
    last
        By slot, the block that its latest task is part of.
    """

    number: int
    name: str
    rows: list[int | None] = field(default_factory=list)
    since: int | None = None
    until: int | None = None
    reason: str | None = None
    info: MachineInfo = field(default_factory=MachineInfo)
    gpus: tuple[Gpu, ...] = ()
    load: NodeLoad | None = None
    done: int = 0
    failed: int = 0
    transfers: int = 0
    moved: int = 0
    loads: deque[tuple[int, int | None, int | None]] = field(default_factory=lambda: deque(maxlen=_MAX_LOADS))
    last: dict[int, Block] = field(default_factory=dict)


@dataclass(slots=True)
class FailureKind:
    """Failures of one function with errors of one type.

    Attributes
    ----------
    number, label, error
        Its number in messages, function and type of the errors.
    count, first, last
        How many tasks, and when the first and the last one failed, in ms.
    examples
        The first ones with different messages: time, node, slot, message and traceback.
    """

    number: int
    label: str
    error: str
    count: int = 0
    first: int = 0
    last: int = 0
    examples: list[tuple[int, str, int, str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SaidLine:
    """Output of tasks, or a message. `kind` is ``"out"``, ``"err"``, ``"note"`` or ``"warning"``."""

    at: int
    kind: str
    node: str
    text: str


_NOBODY = Node(-1, "")  # stands for nodes that are not known


class Bins:
    """Tasks that ended, in equal spans of time whose length doubles whenever there are too many of them.

    Attributes
    ----------
    width
        Length of a span, in ms.
    done, failed
        How many tasks ended so in each span.
    """

    def __init__(self, max_bins: int = _MAX_BINS) -> None:
        self.width = 1000
        self.done: list[int] = [0]
        self.failed: list[int] = [0]
        self._max_bins = max_bins

    def add(self, at: int, done: int, failed: int) -> None:
        """Count tasks that ended.

        Parameters
        ----------
        at
            When, in ms.
        done, failed
            How many ended so.
        """
        index = at // self.width
        while index >= self._max_bins:
            self.done, self.failed = _halved(self.done), _halved(self.failed)
            self.width *= 2
            index = at // self.width
        missing = index + 1 - len(self.done)
        self.done += [0] * missing
        self.failed += [0] * missing
        self.done[index] += done
        self.failed[index] += failed


def _halved(counts: list[int]) -> list[int]:
    return [sum(counts[index : index + 2]) for index in range(0, len(counts), 2)]


class Recording:
    """The history of one pool.

    Parameters
    ----------
    origin
        The time that counts as zero.
    max_rows
        How many slots are drawn. Those of nodes that are gone make room for others.
    max_blocks
        See `Blocks`.

    Attributes
    ----------
    lock
        Guards all attributes except those that `handle` puts events into. Hold it to read them.
    labels
        Names of the functions, by number.
    nodes
        By name, in the order in which they first appeared.
    rows
        Of each row, its node and slot; None for one that is free.
    fresh_rows
        Those that were given to a slot; the feed empties this.
    transfers, transfers_seen
        The latest that arrived: node, start and length in ms, bytes, and the node it came from or empty; and how many
        there were.
    undrawn
        How many slots got no row because none was left.
    put
        The same as `handle` for the end of a task without an exception; quicker, as there may be thousands per second.
    """

    kinds = (TaskEnded, NodeLoad, NodeReady, NodeGone, Transferred, Printed, Note)
    """The events that it needs."""

    def __init__(self, origin: float, *, max_rows: int = _MAX_ROWS, max_blocks: int = 100_000) -> None:
        self.lock = threading.RLock()  # guards all that is below, but what `handle` fills; see the attribute
        self.blocks = Blocks(max_blocks)
        self.bins = Bins()
        self.labels: list[str] = []
        self.nodes: dict[str, Node] = {}
        self.rows: list[tuple[Node, int] | None] = []
        self.fresh_rows: set[int] = set()
        self.undrawn = 0
        self.failures: dict[tuple[str, str], FailureKind] = {}
        self.transfers: deque[tuple[str, int, int, int, str]] = deque(maxlen=_MAX_TRANSFERS)
        self.transfers_seen = 0
        self.lines: deque[SaidLine] = deque(maxlen=_MAX_LINES)
        self.lines_seen = 0
        self.log: deque[SaidLine] = deque(maxlen=_MAX_LINES)
        self.log_seen = 0
        self._origin = origin
        self._max_rows = max_rows
        self._numbers: dict[str, int] = {}  # of labels
        self._free_nodes: list[int] = []
        self._free_rows: list[int] = []
        self._next_node = 0
        # Filled by `handle` in several threads, each with a single call, which needs no lock.
        self._ended: deque[TaskEnded] = deque(maxlen=_MAX_ARRIVALS)
        self.put = self._ended.append
        self._texts: deque[tuple[float, Printed]] = deque(maxlen=_MAX_TEXTS)
        self._others: deque[tuple[float, Event]] = deque()
        self._tracebacks: deque[tuple[str, str, str]] = deque(maxlen=_MAX_KINDS * _MAX_EXAMPLES)
        self._formatted: dict[tuple[str, str], int] = {}

    def __repr__(self) -> str:
        return f"<Recording of {len(self.nodes)} nodes, {len(self.blocks)} blocks>"

    def ms(self, now: float) -> int:
        """Convert a time to ms since the recording began."""
        return max(0, int((now - self._origin) * 1000))

    # --- any thread ---

    def handle(self, event: Event, now: float) -> None:
        """Queue an event; from any thread."""
        if type(event) is TaskEnded:
            self.put(event if event.exception is None else self._lightened(event))
        elif type(event) is Printed:
            self._texts.append((now, Printed(event.node, event.stream, event.text[:_MAX_TEXT])))
        else:
            self._others.append((now, event))

    def _lightened(self, event: TaskEnded) -> TaskEnded:
        """The event without its exception, which may hold large objects; some tracebacks are kept as text."""
        kind = event.label, _type(event)
        seen = self._formatted.get(kind, 0)
        if seen < _MAX_EXAMPLES and (kind in self._formatted or len(self._formatted) < _MAX_KINDS):
            self._formatted[kind] = seen + 1
            assert event.exception is not None  # of others there is no text to keep
            text = traceback_text(event.exception)
            if len(text) > _MAX_TRACEBACK:
                half = _MAX_TRACEBACK // 2
                text = f"{text[:half]}\n[...]\n{text[-half:]}"
            self._tracebacks.append((event.label, event.error or "", shown(text)))
        return event._replace(exception=None)

    # --- one thread at a time ---

    def digest(self, now: float) -> int:
        """Process the queued events, and return how many tasks had ended."""
        with self.lock:
            while self._others:
                self._heard(*self._others.popleft())
            ended = len(self._ended)
            self._digest_tasks(ended, now)
            while self._texts:
                at, text = self._texts.popleft()
                kind = "out" if text.stream == 1 else "err"
                self.lines.append(SaidLine(self.ms(at), kind, shown(text.node), printed(text.text).rstrip("\n")))
                self.lines_seen += 1
        return ended

    def meet(self, status: PoolStatus) -> None:
        """Add what has not run yet: rows of slots, and functions in the order in which they were submitted."""
        with self.lock:
            for each in status.nodes:
                node = self.nodes.get(each.name) or self._adopted(each)
                for slot in range(len(node.rows), each.slots):
                    self._row(node, slot)
            for function in status.functions:
                self.label(function.label)

    def _adopted(self, status: NodeStatus) -> Node:
        """Return a new node that started before the recording, or is not ready yet."""
        node = self._new_node(status.name)
        node.info = MachineInfo(status.provider, status.type, status.price, status.spot, status.region)
        node.gpus, node.load, node.done, node.failed = status.gpus, status.load, status.done, status.failed
        return node

    def _digest_tasks(self, tasks: int, now: float) -> None:
        """Process that many tasks that have ended.

        There may be thousands per second. Most begin soon after their slot's last one, and only add to its block.
        """
        ended, nodes, numbers, origin = self._ended, self.nodes, self._numbers, self._origin
        second = over = 0.0  # the second in which the last ones ended, in ms
        done = 0  # in that second
        for _ in range(tasks):
            event = ended.popleft()
            # In one step, which takes half as long as reading each field.
            count, seconds, ok, _, name, slot, label, _, started = event[:9]
            node = nodes.get(name, _NOBODY)
            block = node.last.get(slot)
            start = -1.0 if started is None else (started - origin) * 1000
            busy = seconds * 1000
            end = start + busy
            if block is not None and start >= 0 and ok:
                number = number if (number := numbers.get(label)) is not None else self.label(label)
                if block.start <= start < block.until:
                    if end > block.end:  # noqa: PLR1730 - a call of max takes twice as long
                        block.end = end
                    if number != block.label:
                        self.blocks.vote(block, number, busy)
                    block.busy += busy
                    block.count += count
                    if not block.fresh:
                        self.blocks.touch(block)
                else:
                    self.blocks.begin(block, start, busy, number, count)
                node.done += count
            elif ok and start >= 0:
                self._draw(event, start)
            else:
                self._add(event, now)
                continue
            if second <= end < over:
                done += count
            else:
                self.bins.add(int(second), done, 0)
                second, done = end - end % 1000, count
                over = second + 1000
        self.bins.add(int(second), done, 0)
        self.blocks.pace(self.ms(now))

    def _add(self, event: TaskEnded, now: float) -> None:
        """Process a task that failed, was cancelled, ran nowhere, or began before the recording."""
        start = None if event.started is None else max(0.0, (event.started - self._origin) * 1000)
        at = self.ms(now) if start is None else int(start + event.seconds * 1000)
        failed = event.error is not None
        self.bins.add(at, event.count if event.ok else 0, event.count if failed else 0)
        if failed:
            self._failed(event, now)
        if start is not None:
            self._draw(event, start)

    def _draw(self, event: TaskEnded, start: float) -> None:
        """Add a task that began at `start`, in ms, to the stream, if it is known where it ran."""
        count, seconds, ok, _, name, slot, function, error = event[:8]
        if slot < 0:
            return
        node = self.nodes.get(name) or self._new_node(name)
        bad = 0 if error is None else count
        node.failed += bad
        if ok:
            node.done += count
        row = node.rows[slot] if slot < len(node.rows) else self._row(node, slot)
        label = self._numbers.get(function)
        if label is None:
            label = self.label(function)
        if row is not None:
            node.last[slot] = self.blocks.add(row, start, seconds, label, count, bad)

    def _failed(self, event: TaskEnded, now: float) -> None:
        key = event.label, _type(event)
        kind = self.failures.get(key)
        at = self.ms(now)
        if kind is None:
            if len(self.failures) >= _MAX_KINDS:
                key = (OTHER, "errors of other kinds")
            new = FailureKind(len(self.failures), shown(key[0]), shown(key[1]), first=at)
            kind = self.failures.setdefault(key, new)
        kind.count += event.count
        kind.last = at
        message = event.error or ""
        if len(kind.examples) < _MAX_EXAMPLES and all(each[3] != shown(message) for each in kind.examples):
            known = tuple(self._tracebacks)  # at once, as other threads add to it
            text = next((each[2] for each in known if each[:2] == (event.label, message)), "")
            kind.examples.append((at, shown(event.node), event.slot, shown(message), text))

    def _heard(self, now: float, event: Event) -> None:
        at = self.ms(now)
        if isinstance(event, Note):
            self._log(SaidLine(at, "warning" if event.warning else "note", "", shown(event.text)))
            return
        if isinstance(event, Transferred):
            sent = self.ms(event.began), round(event.seconds * 1000), event.size, event.peer
            self.transfers.append((event.node, *sent))
            self.transfers_seen += 1
            if (node := self.nodes.get(event.node)) is not None:
                node.transfers += 1
                node.moved += event.size
        if not isinstance(event, NodeLoad | NodeReady | NodeGone):
            return
        node = self.nodes.get(event.node)
        if node is None and isinstance(event, NodeGone):
            return  # it was not ready yet
        node = node or self._new_node(event.node)
        if isinstance(event, NodeLoad):
            node.load, node.gpus = event, event.gpus or node.gpus
            node.loads.append((at, _hundredths(event.cpu, 1), _hundredths(event.memory_used, event.memory_total)))
        elif isinstance(event, NodeReady):
            node.since, node.until, node.info, node.gpus = at, None, event.info, event.gpus
            for slot in range(len(node.rows), event.slots):
                self._row(node, slot)
        else:
            node.until, node.reason = at, event.reason
            if event.reason is not None:
                self._log(SaidLine(at, "warning", node.name, f"lost: {shown(event.reason)}"))
            if len(self.nodes) > _MAX_NODES:
                self._forget_nodes()

    def _log(self, line: SaidLine) -> None:
        self.log.append(line)
        self.log_seen += 1

    def label(self, label: str) -> int:
        """Return the number of a function."""
        if label not in self._numbers and len(self.labels) >= MAX_LABELS:
            label = OTHER
        if label not in self._numbers:
            self._numbers[label] = len(self.labels)
            self.labels.append(shown(label, lines=False))
        return self._numbers[label]

    def _new_node(self, name: str) -> Node:
        if self._free_nodes:
            number = self._free_nodes.pop()
        else:
            number, self._next_node = self._next_node, self._next_node + 1
        node = self.nodes[name] = Node(number, name)
        return node

    def _row(self, node: Node, slot: int) -> int | None:
        """Give a row to each slot up to this one, and return this one's."""
        while len(node.rows) <= slot:
            row = self._free_row()
            if row is None:
                self.undrawn += 1
            else:
                self.rows[row] = node, len(node.rows)
                self.fresh_rows.add(row)
            node.rows.append(row)
        return node.rows[slot]

    def _free_row(self) -> int | None:
        if not self._free_rows and len(self.rows) < self._max_rows:
            self.rows.append(None)
            return len(self.rows) - 1
        if not self._free_rows:
            self._forget_nodes()
        return self._free_rows.pop() if self._free_rows else None

    def _forget_nodes(self) -> None:
        """Forget half of the nodes that are gone, those that went first."""
        gone = [node for node in self.nodes.values() if node.until is not None]
        gone.sort(key=lambda node: node.until or 0)
        forgotten = gone[: (len(gone) + 1) // 2]
        rows = [row for node in forgotten for row in node.rows if row is not None]
        self.blocks.forget(rows)
        for node in forgotten:
            del self.nodes[node.name]
            self._free_nodes.append(node.number)
            self.undrawn -= node.rows.count(None)
        for row in rows:
            self.rows[row] = None
        self._free_rows += rows


def _type(event: TaskEnded) -> str:
    """Return the type of an error, from its first line."""
    return (event.error or "").partition(":")[0][:100]


def _hundredths(part: float | None, whole: float | None) -> int | None:
    return round(100 * part / whole) if part is not None and whole else None
