"""Memory for large buffers, and its use again."""

from __future__ import annotations

import mmap

from skyward.core.protocol.buffers import PAGED, BufferPool, pages


def test_memory_is_zeroed_and_begins_at_a_page() -> None:
    for size in (PAGED, 5 * PAGED + 1):
        memory = pages(size)
        assert len(memory) == size
        assert memory[:] == bytes(size)


def test_a_spare_is_taken_for_the_same_size_only() -> None:
    buffer_pool, memory = BufferPool(), pages(PAGED)
    buffer_pool.give(memory)
    other = buffer_pool.take(PAGED + 1)
    assert len(other) == PAGED + 1
    assert buffer_pool.take(PAGED) is memory
    assert buffer_pool.take(PAGED) is not memory


def test_spares_are_bounded() -> None:
    buffer_pool = BufferPool()
    for _ in range(5):
        buffer_pool.give(pages(4 * 2**20))
    taken: list[mmap.mmap] = [buffer_pool.take(4 * 2**20) for _ in range(5)]
    assert len(set(map(id, taken))) == 5
    assert repr(buffer_pool) == "<BufferPool 0, 0 bytes>"
    buffer_pool.give(pages(17 * 2**20))
    assert repr(buffer_pool) == "<BufferPool 0, 0 bytes>"
