"""Shared memory is removed by the tracker of who made it, not of whoever looked into it."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import pytest

from tests.worker.helpers import Owner


def bytes_of(memory: SharedMemory) -> memoryview:
    assert memory.buf is not None
    return memory.buf


@pytest.fixture
def segment() -> Iterator[SharedMemory]:
    memory = SharedMemory(create=True, size=100)
    bytes_of(memory)[0] = 7
    yield memory
    memory.close()
    memory.unlink()


def look(memory: SharedMemory | str) -> int:
    """Look into shared memory, and end the tracker as the end of the process does; that of multiprocessing waits."""
    from multiprocessing import shared_memory

    if isinstance(memory, str):
        memory = shared_memory.SharedMemory(memory)
    value = bytes_of(memory)[0]
    memory.close()
    tracker: Any = resource_tracker
    tracker._resource_tracker._stop()
    return value


def make() -> str:
    from multiprocessing import shared_memory

    memory = shared_memory.SharedMemory(create=True, size=100)
    shared_memory.SharedMemory(memory.name).close()
    memory.close()
    tracker: Any = resource_tracker
    tracker._resource_tracker._stop()
    return memory.name


def remove(name: str) -> None:
    from multiprocessing import shared_memory

    memory = shared_memory.SharedMemory(name)
    memory.close()
    memory.unlink()


def test_what_the_driver_has_made_stays(node: Owner, segment: SharedMemory) -> None:
    for memory in (segment.name, segment, segment.name):
        assert node.call(look, memory) == 7
    SharedMemory(segment.name).close()


def test_what_a_task_has_made_is_removed_with_its_process(node: Owner) -> None:
    name = node.call(make)
    with pytest.raises(FileNotFoundError):
        SharedMemory(name)


def test_a_task_can_remove_what_the_driver_has_made(node: Owner) -> None:
    memory = SharedMemory(create=True, size=100)
    memory.close()
    node.call(remove, memory.name)
    with pytest.raises(FileNotFoundError):
        SharedMemory(memory.name)
    resource_tracker.unregister(f"/{memory.name}", "shared_memory")
