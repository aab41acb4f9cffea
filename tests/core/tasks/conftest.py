"""A pool in memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.core.memory_agent import MemoryPool


@pytest.fixture
def pool() -> Iterator[MemoryPool]:
    pool = MemoryPool()
    yield pool
    pool.close()
