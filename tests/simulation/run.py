"""Runs a scenario: a pool from its order to its end, with a load and misfortunes, watched by the oracle."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import itertools
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from skyward.core.tasks.last_failure import last_failure
from tests.simulation import adversary, census, worlds
from tests.simulation.cloud import registered
from tests.simulation.pool import Pool
from tests.simulation.scenario import Scenario
from tests.simulation.world import Stuck, World

__all__ = ["Outcome", "Totals", "many", "quiet", "simulate", "story_of"]

START = 2000.0
"""Seconds within which a pool starts, or fails: twice what slots may take to start, and some orders that fail."""
SETTLE = 1500.0
"""Seconds in which every task settles, beyond what they all take one by one: a node's longest silence is part of it."""
REST = 300.0
"""Seconds awake within which nothing is left of tasks that have settled: nodes out of reach are given up by then."""
_LOOK_AGAIN = (7.0, 4.3, 9.1)
"""Seconds after which what is still there is looked at once more: an order that was just placed has been answered, and
of many nodes one may always report its load."""
GOODBYE = 10.0
"""Seconds after the block within which agents have ended that were told to."""
ORPHANED = 200.0
"""Seconds awake within which agents have ended that nobody can tell: their patience, and once more from a link's end
on."""
LEAVE = 1000.0
"""Seconds within which the block ends: agents that are out of reach end by themselves after one minute or two, and a
provider that is out of service is given up after 900 seconds."""
LEAVE_BROKEN = 120.0
"""Seconds within which the block ends after a fault of our own, which may have lost count of what is there."""


@dataclass
class Outcome:
    """What came of a scenario.

    Attributes
    ----------
    scenario
        Replays it.
    turns
        Turns of processes and events of the world.
    broken
        What should have held and did not; empty for a good run.
    story
        What happened, line by line.
    """

    scenario: Scenario
    turns: int
    broken: list[str]
    story: list[str] = field(repr=False)


class _LoggedErrors(logging.Handler):
    """What the product logs as an error must not be either: it found something that it did not expect."""

    def __init__(self, world: World, pools: list[Pool]) -> None:
        super().__init__(logging.ERROR)
        self._world, self._pools = world, pools

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, SystemExit):
            return  # of a user's callback
        faulty = any(pool.oracle.lies or pool.oracle.slips for pool in self._pools)
        if faulty and not error and "link broken after an error" in record.getMessage():
            return  # of an agent that has lied, and was found out; or what our own fault has left undone is done twice
        if any(pool.oracle.gaps for pool in self._pools) and isinstance(error, KeyError):
            return  # of a transport
        slips = any(pool.oracle.slips for pool in self._pools)
        if slips and ("simulated: a fault of our own" in repr(error) or "while managing" in record.getMessage()):
            return  # what has lost count once may do so again
        if "simulated: no disk" in repr(error):  # where a package is installed
            return
        self._world.broken.append(f"logged: {record.getMessage()}: {error!r}")


def simulate(scenario: Scenario | int) -> Outcome:
    """Run a scenario to its end, or the one of a seed."""
    if isinstance(scenario, int):
        scenario = worlds.scenario(scenario)
    was_enabled = gc.isenabled()
    gc.disable()  # for speed, and since a file that only the collector closes counts as left open
    asyncio.set_event_loop(None)  # whoever asks for a loop outside of a process must not be given a new one
    try:
        with registered(), unwarned() as warned:
            outcome = _simulate(scenario)
        outcome.broken += warned
        return outcome
    finally:
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def unwarned() -> Iterator[list[str]]:
    """Yield what will be told of the warnings given until then: such as that of a coroutine that nobody awaited."""
    told: list[str] = []
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        yield told
    told += [f"a warning: {warning.message}" for warning in given]


def _simulate(scenario: Scenario) -> Outcome:
    files = _open_files()
    world = World(scenario.seed)
    pools = [Pool(world, scenario)]
    errors = _LoggedErrors(world, pools)
    loggers, silent = list(map(logging.getLogger, ("skyward", "asyncio"))), logging.getLogger("concurrent.futures")
    for logger in loggers:
        logger.addHandler(errors)
        logger.propagate = False  # pytest keeps what is logged, and with a traceback all that its frames hold
    silent.disabled = True  # it reports what users' callbacks raise
    try:
        _live(world, pools[0], scenario)
        if scenario.resumes and not world.broken:
            _run_again(world, pools, scenario.rerun)
    except Stuck as error:
        world.broken.append(str(error))
    finally:
        story = [f"{time - world.began:10.4f}  {text}" for time, text in world.story]
        broken = list(world.broken)
        for pool in pools:
            pool.unplug()
        world.close()
        for pool in pools:
            pool.close()
        silent.disabled = False
        for logger in loggers:
            logger.removeHandler(errors)
            logger.propagate = True
    for pool in pools:
        if pool.budget is not None and pool.cloud.cost > pool.budget * 1.001 + pool.cloud.cost_of(world.away):
            broken.append(f"the machines have cost ${pool.cloud.cost:.4g}, and may cost ${pool.budget:.4g}")
    if not broken and not any(pool.oracle.is_over for pool in pools):
        broken = world.broken + [text for pool in pools for text in _left(pool, files)]
    return Outcome(scenario, world.turns, broken, story)


def _run_again(world: World, pools: list[Pool], scenario: Scenario) -> None:
    """Run the program again, with the results that it has kept, while machines of its first run may live on."""
    before = pools[0]
    world.tell("the program is run again")
    pools.append(Pool(world, scenario, before))
    pairs = zip(before.scenario.wishes, scenario.wishes, strict=True)  # what has further calls has some to be computed
    pools[1].oracle.follows(before.oracle, {new.number for old, new in pairs if new.count == old.count})
    _live(world, pools[1], scenario)
    world.run(lambda: before.is_gone, ORPHANED + _asleep(before.scenario), "no agent of the first run runs any more")


def _left(pool: Pool, files: int) -> list[str]:
    """What should not be there any more."""
    found = []
    if lost := pool.oracle.unsettled:
        found.append(f"tasks have not settled: {lost}")
    if (kept := census.left(pool.dispatcher, pool.provisioner, versions=pool.versions)) and not pool.is_warned:
        found.append(f"the block has ended, and there is still {', '.join(kept)}")
    tally = pool.tally
    if tally.unfinished or tally.busy or tally.queued != tally.done + tally.failed + tally.cancelled:
        found.append(f"the counts do not agree: {tally.status(0.0, {}).tasks}, {tally.busy} busy")
    if tally.slots or tally.nodes or tally.steps:
        found.append(f"nodes are counted that are gone: {tally.nodes} {tally.steps}")
    if (more := _open_files() - files) > 0:  # fewer: the process has closed what it had from before
        found.append(f"{more} files are left open")
    return found


def _open_files() -> int:
    """How many files this process has open, once it has forgotten the task that failed last, with its arguments."""
    last_failure._kept = None
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def _asleep(scenario: Scenario) -> float:
    """Seconds for which machines and the driver sleep."""
    return sum(each.amount for each in scenario.misfortunes if each.kind in ("machine_sleeps", "driver_sleeps"))


def _live(world: World, pool: Pool, scenario: Scenario) -> None:
    for misfortune in scenario.misfortunes:
        adversary.inflict(pool, misfortune)
    end = math.inf if scenario.leaves is None else world.began + scenario.leaves
    if scenario.leaves is not None:
        world.at(end, lambda: None)  # so that time stops there
    begun = lambda: pool.started or pool.failed or world.now >= end  # noqa: E731
    world.run(begun, START + scenario.outage, "the pool has started, or has failed")
    wishes = scenario.wishes if pool.started else ()
    if pool.started:
        pool.begin()
    pool.oracle.watch()
    span = sum(wish.at + wish.seconds * wish.attempts for wish in wishes)
    settled = lambda: pool.oracle.have_settled(wishes) or world.now >= end  # noqa: E731
    world.run(settled, span + SETTLE + scenario.outage, "every task has settled")
    asleep = _asleep(scenario)
    if scenario.rests and not pool.failed and world.now < end:
        _rest(world, pool, REST + asleep)
    if world.now >= end and scenario.is_killed:
        pool.kill()
        if scenario.resumes:
            return
        world.run(lambda: pool.is_gone, ORPHANED + asleep, "no agent runs whose driver was killed")
        return
    if world.now >= end and scenario.withdraws and pool.started:
        world.awake(pool.driver, pool.withdraw)()
        settled = lambda: pool.is_withdrawn and pool.oracle.have_settled(pool.oracle.wishes)  # noqa: E731
        world.run(settled, span + SETTLE, "every task has settled that had begun")
        end = math.inf
    _leave(world, pool, scenario, interrupted=world.now >= end)


def _leave(world: World, pool: Pool, scenario: Scenario, *, interrupted: bool) -> None:
    """The block ends, and all that was there does."""
    asleep = _asleep(scenario)
    world.awake(pool.driver, functools.partial(pool.leave, interrupted))()
    world.run(lambda: pool.is_leaving, 2 * LEAVE, "the driver is awake")
    if scenario.ends is not None:
        world.after(scenario.ends, lambda: pool.has_left or pool.kill())
    has_left = lambda: pool.has_left or pool.oracle.is_over  # noqa: E731
    world.run(lambda: has_left() or pool.provisioner._broken is not None, LEAVE + asleep, "the block has ended")
    world.run(has_left, LEAVE_BROKEN + asleep, "the block has ended after a fault of our own")
    if pool.oracle.is_over:
        if scenario.resumes:
            return
        world.run(lambda: pool.is_gone, ORPHANED + asleep, "no agent runs whose driver has ended")
        return
    # An agent that is out of reach waits for its owner. So does one whose greeting the end of a start has interrupted:
    # the driver may say nothing before the agent has answered. All others have heard the goodbye.
    goodbye = GOODBYE + pool.behind
    told = lambda: pool.is_told or pool.deafness > 0 or not pool.started  # noqa: E731
    world.run(told, goodbye, "no agent runs that had an owner")
    world.run(lambda: pool.is_gone, ORPHANED + asleep, "no agent runs any more")
    if pool.billed and not world.broken and not pool.is_warned:
        world.broken.append(f"machines are left: {', '.join(pool.billed)}")


def _held(pool: Pool) -> set[str]:
    """What is there of a load. One who lies may begin a message, and never go on with it, or keep what it denies."""
    if any(machine.denies for machine in pool.machines.values()):
        return set()
    held = {*census.held(*pool.parts, versions=pool.versions), *pool.results_left}
    begun = ("Incoming.", "Wire._coming") if pool.oracle.lies else ()
    return {each for each in held if not each.startswith(begun)}


def _rest(world: World, pool: Pool, limit: float) -> None:
    """Wait until nothing of the load is left anywhere; looking takes long, so it is done less and less often."""
    end, pause = world.now + limit, 1.0
    world.broken += [f"it can't say what it is: {text}" for text in census.mute(*pool.parts)]
    while (held := _held(pool)) and not world.broken:
        if world.now > end:
            break
        _pass(world, pause, limit)
        pause = min(pause * 3.0, 40.0)
    for pause in _LOOK_AGAIN:  # what is there now may only pass through
        if held and not world.broken:
            _pass(world, pause, limit)
            held &= _held(pool)
    if held and not world.broken:
        text = ", ".join(sorted(held))
        world.broken.append(f"{limit:g} seconds after every task has settled there is still {text}")


def _pass(world: World, seconds: float, limit: float) -> None:
    """Let time go by. A look at the next event alone may always meet the same one, such as an order."""
    due = world.now + seconds
    world.at(due, lambda: None)
    world.run(lambda: world.now >= due, limit + 600.0, "some seconds have passed")  # a machine may sleep for minutes


@dataclass
class Totals:
    """Sums over many seeds."""

    seeds: int = 0
    turns: int = 0
    seconds: float = 0.0


def many(first: int, count: int) -> tuple[Totals, list[Outcome]]:
    """Run seeds from `first` on, in several processes; those that failed come back with their stories."""
    began, totals, failed = time.monotonic(), Totals(), []
    with ProcessPoolExecutor(os.cpu_count()) as executor:
        for turns, outcomes in executor.map(_chunk, _chunks(first, count)):
            totals.turns += turns
            failed += outcomes
    totals.seeds, totals.seconds = count, time.monotonic() - began
    return totals, failed


_CHUNK = 25
_COLLECTED = 5  # seeds after which the garbage is collected that they have left


@contextlib.contextmanager
def quiet() -> Iterator[Callable[[Outcome], Outcome]]:
    """Collect garbage only when what this yields is called after a seed, which returns what then came of that."""
    count = itertools.count(1)

    def after(outcome: Outcome) -> Outcome:
        if next(count) % _COLLECTED == 0:
            with unwarned() as warned:
                gc.collect()
            outcome.broken += [f"this seed or one of the {_COLLECTED - 1} before: {text}" for text in warned]
        return outcome

    gc.collect()
    gc.freeze()  # all modules, which it need not look through again and again
    gc.disable()
    try:
        yield after
    finally:
        gc.enable()
        gc.unfreeze()


def _chunks(first: int, count: int) -> Iterator[tuple[int, int]]:
    for start in range(first, first + count, _CHUNK):
        yield start, min(_CHUNK, first + count - start)


def _chunk(chunk: tuple[int, int]) -> tuple[int, list[Outcome]]:
    turns, failed = 0, []
    with quiet() as after:
        for seed in range(chunk[0], chunk[0] + chunk[1]):
            outcome = after(simulate(seed))
            turns += outcome.turns
            failed += [outcome] if outcome.broken else []
    return turns, failed


def story_of(outcome: Outcome) -> str:
    """What happened in a run, and how to see it again."""
    seed = outcome.scenario.seed
    again = f"again: python -m tests.simulation --seed {seed}; in fewer events: add --shrink"
    return "\n".join([f"seed {seed}: {'; '.join(outcome.broken) or 'all is well'}", *outcome.story, again])
