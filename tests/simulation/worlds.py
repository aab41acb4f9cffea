"""What a seed stands for: a usual world, or one in which something comes together that few others would meet."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from tests.simulation.adversary import AMOUNTS
from tests.simulation.load import MAX_BYTES
from tests.simulation.scenario import Edit, Misfortune, Scenario, Wish
from tests.simulation.usual import LARGE, resuming, usual

__all__ = ["scenario"]


def scenario(seed: int) -> Scenario:
    """Draw a scenario."""
    return _worse(seed, usual(seed))


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
        amounts = AMOUNTS.get(kind, (1, 2))
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
            arrays=(*chance.sample(LARGE, chance.choice((0, 1, 2))), *(80_000 + 2 * one for one in range(8))),
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
    scenario = resuming(chance, replace(scenario, folder=(300_000,) * chance.choice((1, 4))))
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
