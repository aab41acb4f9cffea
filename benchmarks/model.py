"""Types that the other modules share: peers, workloads, places and sizes. Imports only the standard library.

A peer's own start is measured in an interpreter that imports this module, so it must stay cheap to import.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol

from benchmarks.meter import Lap, Meter

__all__ = ["EVERYWHERE", "Figures", "Opener", "Peer", "Place", "Scale", "Setting", "Size", "Stage", "Workload"]

Figures = dict[str, float]
"""What one run measured, by name."""

Place = Literal["local", "lab"]
"""Whether workers are processes of this machine, or of the lab's hosts, which are reached by a network."""

Scale = Literal["smoke", "usual", "full"]
"""Whether a run shows that all works, is one of `make bench`, or one of `make bench-full`."""

EVERYWHERE: frozenset[Place] = frozenset({"local", "lab"})


@dataclass(frozen=True)
class Size:
    """How large a workload is at some scale: its workers, and the arguments of its function."""

    nodes: int = 2
    slots: int = 2
    given: Mapping[str, int | float] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """What a peer is asked to open: so many nodes, with so many slots each.

    Attributes
    ----------
    delay
        Seconds one way to reach a node; only the lab's hosts can be far away.
    packages
        What tasks import, for peers that have to install it on their nodes.
    """

    nodes: int = 2
    slots: int = 2
    delay: float = 0.0
    packages: tuple[str, ...] = ()

    @property
    def workers(self) -> int:
        """Tasks at a time."""
        return self.nodes * self.slots


@dataclass
class Stage:
    """A peer that is open, as a workload sees it: joblib's `Parallel` uses it until it is closed.

    Attributes
    ----------
    n_jobs
        What `Parallel` is to be told to use all workers.
    kill_node
        Ends the processes of one node of several at once. None: the peer has no nodes.
    cut_power
        Ends the host of a node: nothing says so to anybody.
    replaces
        Whether the peer puts other processes in place of those that were killed.
    """

    setting: Setting
    n_jobs: int
    meter: Meter = field(default_factory=Meter)
    kill_node: Callable[[], None] | None = None
    cut_power: Callable[[], None] | None = None
    replaces: bool = False

    def timed(self) -> AbstractContextManager[Lap]:
        """Measure what happens in the block."""
        return self.meter.timed()


class Opener(Protocol):
    """Opens a peer for as long as the block lasts."""

    def __call__(self, setting: Setting) -> AbstractContextManager[Stage]:
        """Open it; it is closed at the end of the block, however that ends."""
        ...


@dataclass(frozen=True)
class Peer:
    """Somebody who runs joblib's batches, or a limit that is measured in the same way.

    Attributes
    ----------
    packages
        Distributions that must be installed.
    imports
        Modules that a user of it imports, its own first; their time is part of the start.
    skips
        Workloads that it can't do or that would take too long, with the reason that is printed.
    instead
        For a limit: the workloads that it bounds, with the function that measures this in their place.
    """

    name: str
    what: str
    open: Opener
    place: Place = "local"
    packages: tuple[str, ...] = ()
    imports: tuple[str, ...] = ("joblib",)
    skips: Mapping[str, str] = field(default_factory=dict)
    instead: Mapping[str, Callable[..., Figures]] | None = None
    only: frozenset[str] | None = None


@dataclass(frozen=True)
class Workload:
    """Something to do, whoever does it.

    Attributes
    ----------
    figure
        The name of the figure that counts; `higher` says which way is better.
    run
        Called with the stage, the number of the run, and what the size gives. Raises when results are wrong.
    fresh
        Each run has a process of its own, since a run changes the peer for good.
    opens
        The runner opens the peer; otherwise the function gets no stage but the peer's name, and opens it itself.
    limits
        The limit to compare with at each place; `ideal` where it is known without measuring.
    """

    name: str
    what: str
    figure: str
    run: Callable[..., Figures]
    sizes: Mapping[Scale, Size]
    higher: bool = True
    delay: float = 0.0
    places: frozenset[Place] = EVERYWHERE
    packages: tuple[str, ...] = ()
    fresh: bool = False
    opens: bool = True
    ideal: float | None = None
    limits: Mapping[Place, str] = field(default_factory=dict)
    patience: float = 120.0

    def setting(self, scale: Scale) -> Setting:
        """What a peer must open for it."""
        size = self.sizes[scale]
        return Setting(size.nodes, size.slots, self.delay, self.packages)

    def why_not(self, peer: Peer, scale: Scale) -> str | None:
        """Why this peer does not do it; None: it does."""
        if scale not in self.sizes:
            return f"not part of a {scale} run"
        if self.name in peer.skips:
            return peer.skips[self.name]
        if peer.place not in self.places:
            return f"not measured {'on hosts' if peer.place == 'lab' else 'on this machine'}"
        known = peer.only if peer.instead is None else peer.instead
        return None if known is None or self.name in known else "no limit of this workload"
