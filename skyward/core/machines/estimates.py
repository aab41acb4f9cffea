"""What `sky.explain` has said that machines will cost, kept for the pool that rents such machines."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["Rented", "estimated", "keep"]


class Rented(NamedTuple):
    """A machine type: its provider, name, and whether it may be preempted."""

    provider: str
    machine: str
    spot: bool


_MOST = 1000
_kept: dict[tuple[Rented, int], float] = {}  # the latest of each kind and number of machines, in US dollars


def keep(rented: Rented, nodes: int, price: float) -> None:
    """Remember what so many machines are expected to cost in all.

    Parameters
    ----------
    rented, nodes
        The machines.
    price
        US dollars.
    """
    _kept.pop((rented, nodes), None)
    _kept[rented, nodes] = price
    for oldest in list(_kept)[:-_MOST]:
        _kept.pop(oldest, None)


def estimated(machines: Iterable[Rented], nodes: int) -> float | None:
    """What a pool of so many nodes was expected to cost that rented these machines; None if nobody asked.

    Parameters
    ----------
    machines
        Those that it rented, replacements among them. If they are of several kinds, nobody asked for that.
    nodes
        How many it wanted at a time.
    """
    kinds = set(machines)
    return _kept.get((kinds.pop(), nodes)) if len(kinds) == 1 else None
