"""Tasks with equal bytes share one copy, and an array is read again only where that is worth it."""

from __future__ import annotations

import gc
import os
import resource
import weakref
from typing import Any

import numpy as np
import pytest

from skyward.core.blobs.snapshots import ArrayCache, Snapshots, digest
from skyward.core.payload.shared_file import CAN_SHARE, SharedFile


def test_digests_tell_contents_apart() -> None:
    """Equal bytes have one digest, others another; the length is part of it."""
    assert digest(memoryview(b"x" * 100)) == digest(memoryview(bytearray(b"x" * 100)))
    assert digest(memoryview(b"x" * 100)) != digest(memoryview(b"x" * 101))
    assert digest(memoryview(b"")) != digest(memoryview(b"\0"))


def view(array: np.ndarray[Any, Any]) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))


@pytest.fixture(params=[False, CAN_SHARE], ids=["bytes", "shared"])
def snapshots(request: pytest.FixtureRequest) -> Snapshots:
    return Snapshots(request.param)


def content(data: Any) -> bytes:
    return bytes(memoryview(data.map() if isinstance(data, SharedFile) else data))


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


def test_an_array_is_read_once_while_it_does_not_change(snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(
        "skyward.core.blobs.snapshots.digest", lambda buffer: read.append(len(buffer)) or digest(buffer)
    )
    arrays, array = ArrayCache(snapshots), np.arange(1_000_000)
    arrays.ran(1e-6)
    taken = [snapshots.take(view(array), arrays)[0] for _ in range(10)]
    assert len(set(taken)) == 1
    assert len(read) <= 2  # the array, and its copy
    assert not arrays._costs
    array[:] = 1
    changed, data = snapshots.take(view(array), arrays)
    assert changed == digest(view(array)) != taken[0]
    assert content(data) == array.tobytes()
    half = array[:500_000]
    assert snapshots.take(view(half), arrays)[0] == digest(view(half))
    snapshots.release([*taken, changed, digest(view(half))])
    assert set(snapshots._kept) == {changed, digest(view(half))}  # for as long as the call goes on
    del arrays
    snapshots.release([])
    assert not snapshots._kept


@pytest.mark.parametrize("seconds", [None, 3600.0])
def test_a_single_element_that_changes_is_seen_where_tasks_are_long(
    snapshots: Snapshots, seconds: float | None
) -> None:
    """Also before anybody knows how long they are."""
    arrays, array = ArrayCache(snapshots), np.zeros(300_000)
    if seconds is not None:
        arrays.ran(seconds)
    for index in (600, 150_000, 299_000, 600):  # between the samples
        array[index] += 1
        name, data = snapshots.take(view(array), arrays)
        assert name == digest(view(array))
        assert content(data) == array.tobytes()
        assert snapshots.take(view(array), arrays) == (name, data)
        snapshots.release([name, name])
    del arrays
    snapshots.release([])
    assert not snapshots._kept


def test_what_was_seen_to_change_is_what_later_samples_are_compared_with(snapshots: Snapshots) -> None:
    """A content that is known from elsewhere, so that it is not copied again."""
    arrays, array = ArrayCache(snapshots), np.zeros(1_000_000)
    first, _ = snapshots.take(view(array), arrays)
    array[600] = 1
    held, _ = snapshots.take(view(array.copy()))
    assert snapshots.take(view(array), arrays)[0] == held != first
    arrays.ran(1e-6)
    assert snapshots.take(view(array), arrays)[0] == held


@pytest.mark.parametrize(("size", "seconds", "slots", "reads"), [
    (100_000_000, 1.0, 1, True),
    (100_000_000, 0.1, 1, False),
    (100_000_000, 0.1, 100, False),
    (1_000_000, 0.1, 1, True),
    (10_000_000, 0.1, 10, True),
    (10_000_000, 0.1, 100, False),
])  # fmt: skip
def test_arrays_are_read_again_where_that_costs_little(size: int, seconds: float, slots: int, reads: bool) -> None:
    """A twentieth of the tasks' time at the most, and half that of the thread that submits."""
    arrays = ArrayCache(Snapshots(), lambda: slots)
    arrays.ran(seconds / 2)
    arrays.ran(seconds * 3 / 2)
    assert arrays._is_worth_reading(size) is reads
    arrays._costs[size] = 0.0
    assert arrays._is_worth_reading(size)


def test_reading_ends_when_tasks_turn_out_to_be_short() -> None:
    """The first one may be done while the second is read."""
    looks: list[int] = []

    def slots() -> int:
        looks.append(1)
        if len(looks) == 3:
            arrays._ran = 0.001, 1000
        return 1

    snapshots, array = Snapshots(), np.zeros(5_000_000)
    arrays = ArrayCache(snapshots, slots)
    name, _ = snapshots.take(view(array), arrays)
    arrays.ran(3600)
    assert arrays.find(view(array)) == name
    assert len(looks) == 4
    assert not arrays._costs


def test_copies_of_arrays_that_no_task_needs_are_held_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a call over a list of arrays would take their memory a second time."""
    monkeypatch.setattr("skyward.core.blobs.snapshots._MOST_HELD", 5_000_000)
    snapshots = Snapshots()
    arrays, many = ArrayCache(snapshots), [np.full(250_000, i) for i in range(10)]
    names = [snapshots.take(view(array), arrays)[0] for array in many]
    assert len(snapshots._kept) == 10
    assert [snapshots.take(view(array), arrays)[0] for array in many] == names  # by what was seen, though not held
    snapshots.release(names + names)
    assert set(snapshots._kept) == set(names[-2:])
    large = np.zeros(1_000_000)
    name, _ = snapshots.take(view(large), arrays)
    snapshots.release([name])
    assert set(snapshots._kept) == {name}  # the newest, however large it is
    again, data = snapshots.take(view(many[0]), arrays)
    assert (again, content(data)) == (names[0], many[0].tobytes())
    snapshots.release([again])
    del arrays
    snapshots.release([])
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


def test_a_dead_array_is_not_taken_for_the_one_in_its_place(snapshots: Snapshots) -> None:
    """Zeros but for one element: their samples are alike, and the allocator gives the same place again."""
    arrays, places = ArrayCache(snapshots), set()
    for index in range(20):
        array = np.zeros(1_000_000)
        array[index * 1000 + 777] = 1
        places.add(array.__array_interface__["data"][0])
        name, data = snapshots.take(view(array), arrays)
        assert content(data) == array.tobytes()
        snapshots.release([name])
        del array
        gc.collect()
    assert len(places) < 20, "this test needs an allocator that uses memory again"
    snapshots.release([])
    assert not snapshots._kept
    assert not arrays._seen


def test_what_is_no_array_is_read_each_time(snapshots: Snapshots) -> None:
    arrays, data = ArrayCache(snapshots), bytearray(b"x" * 100_000)
    first, _ = snapshots.take(memoryview(data), arrays)
    data[50_001] = 0
    second, _ = snapshots.take(memoryview(data), arrays)
    assert first != second
    snapshots.release([first, second])
    assert not snapshots._kept


@pytest.mark.skipif(not CAN_SHARE, reason="no files in memory here")
def test_open_files_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skyward.core.blobs.snapshots._MOST_FILES", 3)
    snapshots = Snapshots(True)
    kinds = [type(snapshots.take(memoryview(b"%d" % index))[1]) for index in range(5)]
    assert kinds == [SharedFile] * 3 + [bytes] * 2


@pytest.mark.skipif(not CAN_SHARE, reason="no files in memory here")
def test_a_shared_copy_stays_for_later_calls_within_a_budget() -> None:
    snapshots = Snapshots(True)
    snapshots._budget = 10_000_000
    array = np.arange(1_000_000)
    name, data = snapshots.take(view(array), ArrayCache(snapshots))
    snapshots.release([name])
    snapshots.release([])
    assert snapshots.take(view(array), ArrayCache(snapshots)) == (name, data)
    assert snapshots.take(view(array.copy()))[1] is data
    other = snapshots.take(view(array + 1))[0]
    snapshots.release([name, name, other])
    snapshots.release([])
    assert list(snapshots._idle) == [other], "the last used stays"
    snapshots.clear()
    assert not snapshots._idle
