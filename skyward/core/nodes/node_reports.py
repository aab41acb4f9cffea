"""What nodes report about their machines, as values whose texts are safe to display. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from skyward.core.events import NodeLoad
from skyward.core.gpus import Gpu
from skyward.core.protocol.messages import Load
from skyward.core.visible import shown

__all__ = ["gpus", "load", "machine"]


def machine(facts: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Read how many cores and how much memory a node has, from the facts of its greeting."""
    cores, memory = (facts.get(name) for name in ("cores", "memory"))
    return cores if type(cores) is int and cores > 0 else None, memory if type(memory) is int else None


def gpus(found: Sequence[Sequence[Any]]) -> tuple[Gpu, ...]:
    """Read a list of GPUs, as in `Gpus`."""
    return tuple(Gpu(shown(id, lines=False), shown(name, lines=False), *figures) for id, name, *figures in found)


def load(node: str, message: Load) -> NodeLoad:
    """Read a node's report of its load."""
    figures = message.cpu, message.cores, message.memory_used, message.memory_total, message.disk_free
    return NodeLoad(node, *figures, gpus(message.gpus), shown(message.problem, lines=False))
