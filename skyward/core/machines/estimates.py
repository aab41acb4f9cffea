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


_MAX_ESTIMATES = 1000
_kept: dict[tuple[Rented, int], float] = {}  # the latest of each kind and number of machines, in US dollars


def keep(rented: Rented, nodes: int, price: float) -> None:
    """Remember what that many machines are expected to cost in total.

    Parameters
    ----------
    rented, nodes
        The machines, and how many.
    price
        US dollars.
    """
    _kept.pop((rented, nodes), None)
    _kept[rented, nodes] = price
    for oldest in list(_kept)[:-_MAX_ESTIMATES]:
        _kept.pop(oldest, None)


def estimated(machines: Iterable[Rented], nodes: int) -> float | None:
    """What a pool that rented these machines was expected to cost; None if there is no estimate.

    Parameters
    ----------
    machines
        Those that it rented, including replacements. There are no estimates for several kinds.
    nodes
        How many nodes it wanted at once.
    """
    kinds = set(machines)
    return _kept.get((kinds.pop(), nodes)) if len(kinds) == 1 else None
