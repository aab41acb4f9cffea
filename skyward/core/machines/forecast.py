"""Predicts how long a call takes on some nodes, what that costs, and what limits it, from a few of its tasks. Pure."""

from __future__ import annotations

import heapq
import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from skyward.core.billing import BY_THE_SECOND, Billing

__all__ = ["Cluster", "Forecast", "TaskSample", "Workload", "durations", "forecast", "in_words", "makespan", "merged"]

_OVERHEAD = 0.0003  # driver's seconds per task, of which it handles one at a time
_EXACT = 50_000  # tasks that are scheduled one by one; beyond that, the last ones hardly matter
_FOLLOWS = 0.8  # correlation of samples with their weights from which these are believed
_NOTABLE = 0.2  # share of the time from which something is named as a limit


class TaskSample(NamedTuple):
    """One task that was run."""

    weight: float
    seconds: float
    cpu: float  # seconds, of all its threads
    result: int  # bytes
    cold: bool = False  # the first one of its process


@dataclass(frozen=True, slots=True)
class Workload:
    """A call, as it was measured.

    Attributes
    ----------
    calls
        How many calls there are; fewer tasks if the caller has said how many calls a batch has.
    weights
        The amount of work that each task's arguments suggest, in order. See `durations`.
    samples
        The tasks that were run.
    before
        Seconds from the beginning of the call until its first task.
    making
        Seconds that the caller takes to make and pickle each task.
    bytes
        Of each task, on average, that are sent with it.
    shared
        Bytes that are sent once to each node.
    memory
        Bytes that one slot needs.
    """

    calls: int
    weights: Sequence[float]
    samples: Sequence[TaskSample]
    before: float
    making: float
    bytes: float
    shared: float
    memory: int

    @property
    def tasks(self) -> int:
        """How many there are."""
        return len(self.weights)

    @property
    def cpu(self) -> float:
        """How many cores a task keeps busy."""
        seconds = sum(sample.seconds for sample in self.samples)
        return min(max(sum(sample.cpu for sample in self.samples) / seconds, 0.0) if seconds else 1.0, 64.0)

    @property
    def result(self) -> float:
        """Bytes of a result, on average."""
        return statistics.fmean(sample.result for sample in self.samples)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Nodes of one kind.

    Attributes
    ----------
    nodes, slots
        How many nodes, and slots of each.
    cores, memory
        Of each node; None if that is not known. Memory in bytes.
    start
        Seconds until they are ready.
    bandwidth
        Bytes per second from the caller to all nodes together, and back.
    price
        US dollars per hour of a node; None if it is not known.
    billing
        How the provider bills that.
    """

    nodes: int
    slots: int
    cores: float | None
    memory: int | None
    start: float
    bandwidth: float
    price: float | None
    billing: Billing = BY_THE_SECOND


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is to be expected. Times are seconds.

    Attributes
    ----------
    start, before, transfer, compute
        Until nodes are ready; from the beginning of the call to its first task; until a node has what all tasks share;
        all tasks, with what each of them moves.
    price
        US dollars; None if it is not known.
    limits
        What takes a large part of the time, the largest first.
    """

    start: float
    before: float
    transfer: float
    compute: float
    price: float | None
    limits: tuple[str, ...]

    @property
    def call(self) -> float:
        """How long the call itself takes."""
        return self.before + self.transfer + self.compute

    @property
    def wall(self) -> float:
        """The total time."""
        return self.start + self.call


def merged(found: Sequence[Workload]) -> Workload:
    """Combine what several processes have measured of the same call."""
    samples = [sample for each in found for sample in each.samples]
    before = statistics.fmean(each.before for each in found)
    making = statistics.fmean(each.making for each in found)
    return replace(found[0], samples=samples, before=before, making=making, memory=max(each.memory for each in found))


def durations(workload: Workload) -> list[float]:
    """Return the expected seconds of each task: as its weight suggests if samples follow theirs, else their mean."""
    samples = _warm(workload.samples)
    seconds = [sample.seconds for sample in samples]
    mean, low, high = statistics.fmean(seconds), min(seconds), max(seconds)
    largest = max(abs(sample.weight) for sample in samples)
    weights = [sample.weight / largest if largest else 0.0 for sample in samples]  # whose squares are no zeros
    if len(set(weights)) < 2 or high == low:
        return [mean] * workload.tasks
    if abs(statistics.correlation(weights, [each / high for each in seconds])) < _FOLLOWS:
        return [mean] * workload.tasks
    line = statistics.linear_regression(weights, seconds)
    return [min(max(line.intercept + line.slope * (weight / largest), low), high) for weight in workload.weights]


def _warm(samples: Sequence[TaskSample]) -> Sequence[TaskSample]:
    """Leave out the first one of each process, which may have loaded something, where there are others like it."""
    known = {sample.weight for sample in samples if not sample.cold}
    return [sample for sample in samples if not sample.cold or sample.weight not in known]


def makespan(times: Sequence[float], slots: int) -> float:
    """Return when the last of the tasks ends, if each slot takes the next one when it is free."""
    if len(times) > _EXACT:
        return max(sum(times) / slots, *times)
    if len(times) <= slots:
        return max(times, default=0.0)
    free = list(times[:slots])
    heapq.heapify(free)
    for seconds in itertools.islice(times, slots, None):
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)


def forecast(workload: Workload, cluster: Cluster) -> Forecast:
    """Predict a call on some nodes.

    Parameters
    ----------
    workload, cluster
        The call, and the nodes.
    """
    slots = _slots(workload, cluster)
    total = cluster.nodes * slots
    busy = min(slots, -(-workload.tasks // cluster.nodes))  # of a node, if there are fewer tasks than slots
    crowd = 1.0 if cluster.cores is None else max(1.0, busy * workload.cpu / cluster.cores)
    times = [seconds * crowd for seconds in durations(workload)]
    tasks = makespan(times, total)
    moving = workload.tasks * (workload.bytes + workload.result) / cluster.bandwidth
    driving = workload.tasks * (workload.making + _OVERHEAD)
    transfer = workload.shared / cluster.bandwidth
    compute = max(tasks, moving, driving)
    wall = cluster.start + workload.before + transfer + compute
    price = None if cluster.price is None else cluster.nodes * cluster.billing.cost(cluster.price, wall)
    ideal = sum(times) / total
    parts = {
        f"starting the nodes: {in_words(cluster.start)}": cluster.start,
        f"what the call does before its first task: {in_words(workload.before)}": workload.before,
        f"bandwidth: {in_words(transfer + moving)} to move {_bytes(_moved(workload))}": transfer + moving,
        f"your program, which makes the tasks: {in_words(driving)}": driving,
    }
    if workload.tasks < total:
        parts[f"not enough tasks: {workload.tasks} for {total} slots"] = tasks - ideal
    else:
        parts[f"stragglers: the longest task takes {in_words(max(times, default=0.0))}"] = tasks - ideal
    if crowd > 1.1:
        parts[f"cores: {busy} slots share {cluster.cores:g}"] = tasks * (1 - 1 / crowd)
    if slots < cluster.slots:
        parts[f"memory: {slots} of {cluster.slots} slots fit"] = wall
    order = sorted(parts, key=lambda text: -parts[text])
    limits = tuple(text for text in order if parts[text] > _NOTABLE * wall)
    return Forecast(cluster.start, workload.before, transfer, compute, price, limits)


def _slots(workload: Workload, cluster: Cluster) -> int:
    """How many slots of a node fit into its memory; at least one."""
    own = workload.memory - workload.shared
    if cluster.memory is None or own <= 0:
        return cluster.slots
    return max(1, min(cluster.slots, int((cluster.memory - workload.shared) / own)))


def _moved(workload: Workload) -> float:
    return workload.shared + workload.tasks * (workload.bytes + workload.result)


def in_words(seconds: float) -> str:
    """A duration in words."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"
