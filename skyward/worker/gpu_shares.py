"""Which slot has which GPUs. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from skyward.core.gpus import Gpu, described, needed, per_gpu

__all__ = ["GpuError", "share_out", "variables"]


class GpuError(ValueError):
    """GPUs that are missing, can't be asked, or can't be shared as wanted; the text says which and what to do."""


def share_out(gpus: Sequence[Gpu], each: float, concurrency: int, part: tuple[int, int] = (0, 1)) -> list[list[Gpu]]:
    """Divide a machine's GPUs among slots: the first entry is that of slot 1, and so on.

    GPUs that slots share are filled evenly, so slots share one only when there are more slots than GPUs.

    Parameters
    ----------
    gpus
        Those of the machine that may be used.
    each
        How many GPUs a slot has, or 1/n, see `parse_gpus`.
    concurrency
        Number of slots; 0 for as many as there are GPUs for.
    part
        Number, from 0, and count of the pool's nodes on this machine, among which its GPUs are divided.

    Raises
    ------
    GpuError
        There are too few, or MIG instances that a process could not use together.
    """
    if each > 1 and any(gpu.id.startswith("MIG-") for gpu in gpus):
        raise GpuError(f"Worker(gpus={each:g}): a process can use only one MIG instance; use Worker(gpus=1)")
    number, nodes = part
    shares = _all(gpus, each)[number::nodes]
    if len(shares) < max(concurrency, 1):
        raise GpuError(_too_few(gpus, each, concurrency, nodes, len(shares)))
    return shares[: concurrency or None]


def _all(gpus: Sequence[Gpu], each: float) -> list[list[Gpu]]:
    if each < 1:
        return [[gpu] for _ in range(per_gpu(each)) for gpu in gpus]
    size = int(each)
    return [list(gpus[first : first + size]) for first in range(0, len(gpus) - size + 1, size)]


def _too_few(gpus: Sequence[Gpu], each: float, concurrency: int, nodes: int, fit: int) -> str:
    share = f"{each:g}" if each >= 1 else f"1/{per_gpu(each)}"
    slots = f", concurrency={concurrency}" if concurrency else ""
    wanted = needed(each, concurrency)
    several = f" for each of the {nodes} nodes on this machine" if nodes > 1 else ""
    has = described(gpus) or "none"
    instead = f"; use concurrency={fit}, or leave it out" if concurrency and fit else ""
    return f"Worker(gpus={share}{slots}) needs {wanted} GPU{'s' if wanted > 1 else ''}{several}; found: {has}{instead}"


def variables(maker: str, share: Sequence[Gpu]) -> dict[str, str | None]:
    """The environment variables by which a process sees only these GPUs; None for one that must not be set.

    Parameters
    ----------
    maker
        ``"nvidia"`` or ``"amd"``.
    share
        The GPUs.
    """
    names = ",".join(gpu.id for gpu in share)
    if maker == "nvidia":
        return {"CUDA_VISIBLE_DEVICES": names}
    # HIP counts those that ROCR leaves it, and takes CUDA's variable for another name of its own.
    return {
        "ROCR_VISIBLE_DEVICES": names,
        "HIP_VISIBLE_DEVICES": ",".join(map(str, range(len(share)))),
        "CUDA_VISIBLE_DEVICES": None,
    }
