"""An array is read again only where that is worth it."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from skyward.core.blobs.array_cache import ArrayCache
from skyward.core.blobs.snapshots import Snapshots, digest
from tests.core.blobs.arrays import content, view


def test_an_array_is_read_once_while_it_does_not_change(snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(
        "skyward.core.blobs.snapshots.digest", lambda buffer: read.append(len(buffer)) or digest(buffer)
    )
    arrays, array = ArrayCache(snapshots), np.arange(1_000_000)
    arrays.ran(1e-6)
    taken = [arrays.take(view(array))[0] for _ in range(10)]
    assert len(set(taken)) == 1
    assert len(read) <= 2  # the array, and its copy
    assert not arrays._costs
    array[:] = 1
    changed, data = arrays.take(view(array))
    assert changed == digest(view(array)) != taken[0]
    assert content(data) == array.tobytes()
    half = array[:500_000]
    assert arrays.take(view(half))[0] == digest(view(half))
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
        name, data = arrays.take(view(array))
        assert name == digest(view(array))
        assert content(data) == array.tobytes()
        assert arrays.take(view(array)) == (name, data)
        snapshots.release([name, name])
    del arrays
    snapshots.release([])
    assert not snapshots._kept


def test_what_was_seen_to_change_is_what_later_samples_are_compared_with(snapshots: Snapshots) -> None:
    """A content that is known from elsewhere, so that it is not copied again."""
    arrays, array = ArrayCache(snapshots), np.zeros(1_000_000)
    first, _ = arrays.take(view(array))
    array[600] = 1
    held, _ = snapshots.take(view(array.copy()))
    assert arrays.take(view(array))[0] == held != first
    arrays.ran(1e-6)
    assert arrays.take(view(array))[0] == held


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
    name, _ = arrays.take(view(array))
    arrays.ran(3600)
    assert arrays.find(view(array)) == name
    assert len(looks) == 4
    assert not arrays._costs


def test_copies_of_arrays_that_no_task_needs_are_held_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a call over a list of arrays would take their memory a second time."""
    monkeypatch.setattr("skyward.core.blobs.array_cache._MAX_HELD", 5_000_000)
    snapshots = Snapshots()
    arrays, many = ArrayCache(snapshots), [np.full(250_000, i) for i in range(10)]
    names = [arrays.take(view(array))[0] for array in many]
    assert len(snapshots._kept) == 10
    assert [arrays.take(view(array))[0] for array in many] == names  # by what was seen, though not held
    snapshots.release(names + names)
    assert set(snapshots._kept) == set(names[-2:])
    large = np.zeros(1_000_000)
    name, _ = arrays.take(view(large))
    snapshots.release([name])
    assert set(snapshots._kept) == {name}  # the newest, however large it is
    again, data = arrays.take(view(many[0]))
    assert (again, content(data)) == (names[0], many[0].tobytes())
    snapshots.release([again])
    del arrays
    snapshots.release([])
    assert not snapshots._kept


@pytest.mark.slow
def test_a_dead_array_is_not_taken_for_the_one_in_its_place(snapshots: Snapshots) -> None:
    """Zeros but for one element: their samples are alike, and the allocator gives the same place again."""
    arrays, places = ArrayCache(snapshots), set()
    for index in range(20):
        array = np.zeros(1_000_000)
        array[index * 1000 + 777] = 1
        places.add(array.__array_interface__["data"][0])
        name, data = arrays.take(view(array))
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
    first, _ = arrays.take(memoryview(data))
    data[50_001] = 0
    second, _ = arrays.take(memoryview(data))
    assert first != second
    snapshots.release([first, second])
    assert not snapshots._kept
