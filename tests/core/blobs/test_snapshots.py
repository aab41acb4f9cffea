"""Tasks with equal bytes share one copy."""

from __future__ import annotations

import gc
import os
import resource
import weakref
from typing import Any

import numpy as np
import pytest

from skyward.core.blobs.array_cache import ArrayCache
from skyward.core.blobs.snapshots import Snapshots, digest
from skyward.core.payload.shared_file import CAN_SHARE, SharedFile
from tests.core.blobs.arrays import content, view


def test_digests_tell_contents_apart() -> None:
    """Equal bytes have one digest, others another; the length is part of it."""
    assert digest(memoryview(b"x" * 100)) == digest(memoryview(bytearray(b"x" * 100)))
    assert digest(memoryview(b"x" * 100)) != digest(memoryview(b"x" * 101))
    assert digest(memoryview(b"")) != digest(memoryview(b"\0"))


@pytest.mark.skipif(not CAN_SHARE, reason="no files in memory here")
def test_copies_of_all_pools_leave_most_open_files_to_others() -> None:
    gc.collect()
    before = set(SharedFile.open)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, limits[1]), limits[1]))
    try:
        pools = [Snapshots(True) for _ in range(4)]
        for index in range(250):
            for number, pool in enumerate(pools):
                pool.take(view(np.full(10, 1000 * number + index)))
        assert all(len(pool._kept) == 250 for pool in pools), "the others are copies in memory"
        assert len(SharedFile.open) < 410
        assert len(os.listdir("/proc/self/fd")) < 600  # noqa: PTH208
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    del pools, pool
    assert SharedFile.open == before


def test_equal_bytes_have_one_copy_until_nobody_holds_it(snapshots: Snapshots) -> None:
    one, other = np.arange(1000), np.arange(1000)
    name, data = snapshots.take(view(one))
    assert snapshots.take(view(other)) == (name, data)
    one[0] = 7
    assert content(data) == other.tobytes()
    snapshots.release([name])
    assert snapshots._kept
    snapshots.release([name])
    assert not snapshots._kept


def test_a_copy_is_made_where_one_was_that_nobody_looks_at_any_more() -> None:
    """A part of it may still be on its way to a node, as a view of a view."""
    snapshots = Snapshots()
    arrays = [np.full(250_000, i, float) for i in range(5)]

    def copy(array: np.ndarray[Any, Any]) -> tuple[list[bytes], Any]:
        name, data = snapshots.take(view(array))
        return [name], data

    def place(data: Any) -> int:
        return int(np.frombuffer(data, np.uint8).__array_interface__["data"][0])

    names, first = copy(arrays[0])
    where = place(first)
    on_its_way = memoryview(first)[:1000][10:20]
    del first
    snapshots.release(names)
    kept = [copy(arrays[1]), copy(arrays[2])]
    assert bytes(on_its_way) == bytes(view(arrays[0])[10:20])
    assert where not in {place(data) for _, data in kept}
    on_its_way.release()
    names, again = copy(arrays[3])
    assert place(again) == where
    assert content(again) == bytes(view(arrays[3]))
    del again
    snapshots.release(names)
    assert place(copy(np.zeros(300_000))[1]) != where, "of another size"


def test_the_memory_of_former_copies_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skyward.core.blobs.snapshots._MAX_POOLED", 5_000_000)
    snapshots = Snapshots()
    names, kept = [], []
    for number, size in enumerate((1_000_000, 250_000, 250_000, 250_000)):
        name, data = snapshots.take(view(np.full(size, number, float)))
        names.append(name)
        kept.append(weakref.ref(data))
        del data
    snapshots.release(names)
    assert [memory() is not None for memory in kept] == [False, False, True, True]


@pytest.mark.skipif(not CAN_SHARE, reason="no files in memory here")
def test_open_files_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skyward.core.blobs.snapshots._MAX_FILES", 3)
    snapshots = Snapshots(True)
    kinds = [type(snapshots.take(memoryview(b"%d" % index))[1]) for index in range(5)]
    assert kinds == [SharedFile] * 3 + [bytes] * 2


@pytest.mark.skipif(not CAN_SHARE, reason="no files in memory here")
def test_a_shared_copy_stays_for_later_calls_within_a_budget() -> None:
    snapshots = Snapshots(True)
    snapshots._budget = 10_000_000
    array = np.arange(1_000_000)
    name, data = ArrayCache(snapshots).take(view(array))
    snapshots.release([name])
    snapshots.release([])
    assert ArrayCache(snapshots).take(view(array)) == (name, data)
    assert snapshots.take(view(array.copy()))[1] is data
    other = snapshots.take(view(array + 1))[0]
    snapshots.release([name, name, other])
    snapshots.release([])
    assert list(snapshots._idle) == [other], "the last used stays"
    snapshots.clear()
    assert not snapshots._idle
