"""Worlds as most seeds stand for: a pool, its user's load, and what goes wrong; each draws from numbers of its own."""

from __future__ import annotations

import operator
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from skyward.core.gpus import per_gpu
from tests.simulation.adversary import AMOUNTS, OF_THE_CLOUD, USUAL
from tests.simulation.load import MAX_BYTES
from tests.simulation.scenario import Edit, Misfortune, Scenario, Wish

__all__ = ["LARGE", "resuming", "usual"]

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
LARGE = (1_000_000, 2_500_000, MAX_BYTES - 2, MAX_BYTES - 2)
"""Bytes of large arguments."""


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


def usual(seed: int) -> Scenario:
    """Draw what any seed may be."""
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
        return resuming(more, drawn)
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
        Misfortune(kind, at * chance.random(), chance.randrange(3), chance.choice(AMOUNTS[kind])) for kind in kinds
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


def resuming(chance: random.Random, scenario: Scenario) -> Scenario:
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
    large = LARGE if chance.random() < size.large else ()
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
        kind = chance.choice((*USUAL, "cut", "agent_freezes"))
        amount = chance.choice(AMOUNTS[kind])
        drawn.append(Misfortune(kind, chance.uniform(0.0, 15.0), chance.randrange(3), amount))
    for _ in range(chance.choice((0, 0, 0, 1, 3))):
        at = chance.choice((0.0, 0.0, chance.uniform(0.0, 15.0)))
        drawn.append(Misfortune(chance.choice(OF_THE_CLOUD), at, 0, chance.choice((1, 1, 3))))
    return tuple(sorted(drawn, key=operator.attrgetter("at")))
