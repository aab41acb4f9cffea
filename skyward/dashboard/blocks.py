"""The task stream: what ran when in which row, in a bounded number of blocks. Pure.

A block is one task, or several of one row that began close together: a driver that ends ten thousand tasks per second
should not draw each of them, and no screen could show them. Two rules limit the number of blocks. New blocks: tasks of
a row that begin in the same time step become one block, and the step grows while more than `PACE` blocks per second are
made. Old blocks: when there are too many, those closer together than a fraction of their age are merged, so the whole
run stays visible, recent parts in more detail.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

__all__ = ["PACE", "Block", "Blocks", "Columns"]

PACE = 1000  # new blocks per second, above which the step grows
_FINEST = 32  # ms; some pixels of a minute
_COARSEST = 1 << 20  # ms
_AGES = (256, 128, 64, 32, 16, 8, 4, 2, 1)  # into how many parts the time since a block's start may be divided


@dataclass(slots=True)
class Block:
    """Tasks of one row. Times are in milliseconds since the pool's start; the end has a fraction while it may grow.

    Attributes
    ----------
    row, start, end
        Where it is drawn.
    busy
        How long tasks ran in it; less than ``end - start`` if there were gaps.
    label
        Number of the function that took most of that time, if one took more than half of it.
    count, failed
        How many tasks ended in it, and how many of these failed.
    trail
        The busy time minus the function's lead over all others together; see `Blocks.vote`.
    until
        Tasks that begin from then on are not part of it.
    fresh
        Whether it has grown since `Blocks.take` returned it.
    """

    row: int
    start: int
    end: float
    busy: float
    label: int
    count: int
    failed: int
    trail: float = 0.0
    until: int = 0
    fresh: bool = True


class Columns(NamedTuple):
    """Blocks as lists of their values, which are made in a fifth of the time; see `Block`."""

    rows: list[int]
    starts: list[int]
    ends: list[int]
    busy: list[float]
    labels: list[int]
    counts: list[int]
    failed: list[int]


class Blocks:
    """The blocks of one pool, in the order in which they ended. Not thread-safe.

    Parameters
    ----------
    max_blocks
        How many blocks are kept, in addition to the last one of each row.

    Attributes
    ----------
    step
        Length of a time step, in milliseconds: tasks of a row that begin in the same one are one block.
    """

    def __init__(self, max_blocks: int = 100_000) -> None:
        self.step = _FINEST
        self._max_blocks = max_blocks
        self._open: dict[int, Block] = {}  # the last block of each row, to which tasks may still be added
        self._rows, self._starts, self._ends = array("I"), array("I"), array("I")
        self._busy, self._labels = array("d"), array("H")
        self._counts, self._failed = array("I"), array("I")
        self._unsent = 0  # the first of the above that `take` has not returned
        # Rows whose last block `take` has not returned as it is now, those that have waited longest first.
        self._fresh: dict[int, None] = {}
        self._paced, self._since = 0, 0  # blocks that were complete at `_since`, when the pace was last checked

    def __len__(self) -> int:
        return len(self._rows) + len(self._open)

    def __iter__(self) -> Iterator[Block]:
        yield from (self._at(index) for index in range(len(self._rows)))
        yield from self._open.values()

    def add(self, row: int, start: float, seconds: float, label: int, count: int, failed: int) -> Block:
        """Add what ran in a row, and return its block; a row's tasks come in the order of their ends.

        Parameters
        ----------
        row, start
            Where.
        seconds
            How long it ran.
        label
            Number of its function.
        count, failed
            How many tasks it is, and how many of these failed.
        """
        busy = seconds * 1000
        block = self._open.get(row)
        if block is None:
            first = int(start)
            until = first - first % self.step + self.step
            self._open[row] = block = Block(row, first, start + busy, busy, label, count, failed, 0.0, until)
            self._fresh[row] = None
            return block
        if not block.start <= start < block.until:
            self.begin(block, start, busy, label, count)
            block.failed = failed
            return block
        block.end = max(block.end, start + busy)
        block.count += count
        block.failed += failed
        if label != block.label:
            self.vote(block, label, busy)
        block.busy += busy
        self.touch(block)
        return block

    def begin(self, block: Block, start: float, busy: float, label: int, count: int) -> None:
        """Keep a block as it is, and make it the next one of its row.

        Parameters
        ----------
        block
            The last block of its row.
        start, busy
            When tasks began, and how long they ran, in ms.
        label, count
            Number of their function, and how many there are; none has failed.
        """
        self._close(block)
        # A task that begins in the same ms must not begin a block that replaces this one.
        block.start = first = int(start)
        block.until = first - first % self.step + self.step
        block.end = start + busy
        block.busy = busy
        block.label = label
        block.count = count
        block.failed = 0
        block.trail = 0.0
        self.touch(block)

    @staticmethod
    def vote(block: Block, label: int, busy: float) -> None:
        """Relabel a block, if necessary, before busy time of another function is added.

        Boyer and Moore's majority vote: a function with more than half of the time in the end is the label, without
        sums for each. Only the trail is stored, which does not change while the same function continues.

        Parameters
        ----------
        block
            The block.
        label, busy
            Number of the other function, and how long it ran, in ms.
        """
        lead = block.busy - block.trail
        if busy > lead:
            block.label = label
            block.trail = block.busy + lead
        else:
            block.trail += 2 * busy

    def touch(self, block: Block) -> None:
        """Note that a block has grown."""
        if not block.fresh:
            block.fresh = True
            self._fresh[block.row] = None

    def pace(self, now: int) -> None:
        """Adapt the step to how fast blocks are made. Call this about once a second, with the time in ms."""
        if len(self._rows) > self._max_blocks:
            self._thin(now)
        passed, made = now - self._since, len(self._rows) - self._paced
        if passed < self.step:  # blocks of many rows end together, so a shorter time says nothing
            return
        rate = made * 1000 / passed
        if rate > PACE:
            rows = len(set(self._rows[self._paced :]))
            enough = 2000 * rows // PACE  # if each of these rows makes a block per step, that is half the pace
            self.step = min(_COARSEST, max(self.step * 2, 1 << enough.bit_length() if rate > 2 * PACE else 0))
        elif rate < PACE / 4 and self.step > _FINEST:
            self.step //= 2
        self._paced, self._since = len(self._rows), now

    def columns(self) -> Columns:
        """Return all blocks."""
        return self._columns(0, self._open.values())

    def take(self, max_blocks: int | None = None) -> Columns:
        """Return the blocks that are new or have changed since the last call.

        The caller replaces a block that has the same row and start.

        Parameters
        ----------
        max_blocks
            How many of the blocks that still grow are returned, as thousands of slots may change each second. The
            others follow in later calls. None for all.
        """
        first, self._unsent = self._unsent, len(self._rows)
        growing = []
        for row in list(islice(self._fresh, max_blocks)):
            del self._fresh[row]
            block = self._open[row]
            block.fresh = False
            growing.append(block)
        return self._columns(first, growing)

    def forget(self, rows: Sequence[int]) -> None:
        """Drop the blocks of some rows."""
        gone = set(rows)
        keep = [block for block in map(self._at, range(len(self._rows))) if block.row not in gone]
        unsent = sum(self._rows[index] not in gone for index in range(self._unsent, len(self._rows)))
        self._restore(keep, unsent)
        for row in gone:
            self._open.pop(row, None)
            self._fresh.pop(row, None)

    def _columns(self, first: int, growing: Collection[Block]) -> Columns:
        """Return the complete blocks from `first` on, and then those that still grow."""
        return Columns(
            [*self._rows[first:], *(block.row for block in growing)],
            [*self._starts[first:], *(block.start for block in growing)],
            [*self._ends[first:], *(int(block.end) for block in growing)],
            [*self._busy[first:], *(block.busy for block in growing)],
            [*self._labels[first:], *(block.label for block in growing)],
            [*self._counts[first:], *(block.count for block in growing)],
            [*self._failed[first:], *(block.failed for block in growing)],
        )

    def _at(self, index: int) -> Block:
        return Block(
            self._rows[index],
            self._starts[index],
            self._ends[index],
            self._busy[index],
            self._labels[index],
            self._counts[index],
            self._failed[index],
        )

    def _close(self, block: Block) -> None:
        self._rows.append(block.row)
        self._starts.append(block.start)
        self._ends.append(int(block.end))
        self._busy.append(block.busy)
        self._labels.append(block.label)
        self._counts.append(block.count)
        self._failed.append(block.failed)

    def _restore(self, blocks: Sequence[Block], unsent: int) -> None:
        """Keep these blocks only, of which the last `unsent` have not been taken."""
        for column in (self._rows, self._starts, self._ends, self._busy, self._labels, self._counts, self._failed):
            del column[:]
        for block in blocks:
            self._close(block)
        self._unsent = len(self._rows) - unsent
        self._paced = len(self._rows)

    def _thin(self, now: int) -> None:
        """Merge old blocks until no more than half of the maximum remain."""
        sent = [self._at(index) for index in range(self._unsent)]
        unsent = [self._at(index) for index in range(self._unsent, len(self._rows))]
        for parts in _AGES:
            if len(sent) + len(unsent) <= self._max_blocks // 2:
                break
            sent, unsent = _joined(sent, now, parts), _joined(unsent, now, parts)
        blocks = [*sent, *unsent][-self._max_blocks :]  # there may be more rows than blocks that may be kept
        self._restore(blocks, min(len(unsent), len(blocks)))


def _joined(blocks: Sequence[Block], now: int, parts: int) -> list[Block]:
    """Merge blocks of a row that are closer together than the time since then, divided by `parts`."""
    last: dict[int, Block] = {}
    joined = []
    for block in blocks:
        before = last.get(block.row)
        width = 1 << max(0, (now - block.start) // parts).bit_length()
        if before is None or before.start // width != block.start // width:
            last[block.row] = block
            joined.append(block)
            continue
        if block.busy > before.busy:
            before.label = block.label
        before.end = max(before.end, block.end)
        before.busy += block.busy
        before.count += block.count
        before.failed += block.failed
    return joined
