"""GPUs as values: how many a slot needs, what a node has, and how both are described. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real

from skyward.core.errors import ConfigError

__all__ = ["Gpu", "describe", "described", "needed", "parse_gpus", "per_gpu"]

_MUCH = 0.1  # share of the memory; if no more is in use before the first task, that is not mentioned
_CLOSE = 2e-3  # relative error of a fraction as people write it: 0.333 counts as 1/3, 0.3 as no fraction


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, or a MIG instance of one.

    Attributes
    ----------
    id
        How environment variables such as ``CUDA_VISIBLE_DEVICES`` name it: a UUID if the driver reports one.
    name
        Its model; empty if the driver does not say.
    memory, used
        Its memory, and how much of that was in use when it was queried, in bytes; None if not known.
    busy
        Share of the driver's last sampling period (a sixth of a second or more) in which it was computing, from 0 to 1;
        None if not known.
    """

    id: str
    name: str = ""
    memory: int | None = None
    used: int | None = None
    busy: float | None = None


def parse_gpus(value: object) -> float:
    """Parse the number of GPUs of a slot: a whole number, or 1/n for n slots that share one GPU.

    Returns
    -------
    float
        An int from 1, or exactly ``1 / n``.

    Raises
    ------
    ConfigError
        `value` is neither.
    """
    count = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    if not 0 < count < math.inf:
        raise ConfigError(f"gpus={value!r} is not a number of GPUs; use 1 or more, or 1/n for n slots that share a GPU")
    if count >= 1:
        if count != int(count):
            raise ConfigError(f"gpus={value!r} is not a whole number; a slot can have several GPUs, or a part of one")
        return int(count)
    share = per_gpu(count)
    if not math.isclose(count * share, 1, rel_tol=_CLOSE):
        near = max(2, share)
        raise ConfigError(f"gpus={value!r} divides no GPU evenly; use, for example, 1/{near} for {near} slots on each")
    return 1 / share


def per_gpu(gpus: float) -> int:
    """How many slots share a GPU."""
    return max(1, round(1 / gpus))


def needed(gpus: float, slots: int) -> int:
    """How many GPUs a node needs for its slots. 0 slots count as one, as their number then follows from the GPUs."""
    slots = max(slots, 1)
    return math.ceil(slots / per_gpu(gpus)) if gpus < 1 else slots * int(gpus)


def described(gpus: Iterable[Gpu]) -> str:
    """Several GPUs in words, such as ``"4 x NVIDIA A100-SXM4-40GB, 40 GiB each"``, without their use."""
    kinds = Counter((gpu.name or "GPU of unknown model", gpu.memory) for gpu in gpus)
    return " and ".join(
        f"{count} x {name}" + (f", {_gib(memory)}{' each' if count > 1 else ''}" if memory else "")
        for (name, memory), count in kinds.items()
    )


def describe(nodes: Sequence[tuple[str, int, Sequence[Gpu]]], gpus: float) -> str:
    """Describe the GPUs of a pool's nodes in one line; identical nodes are grouped.

    Parameters
    ----------
    nodes
        Name, slots and GPUs of each node.
    gpus
        How many GPUs a slot has.
    """
    alike: dict[tuple[str, int], list[str]] = {}
    for name, slots, found in nodes:
        alike.setdefault((described(found) + _others_use(found), slots), []).append(name)
    share = f"{gpus} for each slot" if gpus >= 1 else f"one for {per_gpu(gpus)} slots"
    parts = []
    for (text, slots), names in alike.items():
        who = f"{names[0]}:" if len(names) == 1 else f"{len(names)} nodes with"
        parts.append(f"{who} {text}, {slots} slot{'s' if slots > 1 else ''}")
    return f"GPUs, {share}: {'; '.join(parts)}"


def _others_use(gpus: Sequence[Gpu]) -> str:
    """A note if other programs already use a good part of the memory; empty otherwise."""
    total, used = (sum(getattr(gpu, what) or 0 for gpu in gpus) for what in ("memory", "used"))
    return f" ({_gib(used)} of {_gib(total)} in use already)" if used > _MUCH * total else ""


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
