"""The task stream stays bounded, loses no task, and shows what ran where."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from skyward.dashboard.blocks import PACE, Block, Blocks


def totals(blocks: Iterable[Block]) -> tuple[int, int, float]:
    found = list(blocks)
    return sum(b.count for b in found), sum(b.failed for b in found), round(sum(b.busy for b in found), 3)


def test_long_tasks_are_a_block_each() -> None:
    blocks = Blocks()
    for start in range(0, 5000, 500):
        blocks.add(3, start, 0.4, 1, 1, 0)
    assert [(b.row, b.start, b.end, b.label, b.count) for b in blocks] == [
        (3, start, start + 400, 1, 1) for start in range(0, 5000, 500)
    ]


def test_tiny_tasks_of_a_row_share_a_block_that_tells_how_long_they_ran() -> None:
    blocks = Blocks()
    for start in range(0, 30, 3):
        blocks.add(0, start, 0.001, 0, 1, int(start == 9))
    (block,) = blocks
    assert (block.start, block.end, block.count, block.failed) == (0, 28, 10, 1)
    assert round(block.busy, 6) == 10


def test_a_block_is_named_after_the_function_that_ran_more_than_half_of_it() -> None:
    blocks = Blocks()
    for label, seconds in ((5, 0.002), (7, 0.009), (5, 0.003), (6, 0.001)):
        blocks.add(0, 1, seconds, label, 1, 0)
    assert [b.label for b in blocks] == [7]


def test_the_step_grows_while_more_blocks_are_made_than_anybody_could_see() -> None:
    blocks, seconds = Blocks(), 20
    for second in range(seconds):
        for each in range(5000):
            blocks.add(each % 200, second * 1000 + each // 5, 0.001, 0, 1, 0)
        blocks.pace((second + 1) * 1000)
    assert totals(blocks)[0] == 5000 * seconds
    assert 200 * 1000 / blocks.step <= PACE
    grown = blocks.step
    for second in range(seconds, seconds + 10):
        blocks.add(0, second * 1000, 0.001, 0, 1, 0)
        blocks.pace((second + 1) * 1000)
    assert blocks.step < grown, "and shrinks again"


def test_a_million_tasks_stay_bounded_and_the_latest_are_the_finest() -> None:
    blocks = Blocks(max_blocks=2000)
    for second in range(600):
        for row in range(10):
            blocks.add(row, second * 1000, 0.9, row, 1, 0)
        blocks.pace((second + 1) * 1000)
        assert len(blocks) <= 2000 + 20
    assert totals(blocks) == (6000, 0, 6000 * 900)
    mine = [b for b in blocks if b.row == 4]
    assert mine[0].start == 0
    assert mine[-1].start == 599_000
    assert mine[0].end - mine[0].start > mine[-1].end - mine[-1].start


def test_more_rows_than_blocks_that_may_be_kept() -> None:
    blocks = Blocks(max_blocks=50)
    for second in range(40):
        for row in range(200):
            blocks.add(row, second * 1000, 0.9, 0, 1, 0)
        blocks.take()
        blocks.pace((second + 1) * 1000)
        assert len(blocks) <= 50 + 200


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.floats(-0.9, 400), st.floats(0, 2), st.integers(0, 2), st.booleans()),
        max_size=60,
    ),
    st.integers(2, 30),
)
def test_whoever_takes_all_messages_knows_the_same(
    tasks: list[tuple[int, float, float, int, bool]], every: int
) -> None:
    """A block that is sent again replaces the last one of its row, if both have the same start."""
    blocks = Blocks(max_blocks=20)
    seen: dict[int, list[Block]] = {}
    ends: dict[int, float] = {}
    for number, (row, pause, seconds, label, failed) in enumerate(tasks):
        start = max(0.0, ends.get(row, 0.0) + pause)
        ends[row] = start + seconds * 1000
        blocks.add(row, start, seconds, label, 1, int(failed))
        if number % every == 0:
            _taken(blocks, seen)
            blocks.pace(int(max(ends.values())))
    _taken(blocks, seen)
    mine = totals(block for row in seen.values() for block in row)
    assert mine == totals(blocks)
    assert mine[:2] == (len(tasks), sum(failed for *_, failed in tasks))


def _taken(blocks: Blocks, seen: dict[int, list[Block]]) -> None:
    for b in map(Block, *blocks.take()):
        row = seen.setdefault(b.row, [])
        if row and row[-1].start == b.start:
            row.pop()
        row.append(b)


def test_rows_that_are_forgotten_are_gone() -> None:
    blocks = Blocks()
    for start in (0, 1000, 2000):
        for row in (0, 1):
            blocks.add(row, start, 0.5, 0, 1, 0)
    blocks.forget([0])
    assert {b.row for b in blocks} == {1}
    assert list(zip(*blocks.take()[:2], strict=True)) == [(1, 0), (1, 1000), (1, 2000)]


def test_of_blocks_that_grow_some_are_taken_at_a_time_those_first_that_waited_longest() -> None:
    blocks = Blocks()
    for row in range(5):
        blocks.add(row, 0, 0.001, 0, 1, 0)
    assert blocks.take(2).rows == [0, 1]
    for row in range(5):  # the rows that were taken grow again: they wait behind the others
        blocks.add(row, 1, 0.001, 0, 1, 0)
    assert blocks.take(2).rows == [2, 3]
    last = blocks.take()
    assert (last.rows, last.counts) == ([4, 0, 1], [2, 2, 2])
    assert blocks.take().rows == []


def test_the_step_soon_fits_the_pace() -> None:
    """Four thousand rows whose tasks take half a second: after six seconds it stays."""
    blocks, steps = Blocks(), []
    for second in range(15):
        for start in (1000 * second, 1000 * second + 500):
            for row in range(4000):
                blocks.add(row, start, 0.5, 0, 1, 0)
        blocks.pace(1000 * (second + 1))
        steps.append(blocks.step)
    assert steps[5:] == [8192] * 10
