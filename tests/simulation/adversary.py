"""Who makes things go wrong, and the user whose load it is: a scenario, all of it drawn from one seed."""

from __future__ import annotations

import operator
import random
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from skyward.core.gpus import per_gpu
from skyward.core.machines.fleet_events import CameUp, Shutdown
from skyward.core.spec import MachineState
from tests.simulation import strangers
from tests.simulation.load import MAX_BYTES
from tests.simulation.pool import Pool
from tests.simulation.scenario import Edit, Misfortune, Scenario, Wish

__all__ = ["inflict", "scenario"]

_CODE = 0.1  # of the seeds have code of their own
_BAD_SLOTS = 0.15
_GPUS = 0.08
_RESUMES = 0.08  # of them keep results in a file
_SMALL = 0.2  # of all have machines with little memory
_LITTLE = 0.02  # US dollars
_SPENT = 0.5  # of those with so small a budget run until it is spent
_LONG = (20.0, 100.0, 400.0)
_LOCAL = 0.12  # of all have their nodes on the driver's machine
_FOLDERS = 0.08  # of all have a folder of the user's on each node
_FOLDER_SHAPES = ((1, (0, 10)), (20, (0, 10)), (3, (100_000,))) * 3 + ((3, (10, 1_500_000)), (2, (MAX_BYTES,)))
_SIZES = (0, 0, 0, 10, 1_000, 40_000, 200_000)
_SECONDS = (0.0, 0.0, 0.001, 0.01, 0.1, 1.0) * 3 + (20.0,)
_ENDS = ("return",) * 12 + ("raise", "odd", "die", "hang")
_LARGE = (1_000_000, 2_500_000, MAX_BYTES - 2, MAX_BYTES - 2)


class _Size(NamedTuple):
    """How large a world is.

    Attributes
    ----------
    nodes, tasks
        How many of each there may be.
    arrays
        Bytes of their large arguments.
    large
        Share of the worlds in which some have megabytes.
    """

    nodes: tuple[tuple[int, int], ...]
    tasks: tuple[int, ...]
    arrays: tuple[int, ...]
    large: float


_SMALL_WORLD = _Size(((1, 1), (1, 1), (2, 2), (1, 2)), (1, 2, 3, 5), (40_000, 100_000, 150_000), 0.05)
_WORLD = _Size(((1, 1), (2, 2), (1, 2), (1, 3)), (5, 10, 20), (100_000, 150_000, 1_000_000), 0.1)
_LARGE_WORLD = _Size(((1, 1), (2, 2), (1, 3), (3, 3)), (20, 50), (100_000, 150_000, 1_000_000), 0.3)
# Most faults show in a small world, of which many are run in the time of one large one.
_WORLDS = (_SMALL_WORLD,) * 30 + (_WORLD,) * 5 + (_LARGE_WORLD,)


def scenario(seed: int) -> Scenario:
    """Draw a scenario."""
    return _worse(seed, _near(seed))


def _worse(seed: int, scenario: Scenario) -> Scenario:
    """Let what is rare come together in some worlds: few others would meet it."""
    chance = random.Random(f"worse {seed}")
    scenario = replace(scenario, env=chance.random() < 0.05, load=0.0 if chance.random() < 0.05 else scenario.load)
    kind, drawn = chance.random(), None
    for share, draw in _WORSE:
        if kind < share:
            drawn = draw(chance, scenario)
            break
        kind -= share
    return scenario if drawn is None else drawn


def _strikes(
    chance: random.Random, scenario: Scenario, kinds: Sequence[str], counts: Sequence[int], span: float
) -> Scenario:
    """Add some misfortunes of these kinds."""
    more = []
    for _ in range(chance.choice(counts)):
        kind = chance.choice(kinds)
        amounts = _OF_MACHINES[kind][1] if kind in _OF_MACHINES else (1, 2)
        at = chance.choice((0.0, span)) * chance.random()
        more.append(Misfortune(kind, at, chance.randrange(3), chance.choice(amounts)))
    return replace(scenario, misfortunes=(*scenario.misfortunes, *more))


def _hostile(chance: random.Random, scenario: Scenario) -> Scenario:
    """Nobody can be trusted, for as long as the tasks take."""
    wishes = tuple(wish._replace(seconds=chance.choice((wish.seconds, 3.0))) for wish in scenario.wishes)
    if not scenario.resumes:
        scenario = replace(scenario, wishes=wishes, leaves=None, ends=None)
    kinds = (
        "lies",
        "lies",
        "lies",
        "commands",
        "commands",
        "impostors",
        "stranger",
        "crowd",
        "trespass",
        "join",
        "bridge",
    )
    if chance.random() < 0.2:
        scenario = replace(scenario, cards=scenario.cards or chance.choice((0, 2)))
        return _strikes(chance, scenario, ("usurp",), (4, 8), 12.0)
    return _strikes(chance, replace(scenario, rented=False), kinds, (4, 8), 4.0)


def _cramped(chance: random.Random, scenario: Scenario) -> Scenario:
    """There is little room on disks, or few files may be open."""
    folder = (100_000,) * 3 if chance.random() < 0.4 else scenario.folder
    room, files = chance.choice((0, 50_000, 130_000, 1_000_000)), chance.choice((0, 1, 1 << 16))
    return replace(scenario, room=room, files=files, folder=folder)


def _sociable(chance: random.Random, scenario: Scenario) -> Scenario:
    """Nodes pass much on to each other; perhaps there is little room for it."""
    size = chance.choice((150_000, 400_001, 1_500_001))
    wishes = tuple(wish._replace(arrays=(size,)) if wish.same is None else wish for wish in scenario.wishes)
    scenario = replace(scenario, nodes=chance.choice(((2, 2), (3, 3))), neighbours=1.0, wishes=wishes, local=False)
    scenario = replace(scenario, rented=scenario.rented and chance.random() < 0.5)
    scenario = _cramped(chance, scenario) if chance.random() < 0.3 else scenario
    kinds = ("peers_lie", "peers_lie", "peers_lie", "peers_cut", "peers_stall", "cut", "agent_dies")
    return _strikes(chance, scenario, kinds, (0, 1, 3), 3.0)


def _bulky(chance: random.Random, scenario: Scenario) -> Scenario:
    """Much is sent over several connections, or over as many as the host allows."""
    wishes = tuple(
        wish._replace(
            arrays=(*chance.sample(_LARGE, chance.choice((0, 1, 2))), *(80_000 + 2 * one for one in range(8))),
            talks=chance.choice((0, 0, 0, MAX_BYTES)) if wish.end == "return" and wish.timeout is None else 0,
            cancelled=chance.choice((None, 0.01, 0.3)),
        )
        if wish.same is None
        else wish
        for wish in scenario.wishes[:3]
    )
    return replace(
        scenario,
        striped=True,
        latency=chance.choice((0.03, 0.15)),
        rate=chance.choice((1e7, 1e9)),
        channels=chance.choice((1, 2, 3, 10)),
        wishes=tuple(wish for wish in wishes if wish.after is None or wish.after < len(wishes)),
        misfortunes=scenario.misfortunes[:1],
    )


def _decrepit(chance: random.Random, scenario: Scenario) -> Scenario:
    """Machines on which processes end, or can't be made."""
    kinds = ("deadly", "server_fails", "no_pipes", "unready", "stillborn", "babbles")
    return _strikes(chance, scenario, kinds, (1, 2, 4), 5.0)


def _deserted(chance: random.Random, scenario: Scenario) -> Scenario:
    """The provider is out of service, for long, or its driver has gaps."""
    if chance.random() < 0.2:
        silent = (Misfortune("lost_replies", amount=1), Misfortune("outage", 0.3, 0, chance.choice((100.0, 1_500.0))))
        return replace(scenario, rented=True, local=False, budget=chance.choice((0.009, 0.03)), misfortunes=silent)
    scenario = _strikes(chance, scenario, ("outage", "gaps"), (1, 2), 20.0)
    return _strikes(chance, scenario, ("machine_ends", "cut", "agent_dies"), (0, 1, 2), 20.0)


def _edited(chance: random.Random, scenario: Scenario) -> Scenario:
    """Many short tasks refer to modules that are edited all the time."""
    if scenario.local or scenario.gpus or scenario.resumes:
        return scenario
    wishes = tuple(
        Wish(number, number * 0.3, seconds=chance.choice((0.01, 0.5)), isolated=number % 2 > 0, attempts=2, uses=0)
        for number in range(10)
    )
    edits = tuple(Edit(0, 0.7 * number) for number in range(4))
    return replace(scenario, slots=4, isolated=False, wishes=wishes, misfortunes=scenario.misfortunes[:1], edits=edits)


def _barren(chance: random.Random, scenario: Scenario) -> Scenario:
    """Tasks end on one node, and only fail on another."""
    wishes = tuple(Wish(number, seconds=chance.choice((0.01, 0.5)), attempts=3) for number in range(20))
    deadly = Misfortune("deadly", chance.choice((0.0, 15.0)) * chance.random(), 0, 1_000)
    return replace(scenario, nodes=(2, 2), slots=1, wishes=wishes, misfortunes=(deadly,), edits=())


def _lost_files(chance: random.Random, scenario: Scenario) -> Scenario:
    """The user's folder loses a file before all nodes have it."""
    scenario = replace(scenario, folder=(300_000, 10, 100_000), rate=3e5, nodes=chance.choice(((1, 1), (2, 2))))
    return _strikes(chance, scenario, ("file_vanishes",), (1,), 12.0)


def _puzzling(chance: random.Random, scenario: Scenario) -> Scenario:
    """Some results can't be read where they arrive."""
    wishes = tuple(
        wish._replace(end="riddle", talks=0)
        if wish.end == "return" and wish.same is None and chance.random() < 0.5
        else wish
        for wish in scenario.wishes
    )
    return replace(scenario, wishes=wishes)


def _mixed(chance: random.Random, scenario: Scenario) -> Scenario:
    """The user has machines, too, and rents what is missing."""
    hosts = chance.choice((1, 2, -1, -2))
    if chance.random() < 0.4:
        twins = replace(scenario, rented=True, local=False, twin=True, nodes=chance.choice(((2, 2), (1, 3))))
        return _strikes(chance, twins, ("machine_ends", "refusals", "lost_replies", "denials"), (1, 2, 3), 5.0)
    nodes, slots = chance.choice(((2, 2), (1, 3))), max(scenario.slots, 1)
    scenario = replace(scenario, rented=True, local=False, gpus=0.0, slots=slots, hosts=hosts, nodes=nodes)
    return _strikes(chance, scenario, ("machine_ends", "agent_dies", "refusals", "denials"), (0, 1, 3), 10.0)


def _cheap(chance: random.Random, scenario: Scenario) -> Scenario:
    """Machines cost nothing, or nobody says what they cost; a budget counts all the same."""
    market, budget = chance.choice(("free", "unpriced")), chance.choice((0.004, 0.03, None))
    return replace(scenario, rented=True, local=False, market=market, budget=budget)


def _crowded(chance: random.Random, scenario: Scenario) -> Scenario:
    """Many machines are bought one by one, from a provider that says more than is so."""
    nodes = chance.choice(((1, 10), (2, 4), (2, 4)))
    wishes = tuple(wish._replace(arrays=()) for wish in scenario.wishes[:5])
    wishes = tuple(wish for wish in wishes if wish.after is None or wish.after < len(wishes))
    scenario = replace(scenario, rented=True, local=False, batch=False, budget=None, nodes=nodes, wishes=wishes)
    return _strikes(chance, scenario, ("undead", "empty", "lost_replies", "duds"), (1, 2, 3), 3.0)


def _faulty(chance: random.Random, scenario: Scenario) -> Scenario:
    """Our own code fails where nobody thought that it could, and perhaps no machine is left later."""
    scenario = replace(scenario, folder=chance.choice((scenario.folder, (10, 100_000))))
    scenario = _strikes(chance, scenario, ("slip",), (1, 1, 2), chance.choice((0.1, 5.0, 20.0)))
    if chance.random() < 0.5:
        return _strikes(chance, scenario, ("machine_ends", "agent_dies", "cut"), (0, 1, 3), 20.0)
    wishes = tuple(wish._replace(seconds=chance.choice((wish.seconds, 40.0))) for wish in scenario.wishes)
    ends = tuple(Misfortune("machine_ends", chance.uniform(10.0, 60.0), 0, 1) for _ in range(5))
    return replace(scenario, rented=True, local=False, wishes=wishes, misfortunes=scenario.misfortunes + ends)


def _lacking(chance: random.Random, scenario: Scenario) -> Scenario:
    """Nodes lack a package, which is installed when a task needs it."""
    wishes = tuple(
        wish._replace(end=chance.choice(("lacks", "lacks", "return")), timeout=None, count=0)
        if wish.same is None
        else wish
        for wish in scenario.wishes
    )
    return replace(scenario, wishes=wishes)


def _flapping(chance: random.Random, scenario: Scenario) -> Scenario:
    """A line breaks as soon as it is made, or much is said on it before it breaks."""
    if chance.random() < 0.7:
        return _strikes(chance, scenario, ("flap",), (1, 2), chance.choice((1.0, 10.0)))
    wishes = tuple(Wish(number, number * 0.2, seconds=0.01, attempts=3) for number in range(50))
    lies = tuple(Misfortune("lies", 1.0 + chance.random() + 0.6 * number, 0, 1) for number in range(15))
    return replace(scenario, wishes=wishes, misfortunes=lies, edits=(), rented=False, leaves=None)


def _revisited(chance: random.Random, scenario: Scenario) -> Scenario:
    """The program runs again on a machine that still has a folder of it, or a part of that."""
    if scenario.has_code or scenario.gpus:
        return scenario
    scenario = replace(scenario, nodes=(1, 1), local=True, rented=False, rate=chance.choice((3e5, 1e7)))
    scenario = _resuming(chance, replace(scenario, folder=(300_000,) * chance.choice((1, 4))))
    return replace(scenario, leaves=chance.uniform(0.3, 4.0), is_killed=True) if chance.random() < 0.5 else scenario


def _evicted(chance: random.Random, scenario: Scenario) -> Scenario:
    """There is no room for what no task needs, while tasks that can't be stopped go on using it."""
    wishes = tuple(
        Wish(number, 0.3 * number, seconds=3.0, isolated=False, arrays=(chance.choice((200_000, 500_000)) - number,))
        for number in range(6)
    )
    wishes = tuple(wish._replace(cancelled=chance.choice((None, 0.1, 1.0))) for wish in wishes)
    return replace(scenario, memory=0, slots=4, isolated=False, wishes=wishes, edits=(), resumes=False, gpus=0.0)


def _suspicious(chance: random.Random, scenario: Scenario) -> Scenario:
    """The nodes are strangers' own, so results are read as data."""
    ends = ("return", "return", "raise", "odd", "riddle")
    wishes = tuple(
        wish._replace(end=chance.choice(ends), talks=0) if wish.same is None else wish for wish in scenario.wishes
    )
    return replace(scenario, data=True, wishes=wishes)


_WORSE: tuple[tuple[float, Callable[[random.Random, Scenario], Scenario]], ...] = (
    (0.08, _hostile),
    (0.05, _sociable),
    (0.03, _cramped),
    (0.03, _bulky),
    (0.04, _decrepit),
    (0.03, _deserted),
    (0.03, _puzzling),
    (0.01, _barren),
    (0.01, _edited),
    (0.01, _lost_files),
    (0.02, _mixed),
    (0.01, _cheap),
    (0.01, _crowded),
    (0.02, _faulty),
    (0.02, _suspicious),
    (0.02, _lacking),
    (0.01, _flapping),
    (0.01, _revisited),
    (0.01, _evicted),
)
"""Shares of all worlds, and what is different in them."""


def _near(seed: int) -> Scenario:
    drawn = _far(seed)
    chance = random.Random(f"local {seed}")  # of its own, so that what was drawn before stays as it was
    if chance.random() < _LOCAL and not drawn.gpus and not drawn.has_code:  # such nodes import the driver's own files
        blind = tuple(
            Misfortune("blind", chance.uniform(0.0, 5.0), chance.randrange(3), chance.choice((1, 3)))
            for _ in range(chance.choice((0, 0, 1)))
        )
        drawn = replace(drawn, local=True, rented=False, misfortunes=drawn.misfortunes + blind)
    chance = random.Random(f"folder {seed}")
    if chance.random() < _SMALL:
        drawn = replace(drawn, memory=chance.choice((0, 500_000, 5_000_000)))
    if drawn.budget is not None and drawn.budget <= _LITTLE and drawn.rented and chance.random() < _SPENT:
        return _spent(chance, drawn)
    if chance.random() >= _FOLDERS:
        return drawn
    count, sizes = chance.choice(_FOLDER_SHAPES)
    return replace(drawn, folder=tuple(chance.choice(sizes) for _ in range(count)))


def _spent(chance: random.Random, scenario: Scenario) -> Scenario:
    """Have tasks take until the budget is spent, perhaps on further machines when some have ended."""
    wishes = tuple(wish._replace(seconds=chance.choice(_LONG)) for wish in scenario.wishes[:5])
    ends = tuple(
        Misfortune("machine_ends", chance.uniform(1.0, 60.0), chance.randrange(3), 1)
        for _ in range(chance.choice((0, 1, 3)))
    )
    return replace(scenario, wishes=wishes, misfortunes=scenario.misfortunes + ends)


def _far(seed: int) -> Scenario:
    chance = random.Random(f"scenario {seed}")  # not the same numbers as in the world of that seed
    size = chance.choice(_WORLDS)
    drawn = Scenario(
        seed,
        nodes=chance.choice(size.nodes),
        slots=chance.choice((1, 2, 4)),
        isolated=chance.random() < 0.7,
        latency=chance.choice((0.00005, 0.001, 0.03, 0.15)),
        rate=chance.choice((3e5, 1e7, 1e9)),
        striped=chance.random() < 0.5,
        links=chance.choice((1, 2, 3, 3, 3)),
        channels=chance.choice((1, 3, 10, 10, 10)),
        neighbours=chance.choice((0.0, 0.0, 0.5, 1.0)),
        batch=chance.random() < 0.5,
        rented=chance.random() < 0.7,
        rests=chance.random() < 0.25,
        limits=(None, chance.choice((1, 2, 3)), chance.choice((-1, -2))),
        leaves=chance.choice((0.5, 2.0, 15.0)) * chance.random() if chance.random() < 0.15 else None,
        is_killed=chance.random() < 0.3,
        withdraws=chance.random() < 0.5,
        ends=chance.choice((0.01, 1.0, 10.0)) * chance.random() if chance.random() < 0.1 else None,
        budget=chance.choice((0.004, 0.009, 0.02, 0.03, 0.2)) if chance.random() < 0.2 else None,
        saves=chance.random() < 0.15,
        wishes=_in_style(chance, _wishes(chance, size)),
        misfortunes=_misfortunes(chance),
    )
    more = random.Random(f"more {seed}")  # of its own as well
    if more.random() < _CODE:
        return _with_code(more, drawn)
    if more.random() < _RESUMES:
        return _resuming(more, drawn)
    if more.random() < _GPUS:
        return _with_gpus(more, drawn)
    return replace(drawn, misfortunes=drawn.misfortunes + _of_slots(more)) if more.random() < _BAD_SLOTS else drawn


def _of_slots(chance: random.Random) -> tuple[Misfortune, ...]:
    """Slots that don't begin, or forget what they were given, and agents that lie."""
    kinds = [
        chance.choice(("stillborn", "unready", "forgets", "lies", "impostors", "commands"))
        for _ in range(chance.choice((1, 1, 3)))
    ]
    at = chance.choice((0.0, 3.0, 15.0))
    return tuple(
        Misfortune(kind, at * chance.random(), chance.randrange(3), chance.choice(_OF_MACHINES[kind][1]))
        for kind in kinds
    )


def _with_gpus(chance: random.Random, scenario: Scenario) -> Scenario:
    """Give slots GPUs of their own: each task has a process."""
    gpus = chance.choice((0.5, 1.0, 2.0))
    cards = chance.choice((1, 2, 4))
    fit = int(cards * per_gpu(gpus) if gpus < 1 else cards // gpus)
    slots = scenario.slots if scenario.slots <= fit or chance.random() < 0.05 else chance.choice((0, fit))
    kinds = chance.choice(((), (), ("gpu_lost",), ("gpu_lost", "gpus_silent")))
    more = tuple(
        Misfortune(kind, chance.uniform(0.0, 15.0), chance.randrange(3), chance.choice((0, 1))) for kind in kinds
    )
    return replace(
        scenario,
        gpus=gpus,
        cards=cards,
        slots=slots,
        isolated=True,
        wishes=tuple(wish._replace(isolated=True) for wish in scenario.wishes),
        misfortunes=scenario.misfortunes + more,
    )


def _resuming(chance: random.Random, scenario: Scenario) -> Scenario:
    """Have results kept in a file, and the program run twice."""
    ends = chance.random() < 0.8
    away = tuple(
        Misfortune("file_away", chance.uniform(0.0, 15.0), 0, chance.choice((0.1, 5.0)))
        for _ in range(chance.choice((0, 0, 0, 1, 2)))
    )
    return replace(
        scenario,
        resumes=True,
        leaves=chance.choice((2.0, 15.0, 30.0)) * chance.random() if ends else scenario.leaves,
        is_killed=chance.random() < 0.6,
        misfortunes=scenario.misfortunes + away,
    )


def _with_code(chance: random.Random, scenario: Scenario) -> Scenario:
    """Have tasks refer to the user's own modules, which are edited meanwhile."""
    modules = chance.choice((1, 2, 5))
    wishes = tuple(
        wish._replace(uses=chance.choice((*range(modules), None))) if wish.same is None else wish
        for wish in scenario.wishes
    )
    span = chance.choice((0.5, 3.0, 15.0))
    sizes = (0, 0, 0, 100_000, chance.choice((100_000, 3_000_000)))
    edits = tuple(
        Edit(chance.randrange(modules), chance.uniform(0.0, span), chance.choice(sizes))
        for _ in range(chance.choice((0, 1, 3, 10)))
    )
    return replace(scenario, wishes=wishes, edits=edits)


def _wishes(chance: random.Random, size: _Size) -> tuple[Wish, ...]:
    large = _LARGE if chance.random() < size.large else ()
    arrays = [chance.choice(size.arrays + large) + noise for noise in (0, 0, 1, 1)]
    count = chance.choice(size.tasks)
    span = chance.choice((0.0, 0.1, 3.0))
    ends = _ENDS[: 14 if chance.random() < 0.4 else None]  # in a calm load no task dies or hangs
    wishes = tuple(_wish(chance, number, span, ends, _SIZES * 2 + large, arrays) for number in range(count))
    if count <= 5 and chance.random() < 0.05:
        wishes = tuple(wish._replace(seconds=chance.choice((wish.seconds, 60.0, 400.0))) for wish in wishes)
    if chance.random() < 0.1:
        return tuple(map(_talkative, wishes))
    if chance.random() < 0.1:
        wishes = tuple(wish._replace(node=chance.choice((0, 1, 2, None))) for wish in wishes)
    kinds = chance.choice((1, 2, 8))
    return tuple(_kept(wish, wishes[wish.number % kinds]) for wish in wishes) if chance.random() < 0.1 else wishes


def _kept(wish: Wish, first: Wish) -> Wish:
    """One whose result is kept for all that equal it."""
    if first.end == "unpicklable" or first.mutates:
        return wish
    mine = {name: getattr(wish, name) for name in ("number", "at", "cancelled", "callback", "attempts")}
    return first._replace(**mine, same=first.number, node=None)


def _talkative(wish: Wish) -> Wish:
    """One that talks to the driver's process, if nothing else limits how long it takes."""
    is_plain = wish.end == "return" and wish.timeout is None
    return wish._replace(talks=(1, 1_000, 100_000, 300_000)[wish.number % 4]) if is_plain else wish


def _in_style(chance: random.Random, wishes: tuple[Wish, ...]) -> tuple[Wish, ...]:
    """Tasks as they are submitted by hand, by a slow reader of `map`'s results, or by calls of joblib's."""
    style = chance.choice(("by hand", "by hand", "map", "joblib"))
    if style == "map":
        window, pause = chance.choice((1, 2, 8)), chance.choice((0.01, 0.3))
        return tuple(_follows(wish, window, at=pause) for wish in wishes)
    if style == "joblib":
        window, calls, groups = chance.choice((2, 4, 12)), chance.choice((1, 1, 4, 30)), chance.choice((1, 2))
        first = chance.randrange(3)
        if calls > 1:  # of small ones
            wishes = tuple(
                wish._replace(size=min(wish.size, 1_000), arrays=wish.arrays[: calls < 30]) for wish in wishes
            )
        return tuple(
            _follows(wish, groups * window, at=0.0)._replace(
                group=(first + wish.number % groups) % 3, count=calls, same=None
            )
            for wish in wishes
        )
    return wishes


def _follows(wish: Wish, window: int, **changes: Any) -> Wish:
    return wish if wish.number < window else wish._replace(after=wish.number - window, **changes)


def _wish(
    chance: random.Random,
    number: int,
    span: float,
    ends: Sequence[str],
    sizes: Sequence[int],
    arrays: Sequence[int],
) -> Wish:
    end = chance.choice(ends) if chance.random() < 0.98 else "unpicklable"
    return Wish(
        number,
        chance.uniform(0.0, span),
        seconds=chance.choice(_SECONDS),
        end=end,
        size=chance.choice(sizes),
        prints=chance.choice((0, 0, 50, 50_000)),
        isolated=chance.random() < 0.8,
        timeout=chance.choice((0.05, 1.0) if end == "hang" else (None, None, 0.5, 5.0)),
        attempts=chance.choice((1, 2, 3)),
        arrays=tuple(chance.sample(arrays, chance.choice((0, 0, 1, 2)))),
        callback=chance.choice(("",) * 18 + ("raise", "exit")),
        mutates=chance.random() < 0.1,
        cancelled=span * chance.random() + chance.expovariate(2.0) if chance.random() < 0.1 else None,
    )


def _misfortunes(chance: random.Random) -> tuple[Misfortune, ...]:
    """In some seeds there are none."""
    drawn = []
    for _ in range(chance.choice((0, 0, 1, 1, 2, 4, 8))):
        kind = chance.choice((*(kind for kind in _OF_MACHINES if kind not in _RARE), "cut", "agent_freezes"))
        amount = chance.choice(_OF_MACHINES[kind][1])
        drawn.append(Misfortune(kind, chance.uniform(0.0, 15.0), chance.randrange(3), amount))
    for _ in range(chance.choice((0, 0, 0, 1, 3))):
        at = chance.choice((0.0, 0.0, chance.uniform(0.0, 15.0)))
        drawn.append(Misfortune(chance.choice(_OF_THE_CLOUD), at, 0, chance.choice((1, 1, 3))))
    return tuple(sorted(drawn, key=operator.attrgetter("at")))


def inflict(pool: Pool, misfortune: Misfortune) -> None:
    """Let something go wrong when its time has come."""

    def strike() -> None:
        kind, amount = misfortune.kind, misfortune.amount
        if kind in _OF_THE_CLOUD + _OF_SOME_CLOUDS:
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
_OF_THE_CLOUD = ("lost_replies", "refusals", "failures", "duds", "denials")
_OF_SOME_CLOUDS = ("undead", "empty")
