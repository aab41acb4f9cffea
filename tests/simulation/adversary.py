"""Who makes things go wrong, and the user whose load it is: both drawn from the world's seed."""

from __future__ import annotations

import signal
from typing import Any

from skyward.core.spec import MachineState, Nodes
from tests.simulation.network import Route
from tests.simulation.node import MOST, Load, content
from tests.simulation.pool import Pool, Wish
from tests.simulation.world import World

__all__ = ["load", "misfortune", "pool"]

_SIZES = (0, 0, 0, 10, 1_000, 40_000, 200_000)
_SECONDS = (0.0, 0.0, 0.001, 0.01, 0.1, 1.0)
_ENDS = ("return",) * 12 + ("raise", "raise", "die", "hang")
_BLOBS = (100_000, 150_000, 1_000_000)
_LARGE = (1_000_000, 2_500_000, MOST, MOST)


def pool(world: World) -> Pool:
    """A pool of some size, near or far."""
    random = world.random
    return Pool(
        world,
        nodes=Nodes(*random.choice(((1, 1), (1, 1), (2, 2), (1, 2), (1, 3), (3, 3)))),
        slots=random.choice((1, 2, 4)),
        isolated=random.random() < 0.7,
        route=Route.drawn(random),
    )


def load(world: World, pool: Pool) -> float:
    """Let the user submit, and sometimes cancel; the seconds until all is submitted."""
    random = world.random
    is_heavy = random.random() < 0.1
    sizes = _SIZES + (_LARGE if is_heavy else ())
    arrays = [content(random.choice(_BLOBS + (_LARGE if is_heavy else ())), noise=index == 0) for index in range(2)]
    count = random.choice((1, 5, 20, 50))
    span = random.choice((0.0, 0.1, 3.0))
    calm = random.random() < 0.4  # no task dies or hangs
    for number in range(count):
        end = random.choice(_ENDS[: 14 if calm else None])
        seconds = random.choice(_SECONDS)
        timeout = random.choice((None, None, 0.5, 5.0)) if end != "hang" else random.choice((0.05, 1.0))
        plan = Load(number, seconds, end, random.choice(sizes), random.choice((0, 0, 50, 50_000)))
        wish = Wish(
            plan,
            isolated=random.random() < 0.8,
            timeout=timeout,
            attempts=random.choice((1, 2, 3)),
            arrays=tuple(random.sample(arrays, random.choice((0, 0, 1, 2)))),
        )
        world.after(random.uniform(0.0, span), _submitter(pool, wish))
        if random.random() < 0.1:
            world.after(span + random.expovariate(2.0), _canceller(pool, number))
    return span


def _submitter(pool: Pool, wish: Wish) -> Any:
    return lambda: pool.submit(wish)


def _canceller(pool: Pool, number: int) -> Any:
    return lambda: pool.cancel(number)


def misfortune(world: World, pool: Pool) -> None:
    """What goes wrong in the next seconds; in some seeds nothing does."""
    random = world.random
    for _ in range(random.choice((0, 0, 1, 1, 2, 4, 8))):
        world.after(random.uniform(0.0, 15.0), _doer(world, pool, random.choice(_OF_MACHINES)))
    for _ in range(random.choice((0, 0, 0, 1, 3))):
        fault = random.choice(("lost_replies", "refusals", "failures", "duds"))
        world.tell(f"the cloud will have {fault}")
        pool.oracle.faults += 1
        setattr(pool.cloud, fault, getattr(pool.cloud, fault) + random.choice((1, 1, 3)))


def _doer(world: World, pool: Pool, fault: Any) -> Any:
    def strike() -> None:
        alive = [name for name, machine in pool.machines.items() if machine.process.alive]
        if alive:
            name = world.random.choice(alive)
            world.tell(f"{fault.__name__.strip('_')} at {name}")
            pool.oracle.faults += 1
            fault(world, pool, name)

    return strike


def _slot_dies(world: World, pool: Pool, name: str) -> None:
    if slots := pool.machines[name].slots:
        world.random.choice(slots).end(signal.SIGKILL)


def _slot_freezes(world: World, pool: Pool, name: str) -> None:
    if slots := pool.machines[name].slots:
        world.random.choice(slots).process.frozen_until = world.now + world.random.choice((0.01, 1.0, 8.0))


def _server_dies(world: World, pool: Pool, name: str) -> None:
    if servers := pool.machines[name].servers:
        servers[-1].die(-signal.SIGKILL)


def _server_freezes(world: World, pool: Pool, name: str) -> None:
    if servers := pool.machines[name].servers:
        servers[-1].process.frozen_until = world.now + world.random.choice((1.0, 30.0, 1e9))


def _freeze(world: World, pool: Pool, name: str) -> None:
    process = world.random.choice((pool.driver, pool.machines[name].process, pool.machines[name].process))
    process.frozen_until = world.now + world.random.choice((0.05, 1.0, 5.0, 15.0))


def _cut(world: World, pool: Pool, name: str) -> None:
    pool.lines[name].cut(world.random.choice((0.0, 0.0, 0.5, 5.0, 30.0)))


def _stall(world: World, pool: Pool, name: str) -> None:
    pool.lines[name].stall(world.random.choice((0.1, 2.0, 20.0)))


def _agent_dies(world: World, pool: Pool, name: str) -> None:
    pool.machines[name].gone()


def _preempted(world: World, pool: Pool, name: str) -> None:
    pool.cloud.stop(name, world.random.choice((MachineState.PREEMPTED, MachineState.GONE, MachineState.FAILED)))


def _no_fork(world: World, pool: Pool, name: str) -> None:
    pool.machines[name].forks_fail = world.random.choice((1, 3))


_OF_MACHINES = (
    _slot_dies,
    _slot_freezes,
    _server_dies,
    _server_freezes,
    _freeze,
    _cut,
    _cut,
    _stall,
    _agent_dies,
    _preempted,
    _no_fork,
)
