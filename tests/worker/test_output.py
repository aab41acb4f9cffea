"""What a slot prints goes out whole and in order, in messages that keep their place."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.core.protocol.wire import WHOLE
from skyward.worker.output import SlotOutput


def outputs(work: Callable[[SlotOutput, int], None]) -> list[tuple[bytes, bool]]:
    """Return what is emitted of the standard output that `work` writes."""
    emitted: list[tuple[bytes, bool]] = []

    async def run() -> None:
        (out, write), (err, other) = os.pipe(), os.pipe()
        os.set_blocking(write, False)
        it = SlotOutput(asyncio.get_running_loop(), (out, err), lambda _, data, more: emitted.append((data, more)))
        try:
            work(it, write)
        finally:
            os.close(write)
            os.close(other)
            it.close()

    asyncio.run(run())
    return emitted


LINES = st.lists(st.sampled_from([0, 1, 80, WHOLE - 1, WHOLE, 2 * WHOLE + 5, 60_000]), max_size=8)


@given(LINES)
def test_whole_lines_in_pieces_that_keep_their_place(lengths: list[int]) -> None:
    """No piece is larger than what keeps its order, and one that ends within a line announces the rest."""
    text = b"".join(b"x" * length + b"\n" for length in lengths)

    def work(it: SlotOutput, write: int) -> None:
        rest = text
        while rest:
            rest = rest[os.write(write, rest[:60_000]) :]
            it.flush(whole_lines=True)

    emitted = outputs(work)
    assert b"".join(data for data, _ in emitted) == text
    assert all(len(data) <= WHOLE for data, _ in emitted)
    assert all(more or data.endswith(b"\n") for data, more in emitted)


def test_a_line_is_not_cut_while_another_task_writes_it() -> None:
    def work(it: SlotOutput, write: int) -> None:
        os.write(write, b"first\nsecond, which is")
        it.flush(whole_lines=True)
        os.write(write, b" not at its end\n")
        it.flush(whole_lines=True)

    assert outputs(work) == [(b"first\n", False), (b"second, which is not at its end\n", False)]


def test_an_unfinished_line_is_emitted_when_nobody_can_continue_it() -> None:
    def work(it: SlotOutput, write: int) -> None:
        os.write(write, b"50 %")
        it.flush(whole_lines=False)
        os.write(write, b"100 %")

    assert outputs(work) == [(b"50 %", False), (b"100 %", False)]


@pytest.mark.parametrize("size", [900_000, 3_000_000])
def test_a_line_without_end_is_cut_somewhere(size: int) -> None:
    def work(it: SlotOutput, write: int) -> None:
        for _ in range(size // 60_000):
            os.write(write, b"x" * 60_000)
            it.flush(whole_lines=True)

    emitted = outputs(work)
    assert sum(len(data) for data, _ in emitted) == size
    assert sum(not more for _, more in emitted) == max(1, round(size / (1 << 20)))
