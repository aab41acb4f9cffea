"""The state of a pool at one moment, as values."""

from __future__ import annotations

from dataclasses import dataclass

from skyward.core.gpus import Gpu

__all__ = ["NodeStatus", "PoolStatus"]


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A node that is ready.

    Attributes
    ----------
    name
        Its name.
    slots
        How many tasks it runs at a time.
    gpus
        The GPUs of its slots, with the memory in use now; none unless the pool was opened with ``Worker(gpus=...)``.
    problem
        Why the GPUs' use is not known, in words; empty if it is.
    """

    name: str
    slots: int
    gpus: tuple[Gpu, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """A pool that is open.

    Attributes
    ----------
    name
        Unique name of the pool.
    nodes
        The nodes that are ready, in the order of their numbers.
    """

    name: str
    nodes: tuple[NodeStatus, ...]

    @property
    def slots(self) -> int:
        """How many tasks the pool runs at a time."""
        return sum(node.slots for node in self.nodes)
