"""Who makes things go wrong: what each kind of misfortune does."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from skyward.core.machines.fleet_events import CameUp, Shutdown
from skyward.core.spec import MachineState
from tests.simulation import strangers
from tests.simulation.pool import Pool
from tests.simulation.scenario import Misfortune

__all__ = ["AMOUNTS", "OF_THE_CLOUD", "USUAL", "inflict"]


def inflict(pool: Pool, misfortune: Misfortune) -> None:
    """Let something go wrong when its time has come."""

    def strike() -> None:
        kind, amount = misfortune.kind, misfortune.amount
        if kind in OF_THE_CLOUD + _OF_SOME_CLOUDS:
            pool.world.tell(f"the cloud will have {kind}: {amount:g} more")
            pool.oracle.faults += 1
            pool.deafness += 1
            setattr(pool.cloud, kind, getattr(pool.cloud, kind) + int(amount))
        elif alive := [name for name, machine in pool.machines.items() if machine.process.alive]:
            name = alive[misfortune.which % len(alive)]
            pool.world.tell(f"{kind} at {name}, {amount:g}")
            pool.oracle.faults += kind not in _HARMLESS
            pool.look()
            pool.deafness += kind not in _AUDIBLE or pool.is_leaving
            _OF_MACHINES[kind][0](pool, name, amount)

    pool.world.after(misfortune.at, strike)


def _slot_dies(pool: Pool, name: str, which: float) -> None:
    if slots := pool.machines[name].slots:
        slots[int(which) % len(slots)].end(signal.SIGKILL)


def _slot_freezes(pool: Pool, name: str, seconds: float) -> None:
    if slots := pool.machines[name].slots:
        slots[0].process.freeze(seconds)


def _server_dies(pool: Pool, name: str, _: float) -> None:
    if servers := pool.machines[name].servers:
        servers[-1].die(-signal.SIGKILL)


def _server_freezes(pool: Pool, name: str, seconds: float) -> None:
    if servers := pool.machines[name].servers:
        servers[-1].process.freeze(seconds)


def _driver_freezes(pool: Pool, _: str, seconds: float) -> None:
    pool.driver.freeze(seconds)


def _driver_sleeps(pool: Pool, _: str, seconds: float) -> None:
    pool.driver.sleep(seconds)


def _driver_lags(pool: Pool, _: str, seconds: float) -> None:
    pool.driver.lag = seconds


def _agent_freezes(pool: Pool, name: str, seconds: float) -> None:
    pool.machines[name].process.freeze(seconds)


def _agent_lags(pool: Pool, name: str, seconds: float) -> None:
    pool.machines[name].process.lag = seconds


def _machine_sleeps(pool: Pool, name: str, seconds: float) -> None:
    pool.machines[name].sleep(seconds)


def _clock_jumps(pool: Pool, name: str, seconds: float) -> None:
    pool.machines[name].process.offset += seconds


def _disk_full(pool: Pool, name: str, seconds: float) -> None:
    pool.machines[name].full_until = pool.world.now + seconds


def _cut(pool: Pool, name: str, seconds: float) -> None:
    pool.lines[name].cut(seconds)


def _stall(pool: Pool, name: str, seconds: float) -> None:
    pool.lines[name].stall(seconds)


def _peers_cut(pool: Pool, name: str, seconds: float) -> None:
    pool.neighbourhood.cut(name, seconds)


def _peers_stall(pool: Pool, name: str, seconds: float) -> None:
    pool.neighbourhood.stalled_until[name] = pool.world.now + seconds


def _peers_lie(pool: Pool, name: str, times: float) -> None:
    pool.neighbourhood.lies[name] = int(times)


def _agent_dies(pool: Pool, name: str, _: float) -> None:
    pool.machines[name].gone()


_STATES = (MachineState.PREEMPTED, MachineState.GONE, MachineState.FAILED)


def _machine_ends(pool: Pool, name: str, state: float) -> None:
    for cloud in pool.clouds:
        cloud.stop(name, _STATES[int(state)])


def _no_fork(pool: Pool, name: str, times: float) -> None:
    pool.machines[name].forks_fail = int(times)


def _stranger(pool: Pool, name: str, kind: float) -> None:
    strangers.visit(pool.world, pool.machines[name], int(kind))


def _lies(pool: Pool, name: str, times: float) -> None:
    pool.oracle.lies += 1
    machine, at = pool.machines[name], 0.0
    for _ in range(int(times)):  # at once, or one after the other
        pool.world.after(at, pool.world.awake(machine.process, lambda: strangers.lie(pool.world, machine)))
        at += pool.world.random.choice((0.0, 0.2))


def _impostors(pool: Pool, name: str, times: float) -> None:
    pool.oracle.lies += 1
    for _ in range(int(times)):
        strangers.impersonate(pool.world, pool.machines[name])
    pool.lines[name].cut(0.0)


def _commands(pool: Pool, name: str, times: float) -> None:
    pool.oracle.lies += 1
    for life in pool.provisioner._lives.values():
        session = life.session
        if session is not None and life.machine.name == name and life.is_ready:
            at = 0.0
            for _ in range(int(times)):
                pool.driver.call_later(at, strangers.command, pool.world, session, pool.machines[name])
                at += pool.world.random.choice((0.0, 0.2))


def _unsaved(pool: Pool, name: str, times: float) -> None:
    pool.machines[name].saving.fails += int(times)


def _file_away(pool: Pool, _: str, seconds: float) -> None:
    if (results := pool.results) is not None and not pool.oracle.is_over:
        results.take_away()
        pool.oracle.is_file_away = pool.oracle.was_file_away = True

        def bring_back() -> None:
            results.bring_back()
            pool.oracle.is_file_away = False

        pool.world.after(seconds, bring_back)


def _gpu_lost(pool: Pool, name: str, which: float) -> None:
    pool.machines[name].cards.lost.add(f"GPU-{which:g}")
    pool.oracle.lost_cards += 1


def _gpus_silent(pool: Pool, name: str, times: float) -> None:
    pool.machines[name].cards.fails += int(times)


def _stillborn(pool: Pool, name: str, times: float) -> None:
    pool.machines[name].stillborn += int(times)


def _unready(pool: Pool, name: str, times: float) -> None:
    pool.machines[name].unready += int(times)


def _forgets(pool: Pool, name: str, times: float) -> None:
    pool.oracle.forgets += int(times)
    pool.machines[name].forgets += int(times)


def _crowd(pool: Pool, name: str, _: float) -> None:
    strangers.crowd(pool.world, pool.machines[name])


def _trespass(pool: Pool, name: str, _: float) -> None:
    strangers.trespass(pool.world, pool.machines[name])


def _flap(pool: Pool, name: str, times: float) -> None:
    """Let the line break each time soon after it was made."""
    pool.lines[name].flaps += int(times)
    pool.lines[name].cut(0.0)


def _bridge(pool: Pool, name: str, _: float) -> None:
    strangers.bridge(pool.world, pool.machines[name])


def _babbles(pool: Pool, name: str, times: float) -> None:
    pool.oracle.forgets += int(times)
    pool.machines[name].babbles += int(times)


def _usurp(pool: Pool, name: str, _: float) -> None:
    pool.oracle.lies += 1
    strangers.usurp(pool.world, pool.machines[name])


def _join(pool: Pool, name: str, _: float) -> None:
    pool.oracle.lies += 1
    strangers.join(pool.world, pool.machines[name])


def _deadly(pool: Pool, name: str, times: float) -> None:
    pool.machines[name].deadly += int(times)


def _no_pipes(pool: Pool, name: str, times: float) -> None:
    pool.machines[name].no_pipes += int(times)


def _server_fails(pool: Pool, name: str, times: float) -> None:
    machine = pool.machines[name]
    machine.short_lived, machine.unstartable = int(times), int(pool.world.random.choice((0.0, 1.0)) * times)
    _server_dies(pool, name, 0)


def _slip(pool: Pool, _: str, what: float) -> None:
    """Let code of our own fail: a fault of the product's that nobody knows yet."""
    pool.oracle.slips += 1
    if what > 0:
        pool.cloud.slips += int(what)
        return
    fleet = pool.provisioner._fleet
    handle = fleet.handle

    def slip(event: Any, now: float) -> Any:
        fleet.handle = handle  # type: ignore[method-assign]
        if isinstance(event, Shutdown) or (what and not isinstance(event, CameUp)):
            fleet.handle = slip if what else handle  # type: ignore[method-assign]
            return handle(event, now)
        raise RuntimeError("simulated: a fault of our own")

    fleet.handle = slip  # type: ignore[method-assign]


def _outage(pool: Pool, _: str, seconds: float) -> None:
    pool.cloud.down_until = pool.world.now + seconds


def _file_vanishes(pool: Pool, _: str, __: float) -> None:
    if pool.folder is not None:
        pool.folder.lose()


def _gaps(pool: Pool, name: str, times: float) -> None:
    pool.oracle.gaps += 1
    pool.lines[name].gaps += int(times)
    pool.lines[name].cut(0.0)


def _blind(pool: Pool, name: str, times: float) -> None:
    pool.machines[name].blind += int(times)


_Strike = Callable[[Pool, str, float], None]
# Kind -> what it does to a machine, and the amounts that it comes in.
_OF_MACHINES: dict[str, tuple[_Strike, tuple[float, ...]]] = {
    "slot_dies": (_slot_dies, (0, 1, 2, 3)),
    "slot_freezes": (_slot_freezes, (0.01, 1.0, 8.0)),
    "server_dies": (_server_dies, (0,)),
    "server_freezes": (_server_freezes, (1.0, 30.0, 1e9)),
    "driver_freezes": (_driver_freezes, (0.05, 1.0, 5.0, 15.0)),
    "agent_freezes": (_agent_freezes, (0.05, 1.0, 5.0, 15.0)),
    "driver_sleeps": (_driver_sleeps, (1.0, 15.0, 300.0)),
    "machine_sleeps": (_machine_sleeps, (1.0, 15.0, 300.0)),
    "clock_jumps": (_clock_jumps, (1.0, 15.0, 300.0)),
    "driver_lags": (_driver_lags, (0.001, 0.02, 0.2)),
    "agent_lags": (_agent_lags, (0.001, 0.02, 0.2)),
    "disk_full": (_disk_full, (1.0, 15.0, 1e9)),
    "cut": (_cut, (0.0, 0.0, 0.5, 5.0, 30.0, 100.0, 400.0)),
    "stall": (_stall, (0.1, 2.0, 20.0)),
    "peers_cut": (_peers_cut, (0.0, 2.0, 30.0)),
    "peers_stall": (_peers_stall, (0.1, 2.0, 20.0)),
    "peers_lie": (_peers_lie, (1, 3)),
    "agent_dies": (_agent_dies, (0,)),
    "machine_ends": (_machine_ends, (0, 1, 2)),
    "no_fork": (_no_fork, (1, 3, 1_000)),
    "stranger": (_stranger, tuple(range(len(strangers.KINDS)))),
    "lies": (_lies, (1, 1, 3, 20)),
    "impostors": (_impostors, (1, 1, 3, 10)),
    "commands": (_commands, (1, 1, 3)),
    "unsaved": (_unsaved, (1, 3)),
    "file_away": (_file_away, (0.1, 5.0)),
    "stillborn": (_stillborn, (1, 3, 10)),
    "unready": (_unready, (1, 3)),
    "forgets": (_forgets, (1, 3)),
    "gpu_lost": (_gpu_lost, (0, 1)),
    "gpus_silent": (_gpus_silent, (1, 3)),
    "blind": (_blind, (1, 3)),
    "crowd": (_crowd, (0,)),
    "trespass": (_trespass, (0,)),
    "usurp": (_usurp, (0,)),
    "flap": (_flap, (5, 40)),
    "babbles": (_babbles, (1, 3)),
    "bridge": (_bridge, (0,)),
    "join": (_join, (0,)),
    "deadly": (_deadly, (1, 10, 1_000)),
    "no_pipes": (_no_pipes, (1, 3, 20)),
    "server_fails": (_server_fails, (1, 3, 8)),
    "outage": (_outage, (10.0, 100.0, 1_500.0)),
    "gaps": (_gaps, (1, 3)),
    "slip": (_slip, (0, 0, 1, 3, -1)),
    "file_vanishes": (_file_vanishes, (0,)),
}
# Not among what any seed may draw: some of them need a scenario of their own, and the others came later.
_RARE = (
    "file_away",
    "gpu_lost",
    "gpus_silent",
    "stillborn",
    "unready",
    "forgets",
    "blind",
    "impostors",
    "commands",
    "crowd",
    "trespass",
    "usurp",
    "join",
    "flap",
    "babbles",
    "bridge",
    "deadly",
    "no_pipes",
    "server_fails",
    "outage",
    "gaps",
    "slip",
    "file_vanishes",
)
_HARMLESS = ("stranger", "blind", "trespass", "bridge")  # nobody may notice them
# Whatever these do, the agent goes on to hear its owner, if not on this line then on the next.
_AUDIBLE = (
    *_HARMLESS,
    "cut",
    "slot_dies",
    "slot_freezes",
    "server_dies",
    "disk_full",
    "no_fork",
    "peers_cut",
    "peers_stall",
    "peers_lie",
)
AMOUNTS = {kind: amounts for kind, (_, amounts) in _OF_MACHINES.items()}
"""The amounts in which each kind that strikes a machine comes."""
USUAL = tuple(kind for kind in _OF_MACHINES if kind not in _RARE)
"""Those kinds that any seed may draw."""
OF_THE_CLOUD = ("lost_replies", "refusals", "failures", "duds", "denials")
"""What any seed may draw of the provider's."""
_OF_SOME_CLOUDS = ("undead", "empty")
