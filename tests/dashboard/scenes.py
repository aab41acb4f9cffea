"""Courses of pools, made of events at virtual times: what the page's tests and pictures show."""

from __future__ import annotations

import bisect
import linecache
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from skyward.core.events import (
    Event,
    MachineInfo,
    MachineMade,
    Machines,
    NodeBegun,
    NodeGone,
    NodeLoad,
    NodeReady,
    NodeStep,
    Note,
    PoolDraining,
    PoolReady,
    PoolStarted,
    Printed,
    TaskEnded,
    TasksQueued,
    Transferred,
)
from skyward.core.gpus import Gpu
from skyward.core.status import PoolStatus, RunningTask
from skyward.core.tally import Tally
from skyward.dashboard.recording import Recording

__all__ = ["SCENES", "Scene", "play"]

Timed = tuple[float, Event]
GIB = 2**30


@dataclass(frozen=True)
class Scene:
    """A pool at one moment."""

    recording: Recording
    status: PoolStatus
    now: float
    state: str


def play(events: Iterable[Timed], until: float, state: str = "running") -> Scene:
    """Let time pass until some moment."""
    recording, tally, now = Recording(0.0), Tally(), 0.0
    course = sorted(events, key=lambda each: each[0])
    running = [
        RunningTask(event.node, event.slot, event.label, event.count, until - event.started)
        for at, event in course
        if at > until and isinstance(event, TaskEnded) and event.started is not None and event.started < until
    ]
    running.sort(key=lambda task: -task.seconds)
    for at, event in course:
        if at > until:
            break
        while at > now + 1:
            now += 1
            recording.digest(now)
        tally.add(event, at)
        if isinstance(event, recording.kinds):
            recording.handle(event, at)
        if isinstance(event, PoolReady):
            recording.meet(_status(tally, at))
    recording.digest(until)
    status = replace(_status(tally, until), running=tuple(running))
    recording.meet(status)
    return Scene(recording, status, until, state)


def _status(tally: Tally, now: float) -> PoolStatus:
    return tally.status(now, tally.nodes if tally.unfinished else {})


def node_begins(name: str, at: float, slots: int, info: MachineInfo, gpus: tuple[Gpu, ...] = ()) -> Iterator[Timed]:
    yield at, MachineMade(name, info)
    yield at + 1, NodeBegun(name, info)
    yield at + 1, NodeStep(name, f"connecting to 10.0.0.{len(name)}")
    yield at + 4, NodeReady(name, slots, gpus, info, cores=slots, memory=4 * slots * GIB)


def loads(name: str, start: float, end: float, slots: int, chance: random.Random, gpus: int = 0) -> Iterator[Timed]:
    memory, cpu, at = 0.2, 0.9, start + 3
    while at < end:
        cpu = min(1.0, max(0.3, cpu + chance.uniform(-0.12, 0.12)))
        memory = min(0.95, memory + chance.uniform(-0.01, 0.04))
        total = 4 * slots * GIB
        cards = tuple(Gpu(f"GPU-{each}", "A100", 80 * GIB, int(chance.uniform(20, 75) * GIB)) for each in range(gpus))
        yield at, NodeLoad(name, cpu, slots, int(memory * total), total, int(chance.uniform(11, 93) * GIB), cards)
        at += 10


def tasks(
    nodes: Iterable[tuple[str, float, float]],
    slots: int,
    functions: Callable[[random.Random], tuple[str, float]],
    chance: random.Random,
    fails: float = 0.0,
    limit: int = 10**9,
    pauses: Sequence[float] = (0.0, 0.01, 0.01, 0.02, 0.4),
) -> Iterator[Timed]:
    """Each slot runs one task after the other, while its node is there."""
    free = [(start + chance.uniform(0, 0.3), name, slot, end) for name, start, end in nodes for slot in range(slots)]
    free.sort()
    while free and limit:
        at, name, slot, end = free.pop(0)
        label, seconds = functions(chance)
        if at + seconds > end:
            continue
        bad = chance.random() < fails
        error = _error(chance) if bad else None
        ended = TaskEnded(
            1,
            seconds,
            not bad,
            node=name,
            slot=slot,
            label=label,
            error=None if error is None else f"{type(error).__name__}: {error}",
            started=at,
            sent=4_000_000,
            received=60_000,
            exception=error,
        )
        yield at + seconds, ended
        limit -= 1
        after = at + seconds + chance.choice(pauses)
        bisect.insort(free, (after, name, slot, end))


# What fails in the scenes. Its own file by name only, so that pictures do not show where this one lies.
_STUDY = """\
def check(name, value):
    if value <= 0:
        raise ValueError(f"{name}={value} is not positive")


def fit_and_score(params, folds):
    check("learning_rate", params["learning_rate"])
    return folds[params["fold"]]
"""
linecache.cache["study.py"] = len(_STUDY), None, _STUDY.splitlines(keepends=True), "study.py"
_study: dict[str, Any] = {}
exec(compile(_STUDY, "study.py", "exec"), _study)


def _error(chance: random.Random) -> Exception:
    params = {"learning_rate": chance.choice((-1, 0, 1, 1)), "fold": f"fold_{chance.randrange(3)}"}
    try:
        return _study["fit_and_score"](params, {})  # type: ignore[no-any-return]
    except Exception as error:
        here = error.__traceback__
        return error.with_traceback(here and here.tb_next)


def search(until: float = 95.0, fails: float = 0.004) -> Scene:
    """Twenty machines in a grid search, one of which was lost and replaced."""
    chance = random.Random(7)
    names = [f"node-{number}" for number in range(1, 21)]
    info = MachineInfo("aws", "c7i.2xlarge", 0.357, region="eu-central-1")
    spot = MachineInfo("aws", "c7i.2xlarge", 0.141, spot=True, region="eu-central-1")
    events: list[Timed] = [
        (0, PoolStarted("sky-4711-1-9f3a2c", "aws", 20, 8)),
        (0.2, Note("sends 2 modules of yours (study, features); nodes install 14 packages")),
        (0.4, Note("20 c7i.2xlarge in eu-central-1: $4.12 per hour")),
        (14, PoolReady(160, 14.0)),
        (14.5, Note("12 of 20 nodes are spot machines", warning=False)),
        (61, Note("node-5 will be replaced: c7i.2xlarge at $0.357 per hour")),
    ]
    lives = []
    for number, name in enumerate(names):
        begin = chance.uniform(3, 8)
        end = 58.0 if name == "node-5" else 1e9
        lives.append((name, begin + 4, end))
        events += node_begins(name, begin, 8, spot if number % 5 < 3 else info)
        events += loads(name, begin + 4, min(end, until), 8, chance)
    events.append((58.0, NodeGone("node-5", "the provider reclaimed this spot machine")))
    lives.append(("node-21", 74.0, 1e9))
    events += [*node_begins("node-21", 70.0, 8, info), *loads("node-21", 74.0, until, 8, chance)]
    fits = [("fit_and_score", seconds) for seconds in (3.2, 5.0, 2.1)]
    kinds = (*fits, ("permute", 0.8), ("bootstrap", 1.6))

    def functions(chance: random.Random) -> tuple[str, float]:
        label, mean = chance.choice(kinds)
        return label, chance.uniform(0.6, 1.5) * mean

    for label, count in (("fit_and_score", 3600), ("permute", 1200), ("bootstrap", 1300)):
        events += [(13.9, TasksQueued(1, label))] * count
    done = list(tasks(((name, max(start, 14.0), end) for name, start, end in lives), 8, functions, chance, fails, 6100))
    events += done
    events += [
        (at + 0.01, Printed(event.node, 1 + (index % 17 == 0), _printed(event, chance)))
        for index, (at, event) in enumerate(done)
        if index % 6 == 0
    ]
    return play(events, until)


def _printed(event: TaskEnded, chance: random.Random) -> str:
    if event.error is not None:
        return f"RuntimeWarning: {event.label} did not converge after 1000 iterations\n"
    tried = f"C={10 ** chance.randint(-3, 3):g} gamma={chance.random():.4f}"
    return f"{event.label}: {tried} -> {chance.uniform(0.8, 0.99):.4f}\n"


def failing() -> Scene:
    """The same, where a third of the tasks fail."""
    return search(60.0, fails=0.33)


def thousand(until: float = 180.0) -> Scene:
    """A thousand nodes of four slots."""
    chance = random.Random(3)
    info = MachineInfo("hetzner", "cpx31", 0.0287, region="fsn1")
    events: list[Timed] = [(0, PoolStarted("sky-4711-2-1c9b07", "hetzner", 1000, 4)), (21, PoolReady(800, 21.0))]
    lives = []
    for number in range(1, 1001):
        name, begin = f"node-{number}", chance.uniform(2, 30)
        end = chance.uniform(60, 170) if number % 70 == 0 else 1e9
        lives.append((name, begin + 4, end))
        events += node_begins(name, begin, 4, info)
        events += loads(name, begin + 4, min(end, until), 4, chance)
        if end < 1e9:
            events.append((end, NodeGone(name, "no contact for 30 s")))
    for label, count in (("simulate", 200_000), ("reduce", 30_000)):
        events += [(20.0, TasksQueued(1, label))] * count

    def functions(chance: random.Random) -> tuple[str, float]:
        return ("reduce", chance.uniform(0.5, 2)) if chance.random() < 0.13 else ("simulate", chance.uniform(3, 9))

    within = [(name, start, min(end, until)) for name, start, end in lives]
    events += tasks(within, 4, functions, chance, 0.0005)
    return play(events, until)


def tiny() -> Scene:
    """Two thousand tasks per second, which do next to nothing."""
    chance = random.Random(5)
    info = MachineInfo("local", "localhost", 0.0)
    events: list[Timed] = [(0, PoolStarted("sky-4711-3-77ab12", "local", 2, 4))]
    lives = [("node-1", 4.0, 34.0), ("node-2", 4.0, 34.0)]
    for name, *_ in lives:
        events += [*node_begins(name, 0, 4, info), *loads(name, 4, 34, 4, chance)]
    events.append((4.0, TasksQueued(60_000, "noop")))
    events += tasks(lives, 4, _noop, chance, limit=40_000, pauses=(0.001, 0.002, 0.02))
    return play(events, 30.0)


def _noop(chance: random.Random) -> tuple[str, float]:
    return "noop", chance.uniform(0.0001, 0.004)


def gpus() -> Scene:
    """Three machines with GPUs, whose tasks take minutes."""
    chance = random.Random(11)
    info = MachineInfo("verda", "1A100.22V", 1.89, region="FIN-01")
    cards = tuple(Gpu(f"GPU-{each}", "A100", 80 * GIB, 2 * GIB) for each in range(2))
    events: list[Timed] = [(0, PoolStarted("sky-4711-4-0be1d5", "verda", 3, 2))]
    lives = []
    for number in range(1, 4):
        name = f"node-{number}"
        lives.append((name, 40.0 + 5 * number, 1e9))
        events += node_begins(name, 36.0 + 5 * number, 2, info, cards)
        events += loads(name, 40.0 + 5 * number, 900, 2, chance, gpus=2)
    events += [(50.0, TasksQueued(1, "train"))] * 60
    events += tasks(lives, 2, lambda chance: ("train", chance.uniform(50, 140)), chance, limit=60)
    return play(events, 700.0)


def starting() -> Scene:
    """A pool whose machines boot."""
    info = MachineInfo("aws", "c7i.2xlarge", 0.357, region="eu-central-1")
    events: list[Timed] = [
        (0, PoolStarted("sky-4711-5-5d20aa", "aws", 4, 8)),
        (0.4, Note("4 c7i.2xlarge in eu-central-1: $1.43 per hour")),
        (5.0, Machines(ordered=1, booting=2)),
    ]
    for number in (1, 2):
        events += [(3.0, MachineMade(f"i-{number}", info)), (14.0, NodeBegun(f"node-{number}", info))]
    events += [
        (15.0, NodeStep("node-1", "installing 14 packages")),
        (15.0, NodeStep("node-2", "connecting to 10.0.0.6")),
    ]
    return play(events, 18.0, "starting")


def idle() -> Scene:
    """A pool without tasks."""
    info = MachineInfo("local", "localhost", 0.0)
    chance = random.Random(2)
    events: list[Timed] = [(0, PoolStarted("sky-4711-6-4e11f0", "local", 2, 4)), (0.6, PoolReady(8, 0.6))]
    for name in ("node-1", "node-2"):
        events += [*node_begins(name, -3.5, 4, info), *loads(name, 0, 30, 4, chance)]
    return play([(max(0.0, at), event) for at, event in events], 12.0)


def draining() -> Scene:
    """Three calls over an array each, for which the tasks wait; the block has ended, and the last call goes on."""
    info = MachineInfo("ssh", "rack", 0.0)
    chance = random.Random(13)
    names = [f"node-{number}" for number in range(1, 5)]
    events: list[Timed] = [(0, PoolStarted("sky-4711-7-6fa8c1", "ssh", 4, 4)), (4.0, PoolReady(16, 4.0))]
    for name in names:
        events += [*node_begins(name, 0, 4, info), *loads(name, 4, 60, 4, chance)]
    for call, (at, label) in enumerate(((5.0, "distances"), (22.0, "neighbours"), (40.0, "distances"))):
        events += [(at, TasksQueued(1, label))] * 96
        lives = []
        for number, name in enumerate(names):
            began = at + (0.0 if number == 0 else 1.5)
            took = (3.0, 1.4, 1.5, 2.2)[number] + call
            peer = "" if number == 0 else names[0]
            events.append((began + took, Transferred(name, 120_000_000 * (1 + call), peer, began, took)))
            lives.append((name, began + took, at + 100))
        events += tasks(lives, 4, lambda chance, label=label: (label, chance.uniform(0.5, 2)), chance, limit=96)
    events.append((41.0, PoolDraining()))
    return play(events, 47.0)


SCENES: dict[str, Callable[[], Scene]] = {
    "search": search,
    "failing": failing,
    "thousand": thousand,
    "tiny": tiny,
    "gpus": gpus,
    "starting": starting,
    "idle": idle,
    "draining": draining,
}
