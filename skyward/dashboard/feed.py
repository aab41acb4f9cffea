"""What a browser is sent: a recording and a pool's status as JSON, first everything, then the changes. Pure.

The keys of a message, each of which may be missing if it has not changed:

- ``whole``: the message describes everything; the page discards what it had.
- ``now``: ms since the recording began, as are all times; ``state``: ``"starting"``, ``"running"`` or ``"ended"``.
- ``pool``: name, and the time of day at which the recording began, in ms since 1970.
- ``status``: figures of the whole pool, see `_figures`; ``functions``: rows of label, unfinished, done, failed,
  cancelled, mean seconds.
- ``labels``: names of new functions; ``rows``: new rows of the task stream: row, node, slot.
- ``nodes``: nodes that are new or have changed, see `_node`; ``counts``: node, busy slots, tasks done, tasks failed,
  pieces of large data that arrived there, and their bytes;
  ``loads``: node, then its load over time: time, CPU, memory; ``forgotten``: numbers of nodes.
- ``blocks``: columns of row, start, length, share of it in which tasks ran (in hundredths), label, tasks, failed tasks.
- ``running``: columns of row, start, label and tasks of what began to run; ``idle``: rows that no longer run anything.
- ``transfers``: rows of node, start, length, bytes and the node that sent it, empty for this program.
- ``bins``: width, index of the first one that is sent, and columns done and failed.
- ``failures``: kinds of failures, which replace those of the same number; ``lines`` and ``log``: new lines.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from operator import sub
from typing import Any

from skyward.core.status import NodeStatus, PoolStatus, RunningTask
from skyward.core.visible import shown
from skyward.dashboard.blocks import PACE, Columns
from skyward.dashboard.recording import FailureKind, Node, Recording, SaidLine

__all__ = ["Feed"]

_Message = dict[str, Any]
_Run = tuple[int, int, int]  # start, label, tasks

_SAME = 50  # ms; two readings of the clock differ by less, and a task that is reported as running has run for longer


class Feed:
    """Messages about one recording, the same for every browser. Not thread-safe.

    Parameters
    ----------
    recording
        What was recorded. Its lock is held while it is read.
    pool
        Name of the pool.
    began
        Time of day at which the recording began, in seconds since 1970.
    """

    def __init__(self, recording: Recording, pool: str, began: float) -> None:
        self._recording = recording
        self._pool = {"name": shown(pool), "began": int(began * 1000)}
        self._nodes: dict[int, tuple[object, ...]] = {}  # what was last sent of each, see `_sign`
        self._counts: dict[int, tuple[int, ...]] = {}
        self._loads: dict[int, int] = {}  # time of the last load that was sent
        self._running: dict[int, _Run] = {}  # by row
        self._failures: dict[int, int] = {}
        self._labels = self._lines = self._log = self._transfers = self._bin = self._width = 0

    def __repr__(self) -> str:
        return f"<Feed of {self._recording}>"

    def whole(self, status: PoolStatus, now: float, state: str) -> str:
        """Return everything, for one browser. All others must have been sent `changes` first.

        Parameters
        ----------
        status, now, state
            The pool's state, the time, and whether it is starting, running or has ended.
        """
        record = self._recording
        with record.lock:
            known = {each.name: each for each in status.nodes}
            nodes = [(node, known.get(node.name)) for node in record.nodes.values()]
            message = {
                "whole": True,
                **self._figures(status, now, state),
                "pool": self._pool,
                "labels": record.labels,
                "rows": _rows(record, range(len(record.rows))),
                "nodes": [_node(node, each) for node, each in nodes],
                "counts": [[node.number, *_count(node, each)] for node, each in nodes],
                "loads": [[node.number, *node.loads] for node in record.nodes.values() if node.loads],
                "blocks": _columns(record.blocks.columns()),
                "running": _running_columns(self._runs(status.running, now)),
                "transfers": _transfers(record, record.transfers),
                "bins": [record.bins.width, 0, record.bins.done, record.bins.failed],
                "failures": [_failure(kind) for kind in record.failures.values()],
                "lines": [_line(line) for line in record.lines],
                "log": [_line(line) for line in record.log],
            }
        return _text(message)

    def changes(self, status: PoolStatus, now: float, state: str) -> str:
        """Return what has changed since the last call, for all browsers that have the rest.

        Parameters
        ----------
        status, now, state
            As for `whole`.
        """
        record = self._recording
        with record.lock:
            message = self._figures(status, now, state)
            message |= self._changed_nodes(status)
            record.fresh_rows.clear()
            message["labels"] = record.labels[self._labels :]
            self._labels = len(record.labels)
            message["blocks"] = _columns(record.blocks.take(None if state == "ended" else PACE))
            running, before = self._runs(status.running, now), self._running
            message["running"] = _running_columns({row: run for row, run in running.items() if before.get(row) != run})
            message["idle"] = [row for row in before if row not in running]
            self._running = running
            moved = record.transfers_seen - self._transfers
            message["transfers"] = _transfers(record, list(record.transfers)[-moved:] if moved else ())
            self._transfers = record.transfers_seen
            bins = record.bins
            first = min(self._bin, len(bins.done) - 1) if bins.width == self._width else 0
            message["bins"] = [bins.width, first, bins.done[first:], bins.failed[first:]]
            self._bin, self._width = max(0, len(bins.done) - 4), bins.width  # some ends are reported late
            message["failures"] = [
                _failure(kind) for kind in record.failures.values() if self._failures.get(kind.number) != kind.count
            ]
            self._failures = {kind.number: kind.count for kind in record.failures.values()}
            message["lines"] = _newest(record.lines, record.lines_seen - self._lines)
            message["log"] = _newest(record.log, record.log_seen - self._log)
            self._lines, self._log = record.lines_seen, record.log_seen
        return _text({key: value for key, value in message.items() if value or key in ("now", "state", "status")})

    def _figures(self, status: PoolStatus, now: float, state: str) -> _Message:
        functions = [
            [shown(each.label, lines=False), each.unfinished, each.done, each.failed, each.cancelled, _short(each.mean)]
            for each in status.functions
        ]
        return {"now": self._recording.ms(now), "state": state, "status": _figures(status), "functions": functions}

    def _changed_nodes(self, status: PoolStatus) -> _Message:
        record = self._recording
        known = {each.name: each for each in status.nodes}
        nodes: list[_Message] = []
        counts, loads = [], []
        for node in record.nodes.values():
            number, each = node.number, known.get(node.name)
            if self._nodes.get(number) != (sign := _sign(node, each)):
                self._nodes[number] = sign
                nodes.append(_node(node, each))
            count = _count(node, each)
            if self._counts.get(number) != count:
                self._counts[number] = count
                counts.append([number, *count])
            if node.loads and node.loads[-1][0] > (since := self._loads.get(number, -1)):
                self._loads[number] = node.loads[-1][0]
                loads.append([number, *(load for load in node.loads if load[0] > since)])
        return {
            "nodes": nodes,
            "counts": counts,
            "loads": loads,
            "rows": _rows(record, sorted(record.fresh_rows)),
            "forgotten": self._forgotten(),
        }

    def _runs(self, tasks: Iterable[RunningTask], now: float) -> dict[int, _Run]:
        """What runs in which row. A task keeps the start that was sent first, since readings of the clock differ."""
        record, runs = self._recording, dict[int, _Run]()
        for task in tasks:
            node = record.nodes.get(task.node)
            row = node.rows[task.slot] if node is not None and 0 <= task.slot < len(node.rows) else None
            if row is not None:
                run = record.ms(now - task.seconds), record.label(task.label), task.count
                before = self._running.get(row)
                is_same = before is not None and before[1:] == run[1:] and abs(before[0] - run[0]) < _SAME
                runs[row] = before if before is not None and is_same else run
        return runs

    def _forgotten(self) -> list[int]:
        record = self._recording
        if len(self._nodes) == len(record.nodes):
            return []
        left = {node.number for node in record.nodes.values()}
        forgotten = [number for number in self._nodes if number not in left]
        for number in forgotten:
            for sent in (self._nodes, self._counts, self._loads):
                sent.pop(number, None)
        return forgotten


def _sign(node: Node, status: NodeStatus | None) -> tuple[object, ...]:
    """What `_node` shows; quick to make and to compare, as that is done for each node each second."""
    own = node.name, node.since, node.until, node.reason, node.load
    return own if status is None else (*own, status.state, status.detail, status.slots, status.type)


def _count(node: Node, status: NodeStatus | None) -> tuple[int, ...]:
    return (0 if status is None else status.busy), node.done, node.failed, node.transfers, node.moved


def _rows(recording: Recording, numbers: Iterable[int]) -> list[list[int]]:
    used = ((number, recording.rows[number]) for number in numbers)
    return [[number, use[0].number, use[1]] for number, use in used if use is not None]


def _transfers(recording: Recording, transfers: Iterable[tuple[str, int, int, int, str]]) -> list[list[Any]]:
    nodes = recording.nodes
    return [[nodes[name].number, *times, shown(peer)] for name, *times, peer in transfers if name in nodes]


def _figures(status: PoolStatus) -> _Message:
    tasks, machines = status.tasks, status.machines
    return {
        "provider": shown(status.provider, lines=False),
        "tasks": [tasks.waiting, tasks.running, tasks.done, tasks.failed, tasks.cancelled],
        "rate": _short(status.rate),
        "slots": status.slots,
        "busy": status.busy,
        "wanted": status.wanted,
        "lost": status.lost,
        "machines": [machines.ordered, machines.booting, machines.ending],
        "bytes": [status.sent, status.received],
        "cost": round(status.cost, 4),
        "price": round(status.price, 4),
        "unpriced": status.unpriced,
        "left": _short(status.left),
        "seconds": round(status.seconds, 1),
    }


def _node(node: Node, status: NodeStatus | None) -> _Message:
    """A node; it is no longer in the status if it was released, or lost long ago."""
    info, load = node.info, node.load
    state = "gone" if node.reason is None else "lost"
    message: _Message = {
        "id": node.number,
        "name": shown(node.name, lines=False),
        "since": node.since,
        "until": node.until,
        "state": state if status is None else status.state,
        "detail": shown((node.reason or "") if status is None else status.detail),
        "slots": len(node.rows),
        "machine": [shown(each or "", lines=False) for each in (info.provider, info.type, info.region)],
        "spot": info.spot,
        "price": info.price,
        "gpus": [[shown(gpu.name, lines=False), gpu.memory, gpu.used] for gpu in node.gpus],
    }
    if load is not None:
        message |= {"cores": load.cores, "memory": load.memory_total, "disk": load.disk_free}
        message["problem"] = shown(load.problem)
    return message


def _columns(blocks: Columns) -> list[list[int]]:
    rows, starts, ends, busy, labels, counts, failed = blocks
    lengths = list(map(sub, ends, starts))
    # Tasks that overlapped, and those of no length, fill their block.
    shares = [100 if ran >= length else round(100 * ran / length) for ran, length in zip(busy, lengths, strict=True)]
    return [rows, starts, lengths, shares, labels, counts, failed] if rows else []


def _running_columns(runs: dict[int, _Run]) -> list[list[int]]:
    return [list(runs), *(list(column) for column in zip(*runs.values(), strict=True))] if runs else []


def _failure(kind: FailureKind) -> _Message:
    return {
        "id": kind.number,
        "label": kind.label,
        "error": kind.error,
        "count": kind.count,
        "first": kind.first,
        "last": kind.last,
        "examples": kind.examples,
    }


def _line(line: SaidLine) -> list[Any]:
    return [line.at, line.kind, line.node, line.text]


def _newest(lines: Iterable[SaidLine], count: int) -> list[list[Any]]:
    return [_line(line) for line in list(lines)[-count:]] if count else []


def _short(number: float | None) -> float | None:
    """With four digits, which is what a page can show."""
    return None if number is None else float(f"{number:.4g}")


def _text(message: _Message) -> str:
    return json.dumps(message, separators=(",", ":"))
