"""Reduces runs to what tables and plots show. Pure: values in, values out."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.model import Figures, Place

__all__ = ["Comparison", "Spread", "compare", "spread", "text"]


@dataclass(frozen=True)
class Spread:
    """The median of some runs, the least and the most."""

    median: float
    least: float
    most: float
    runs: int

    def __str__(self) -> str:
        if self.runs == 1:
            return text(self.median)
        return f"{text(self.median)} ({text(self.least)}–{text(self.most)})"  # noqa: RUF001 - a range has such a dash


@dataclass(frozen=True)
class Comparison:
    """One peer at one workload. A ratio over 1 is better than the one it is compared with, whichever way is better.

    Attributes
    ----------
    place
        Whose limit it is compared with.
    to_best
        Compared with the best other that is neither ours nor a limit.
    """

    peer: str
    place: Place
    value: Spread
    to_loky: float | None = None
    to_best: float | None = None
    to_limit: float | None = None


def spread(values: Iterable[float]) -> Spread:
    """Median and range of at least one value."""
    known = sorted(values)
    return Spread(statistics.median(known), known[0], known[-1], len(known))


def text(value: float) -> str:
    """Three digits that count; all digits before the point."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}" if abs(value) >= 1e-3 else f"{value:.1e}"


def ratio(mine: float, other: float, *, higher: bool) -> float | None:
    """How many times better; None where that means nothing, as with a loss of no seconds."""
    if mine <= 0 or other <= 0:
        return None
    return mine / other if higher else other / mine


def compare(
    runs: Mapping[str, Sequence[Figures]],
    figure: str,
    places: Mapping[str, Place],
    *,
    higher: bool,
    limits: Mapping[Place, str],
    bounds: frozenset[str],
    ours: frozenset[str] = frozenset(),
    ideal: float | None = None,
) -> list[Comparison]:
    """Compare the medians of all who have at least one run.

    Parameters
    ----------
    runs
        By peer, in the order of the table.
    places
        Where each peer's workers are.
    limits
        The name of what bounds those at each place.
    bounds
        The names of all that are limits; they are compared with nobody but loky.
    ours
        The names that are no rivals of each other.
    ideal
        The limit where it is known.
    """
    values = {peer: spread(run[figure] for run in done) for peer, done in runs.items() if done}

    def against(peer: str, other: float | None) -> float | None:
        return None if other is None else ratio(values[peer].median, other, higher=higher)

    def limit_of(peer: str) -> float | None:
        name = limits.get(places[peer])
        return values[name].median if name in values and name != peer else ideal

    def best_other(peer: str) -> float | None:
        others = [value.median for name, value in values.items() if name not in bounds | ours | {peer}]
        return (max if higher else min)(others, default=None)

    return [
        Comparison(
            peer,
            places[peer],
            value,
            against(peer, values["loky"].median if "loky" in values and peer != "loky" else None),
            None if peer in bounds else against(peer, best_other(peer)),
            None if peer in bounds else against(peer, limit_of(peer)),
        )
        for peer, value in values.items()
    ]
