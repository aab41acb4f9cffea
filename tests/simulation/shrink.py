"""Reduces a scenario that fails: fewer tasks, fewer misfortunes, plainer values, as long as it fails in the same way.

A scenario with less in it draws other numbers while it runs, and so meets other orders of events: each is tried with
some seeds, and the one that fails is kept.
"""

from __future__ import annotations

import re
from dataclasses import fields, replace
from typing import Any

from tests.simulation.run import Outcome, simulate, story_of
from tests.simulation.scenario import Scenario

__all__ = ["kind_of", "reduced_story", "shrunk"]

_SEEDS = 6
_RUNS = 1_500
_GIVEN = ("seed", "wishes", "misfortunes", "edits")


def kind_of(outcome: Outcome) -> str:
    """What was found broken first, without the numbers and addresses that differ from run to run."""
    return re.sub(r"0x[0-9a-f]+|\d[\d.,]*", "#", outcome.broken[0]) if outcome.broken else ""


def shrunk(outcome: Outcome, runs: int = _RUNS) -> Outcome:
    """Reduce the scenario of a run that failed.

    Parameters
    ----------
    outcome
        What came of it.
    runs
        How many runs this may take.

    Returns
    -------
    Outcome
        That of the smallest scenario that was found to fail in the same way.
    """
    reduction = _Reduction(outcome, runs)
    before = None
    while before is not reduction.best and reduction.runs > 0:
        before = reduction.best
        for name in ("misfortunes", "edits", "wishes"):
            reduction.drop(name)
            reduction.simplify(name)
        reduction.simplify_shape()
    return reduction.best


def reduced_story(outcome: Outcome, runs: int = _RUNS) -> str:
    """What happens in the reduced scenario of a run that failed, and what to keep of it; see `shrunk`."""
    least = shrunk(outcome, runs)
    keep = "to keep it, name a file in tests/simulation/kept for what it shows, with this in it:"
    return "\n".join([f"reduced from seed {outcome.scenario.seed}", story_of(least), keep, least.scenario.text()])


class _Reduction:
    def __init__(self, outcome: Outcome, runs: int) -> None:
        self.best, self.runs, self._kind = outcome, runs, kind_of(outcome)

    def _fails(self, name: str, value: Any) -> bool:
        """Whether with another value it fails in the same way, with this seed or a later one; then that is the best."""
        change: dict[str, Any] = {name: value}
        scenario = replace(self.best.scenario, **change)
        for seed in range(scenario.seed, scenario.seed + _SEEDS):
            if self.runs <= 0 or not scenario.is_fair:
                return False
            self.runs -= 1
            outcome = simulate(replace(scenario, seed=seed))
            if kind_of(outcome) == self._kind:
                self.best = outcome
                return True
        return False

    def _items(self, name: str) -> tuple[Any, ...]:
        items: tuple[Any, ...] = getattr(self.best.scenario, name)
        return items

    def drop(self, name: str) -> None:
        """Leave out halves, quarters, and so on down to single ones."""
        size = len(self._items(name))
        while size:
            start = 0
            while start < len(items := self._items(name)):
                if not self._fails(name, items[:start] + items[start + size :]):
                    start += size
            size //= 2

    def simplify(self, name: str) -> None:
        """Let each item have as much as possible as usual."""
        for index, item in enumerate(self._items(name)):
            for field, value in [*item._field_defaults.items(), ("at", round(item.at, 1))]:
                items = self._items(name)
                if getattr(items[index], field) not in (value, item._field_defaults[field]):
                    self._fails(name, (*items[:index], items[index]._replace(**{field: value}), *items[index + 1 :]))

    def simplify_shape(self) -> None:
        """Let the pool be small and near."""
        few = self.best.scenario.nodes[0]
        plain = [(field.name, field.default) for field in fields(Scenario) if field.name not in _GIVEN]
        for name, value in [*plain, ("nodes", (few, few)), ("slots", 2)]:
            if getattr(self.best.scenario, name) not in (value, getattr(Scenario, name)):
                self._fails(name, value)
