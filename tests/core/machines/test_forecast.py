"""What is predicted of a call: its time, its price and what limits it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from skyward.core.billing import Billing
from skyward.core.machines.forecast import (
    Cluster,
    TaskSample,
    Workload,
    durations,
    forecast,
    in_words,
    makespan,
    merged,
)

TIMES = st.lists(st.floats(0.001, 1e4), min_size=1, max_size=60)


def workload(count: int = 100, seconds: float = 1.0, **changes: Any) -> Workload:
    values: dict[str, Any] = {
        "calls": count, "weights": [0.0] * count, "samples": [TaskSample(0.0, seconds, 0.0, 10)], "before": 0.0,
        "making": 0.0, "bytes": 100.0, "shared": 0.0, "memory": 10**8,
    }  # fmt: skip
    return Workload(**{**values, **changes})


def cluster(nodes: int = 1, slots: int = 4, **changes: Any) -> Cluster:
    values: dict[str, Any] = {"cores": 4, "memory": None, "start": 60.0, "bandwidth": 1e7, "price": 0.6}
    return Cluster(nodes, slots, **{**values, **changes})


# --- when the last task ends ---


@given(TIMES, st.integers(1, 20))
def test_no_schedule_beats_its_bounds(times: list[float], slots: int) -> None:
    ideal = max(*times, sum(times) / slots)
    assert ideal * 0.999 <= makespan(times, slots) <= sum(times) / slots + max(times) + 1e-6


@given(TIMES)
def test_one_slot_takes_the_sum(times: list[float]) -> None:
    assert makespan(times, 1) == pytest.approx(sum(times))


@given(st.integers(1, 200), st.integers(1, 20))
def test_equal_tasks_run_in_rounds(count: int, slots: int) -> None:
    assert makespan([2.0] * count, slots) == pytest.approx(2.0 * -(-count // slots))


def test_a_straggler_counts_by_when_it_begins() -> None:
    assert makespan([10.0, *[1.0] * 30], 4) == pytest.approx(10.0)
    assert makespan([*[1.0] * 30, 10.0], 4) == pytest.approx(17.0)


def test_a_million_tasks() -> None:
    assert makespan([1.0] * 100_000, 100) == pytest.approx(1000.0)
    assert makespan([1.0] * 100_000 + [5000.0], 100) == pytest.approx(5000.0)


# --- how long each task takes ---


def test_between_two_samples_the_weight_decides() -> None:
    samples = [TaskSample(1.0, 2.0, 0.0, 0), TaskSample(3.0, 10.0, 0.0, 0)]
    work = workload(weights=[0.0, 1.0, 2.0, 3.0, 9.0], samples=samples)
    assert durations(work) == pytest.approx([2.0, 2.0, 6.0, 10.0, 10.0])


def test_samples_that_do_not_follow_their_weights_have_a_mean() -> None:
    samples = [TaskSample(weight, 1.0 + weight % 2, 0.0, 0) for weight in range(4)]
    assert durations(workload(weights=[0.0, 9.0], samples=samples)) == [1.5, 1.5]


def test_the_first_sample_is_left_out_if_there_are_others_like_it() -> None:
    samples = [TaskSample(0.0, 9.0, 0.0, 0, cold=True), TaskSample(0.0, 1.0, 0.0, 0), TaskSample(0.0, 2.0, 0.0, 0)]
    assert durations(workload(2, samples=samples)) == [1.5, 1.5]
    alone = [TaskSample(1.0, 9.0, 0.0, 0, cold=True), TaskSample(0.0, 1.0, 0.0, 0)]
    assert durations(workload(weights=[0.0, 1.0], samples=alone)) == [1.0, 9.0]


def test_what_several_processes_have_learned() -> None:
    one, other = workload(5, 1.0, before=1.0, memory=10), workload(5, 3.0, before=3.0, memory=20)
    both = merged([one, other])
    assert [sample.seconds for sample in both.samples] == [1.0, 3.0]
    assert (both.tasks, both.before, both.memory) == (5, 2.0, 20)


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0.01, 100)), min_size=1, max_size=5), st.lists(st.floats(0, 100))
)
@example([(0.0, 1.0), (9.324987591186701e-176, 2.0)], [])  # whose squares are zero
def test_no_task_is_expected_to_take_what_none_has_taken(
    known: list[tuple[float, float]], weights: list[float]
) -> None:
    work = workload(weights=weights, samples=[TaskSample(weight, seconds, 0.0, 0) for weight, seconds in known])
    low, high = min(seconds for _, seconds in known), max(seconds for _, seconds in known)
    assert all(low * 0.999 <= seconds <= high * 1.001 for seconds in durations(work))


# --- a forecast ---


def test_parts_and_price() -> None:
    there = forecast(workload(100, 36.0, before=4.0, shared=2e8), cluster(nodes=5, slots=2))
    assert there.start == 60.0
    assert there.transfer == pytest.approx(20.0)
    assert there.compute == pytest.approx(360.0)
    assert there.call == pytest.approx(384.0)
    assert there.wall == pytest.approx(444.0)
    assert there.price == pytest.approx(5 * 0.6 * 444 / 3600)
    by_the_hour = cluster(nodes=5, slots=2, billing=Billing(unit=3600.0))
    assert forecast(workload(100, 36.0), by_the_hour).price == pytest.approx(5 * 0.6)
    assert there.limits == ()


@given(st.integers(1, 500), st.floats(0.01, 100), st.integers(1, 50), st.integers(1, 16), st.floats(0, 2))
def test_more_nodes_never_take_longer_nor_a_second_more_a_shorter_time(
    count: int, seconds: float, nodes: int, slots: int, cpu: float
) -> None:
    work = workload(count, seconds, samples=[TaskSample(0.0, seconds, cpu * seconds, 0)])
    here = forecast(work, cluster(nodes, slots))
    assert forecast(work, cluster(nodes + 1, slots)).wall <= here.wall * 1.0001
    assert forecast(dataclasses.replace(work, before=1.0), cluster(nodes, slots)).wall == pytest.approx(here.wall + 1)
    assert here.wall >= here.start + seconds * 0.999
    assert here.wall == pytest.approx(here.start + here.before + here.transfer + here.compute)


def test_slots_beyond_the_cores_help_tasks_that_wait_only() -> None:
    waits = workload(64, 1.0)
    computes = workload(64, 1.0, samples=[TaskSample(0.0, 1.0, 1.0, 0)])
    assert forecast(waits, cluster(slots=16)).compute == pytest.approx(4.0)
    crowded = forecast(computes, cluster(slots=16))
    assert crowded.compute == pytest.approx(16.0)
    assert forecast(computes, cluster(slots=4)).compute == pytest.approx(16.0)
    assert "cores: 16 slots share 4" in forecast(computes, cluster(slots=16, start=1.0)).limits
    assert forecast(computes, cluster(slots=16, cores=None)).compute == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("work", "nodes", "limit"),
    [
        (workload(8, 600.0), cluster(nodes=4), "not enough tasks: 8 for 16 slots"),
        (workload(weights=[0.0] * 30 + [1.0], samples=[TaskSample(0.0, 10.0, 0.0, 0), TaskSample(1.0, 900.0, 0.0, 0)]),
         cluster(), "stragglers: the longest task takes 15 min"),
        (workload(100, 1.0, shared=1e10), cluster(), "bandwidth: 17 min to move 10.0 GB"),
        (workload(100, 1.0), cluster(), "starting the nodes: 60.0 s"),
        (workload(100, 1.0, before=900.0), cluster(), "what the call does before its first task: 15 min"),
        (workload(10_000, 0.001, making=0.1), cluster(slots=40), "your program, which makes the tasks: 17 min"),
        (workload(100, 1.0, memory=3 * 10**9), cluster(memory=8 * 10**9), "memory: 2 of 4 slots fit"),
    ],
    ids=["tasks", "straggler", "bandwidth", "start", "before", "driver", "memory"],
)  # fmt: skip
def test_what_limits_is_named_first(work: Workload, nodes: Cluster, limit: str) -> None:
    assert forecast(work, nodes).limits[0] == limit


def test_an_unknown_price() -> None:
    assert forecast(workload(), cluster(price=None)).price is None


def test_durations_in_words() -> None:
    assert [in_words(seconds) for seconds in (0.0123, 1.25, 119, 600, 9000)] == [
        "12 ms",
        "1.2 s",
        "119.0 s",
        "10 min",
        "2.5 h",
    ]
