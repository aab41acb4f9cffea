"""Equal calls get keys of their own, which are the same in each run of a program."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.core.resume.occurrences import Occurrences, lane_of

A, B = b"a" * 16, b"b" * 16
SUBMISSIONS = st.lists(st.tuples(st.sampled_from([A, B]), st.sampled_from(["", "left", "right"]), st.integers(0, 3)))


def keys(submissions: list[tuple[bytes, str, int]]) -> list[bytes]:
    counter = Occurrences()
    return [counter.key(*submission) for submission in submissions]


@given(SUBMISSIONS)
def test_all_keys_of_a_run_differ_and_are_those_of_the_next_run(submissions: list[tuple[bytes, str, int]]) -> None:
    one = keys(submissions)
    assert len(set(one)) == len(one)
    assert one == keys(submissions)


@given(st.lists(st.sampled_from([A, B])), st.integers(2, 4), st.randoms(use_true_random=False))
def test_concurrent_series_have_the_same_keys_however_they_take_turns(
    calls: list[bytes], count: int, chance: random.Random
) -> None:
    """Which of them has which is chance, but none is missed."""
    turns = [series for series in range(1, count + 1) for _ in calls]
    chance.shuffle(turns)
    places = dict.fromkeys(range(1, count + 1), 0)
    mixed = []
    for series in turns:
        mixed.append((calls[places[series]], "", series))
        places[series] += 1
    apart = [(call, "", series) for series in range(1, count + 1) for call in calls]
    assert sorted(keys(mixed)) == sorted(keys(apart))


def test_what_a_series_needed_is_forgotten_with_it() -> None:
    counter = Occurrences()
    first = [counter.key(A, "", series) for series in (1, 1, 2)]
    counter.end(1)
    counter.end(7)
    assert repr(counter) == "<Occurrences of 1 calls in 1 series>"
    assert counter.key(A, "", 3) not in first


@given(SUBMISSIONS, st.randoms(use_true_random=False))
def test_named_threads_do_not_depend_on_who_is_faster(
    submissions: list[tuple[bytes, str, int]], chance: random.Random
) -> None:
    """Each lane's keys depend on its own order only."""
    lanes = {lane: [each for each in submissions if each[1] == lane] for lane in ("", "left", "right")}
    alone = {lane: keys(own) for lane, own in lanes.items()}
    mixed: list[tuple[bytes, str, int]] = []
    left = {lane: list(own) for lane, own in lanes.items() if own}
    while left:
        lane = chance.choice(sorted(left))
        mixed.append(left[lane].pop(0))
        if not left[lane]:
            del left[lane]
    got = keys(mixed)
    for lane, own in alone.items():
        assert [key for key, each in zip(got, mixed, strict=True) if each[1] == lane] == own


def test_a_series_counts_for_itself() -> None:
    """How far an abandoned Parallel had got does not matter to the next one."""
    far = keys([*[(A, "", 1)] * 10, *[(A, "", 2)] * 3])
    near = keys([*[(A, "", 1)] * 4, *[(A, "", 2)] * 3])
    assert far[-3:] == near[-3:]
    assert far[:4] == near[:4]


@pytest.mark.parametrize(
    "name", ["MainThread", "Thread-1", "Thread-12 (work)", "ThreadPoolExecutor-0_3", "asyncio_0", "Dummy-7"]
)
def test_names_that_python_makes_are_one_lane(name: str) -> None:
    assert lane_of(name) == ""


@pytest.mark.parametrize("name", ["left", "worker-1", "Thread-x", "My ThreadPoolExecutor-0_3"])
def test_names_of_the_users_are_lanes(name: str) -> None:
    assert lane_of(name) == name
