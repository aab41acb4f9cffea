"""The GPUs of a machine: who uses which, and what asking for them tells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from skyward.core.gpus import Gpu
from skyward.worker.gpu_search import FoundGpus
from skyward.worker.gpu_shares import GpuError
from tests.simulation.world import World

__all__ = ["Cards", "LostCard"]


class LostCard(Exception):
    """What a task raises whose GPU is gone."""


class Cards:
    """GPUs of one machine.

    Parameters
    ----------
    world
        Where it is.
    count
        How many there are.
    most
        How many slots may share one.
    """

    def __init__(self, world: World, count: int, most: int) -> None:
        self.fails = 0
        """How many more times they can't be asked."""
        self.lost: set[str] = set()
        self._world = world
        self._ids = [f"GPU-{number}" for number in range(count)]
        self._most = most
        self._users: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<Cards {dict(self._users)}>"

    def find(self) -> FoundGpus:
        """What `AgentSystem.find_gpus` wants to know."""
        if self.fails > 0:
            self.fails -= 1
            raise self._world.random.choice((GpuError, OSError))("simulated: nvidia-smi does not answer")
        left = tuple(Gpu(id, "Simulated", 1 << 34, 0, 0.5) for id in self._ids if id not in self.lost)
        return FoundGpus("nvidia" if left else "", left, "simulated: some are lost" if self.lost else "")

    def used(self, ids: Iterable[str]) -> None:
        """Take note that a process sees these from now on."""
        for id in ids:
            self._users[id] += 1
            if self._users[id] > self._most:
                self._world.broken.append(f"{self._users[id]} slots have {id}")

    def free(self, ids: Iterable[str]) -> None:
        """Take note that a process has ended."""
        self._users.subtract(ids)

    def ask(self, ids: Iterable[str]) -> None:
        """Compute something on them; LostCard if one is gone."""
        if lost := self.lost.intersection(ids):
            raise LostCard(*sorted(lost))
