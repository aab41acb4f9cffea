"""Parses what vendors' tools print about a machine's GPUs, and applies the variables that restrict them. Pure."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from skyward.core.gpus import Gpu
from skyward.worker.gpu_shares import GpuError

__all__ = ["allowed", "amd_smi", "nvidia_files", "nvidia_smi", "rocm_smi"]

_MIB = 2**20
_MAX_BYTES = 2**50  # bytes that a GPU may claim to have
_GPU = re.compile(r"GPU \d+: (?P<name>.*) \(UUID: (?P<id>[\w-]+)\)")
_MIG = re.compile(r"\s+MIG (?P<name>\S+)\s+Device\s+\d+: \(UUID: (?P<id>[\w/-]+)\)")


def nvidia_smi(query: str, listing: str) -> list[Gpu]:
    """Read what nvidia-smi prints; MIG instances take the place of the GPU that was divided.

    Parameters
    ----------
    query
        Of ``--query-gpu=uuid,name,memory.total,memory.used,utilization.gpu --format=csv,noheader,nounits``.
    listing
        Of ``-L``.

    Raises
    ------
    GpuError
        It is something else.
    """
    parents = [_queried(line) for line in query.splitlines() if line.strip() and "No devices were found" not in line]
    instances: dict[str, list[Gpu]] = {}
    parent = ""
    for line in listing.splitlines():
        if match := _GPU.match(line):
            parent = match["id"]
        elif match := _MIG.match(line):
            name = next((gpu.name for gpu in parents if gpu.id == parent), "GPU")
            instances.setdefault(parent, []).append(Gpu(match["id"], f"{name} MIG {match['name']}"))
    return [gpu for each in parents for gpu in instances.get(each.id, [each])]


def _queried(line: str) -> Gpu:
    parts = [part.strip() for part in line.split(",")]
    id, *name, total, used, busy = parts if len(parts) > 4 else [""] * 4
    if not id.startswith("GPU-"):
        raise GpuError(f"nvidia-smi listed no GPU but said: {line.strip():.500}")
    return Gpu(id, ", ".join(name), _size(total, _MIB), _size(used, _MIB), _share(busy))


def _size(text: Any, unit: int) -> int | None:
    """An amount of memory; None where the tool says that it is unknown."""
    try:
        size = int(text) * unit
    except (TypeError, ValueError):
        return None
    return size if 0 <= size < _MAX_BYTES else None


def _share(text: str) -> float | None:
    """A percentage as a share; None where the tool says that it is unknown."""
    return int(text) / 100 if text.isdecimal() and int(text) <= 100 else None


def nvidia_files(minors: Sequence[int], informations: Sequence[str]) -> list[Gpu]:
    """Name the GPUs of a container that has their device files but not nvidia-smi.

    Parameters
    ----------
    minors
        Those of ``/dev/nvidia0`` and so on.
    informations
        What ``/proc/driver/nvidia/gpus/*/information`` say, perhaps of GPUs that the container does not have.
    """
    known: dict[int, Gpu] = {}
    for text in informations:
        fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
        minor, id = fields.get("Device Minor", ""), fields.get("GPU UUID", "")
        if minor.isdecimal() and id.startswith("GPU-") and "?" not in id:
            known[int(minor)] = Gpu(id, fields.get("Model", ""))
    # CUDA counts those it can open: mixing its numbers with names could mean one GPU twice.
    if all(minor in known for minor in minors):
        return [known[minor] for minor in sorted(minors)]
    return [Gpu(str(number)) for number in range(len(minors))]


def rocm_smi(text: str) -> list[Gpu]:
    """Read ``rocm-smi --showuniqueid --showproductname --showmeminfo vram --json``; `GpuError` if it is something else.

    ROCm knows a GPU by its unique id; a number stands for one that has none.
    """
    cards = _json("rocm-smi", text, dict)
    found: list[Gpu] = []
    for card in sorted((name for name in cards if re.fullmatch(r"card\d+", name)), key=lambda name: int(name[4:])):
        values = {str(key).lower(): value for key, value in cards[card].items()}
        unique = str(values.get("unique id", "")).lower().removeprefix("0x")
        name = str(values.get("card series") or values.get("card model") or "")
        memory, used = (values.get(f"vram total {kind}memory (b)") for kind in ("", "used "))
        id = f"GPU-{unique:0>16}" if re.fullmatch(r"[0-9a-f]{1,16}", unique) and int(unique, 16) else str(len(found))
        found.append(Gpu(id, name, _size(memory, 1), _size(used, 1)))
    return found


def amd_smi(listing: str, metrics: str) -> list[Gpu]:
    """Read what amd-smi prints; `GpuError` if it is something else.

    Parameters
    ----------
    listing
        Of ``list -e --json``.
    metrics
        Of ``metric --mem-usage --json``; what can't be parsed is unknown.
    """
    found = []
    usage = _usage(metrics)
    for number, each in enumerate(_json("amd-smi", listing, list)):
        uuid = str(each.get("hip_uuid", ""))
        id = uuid if re.fullmatch(r"GPU-[0-9a-f-]{16,}", uuid) else str(number)
        index = each.get("gpu")
        memory, used = usage.get(index if isinstance(index, int) else number, (None, None))
        found.append(Gpu(id, "AMD GPU", memory, used))
    return found


def _usage(text: str) -> dict[int, tuple[int | None, int | None]]:
    try:
        said = json.loads(text)
        each = said["gpu_data"] if isinstance(said, dict) else said
        return {
            item["gpu"]: (
                _size(item["mem_usage"]["total_vram"]["value"], _MIB),
                _size(item["mem_usage"]["used_vram"]["value"], _MIB),
            )
            for item in each
        }
    except (ValueError, KeyError, TypeError):
        return {}


def _json(program: str, text: str, kind: type) -> Any:
    first = text.find("{" if kind is dict else "[")  # rocm-smi may first warn of GPUs that sleep
    try:
        said = json.loads(text[max(first, 0) :])
    except ValueError:
        said = None
    items = said.values() if isinstance(said, dict) else said if isinstance(said, list) else [None]
    if not isinstance(said, kind) or not all(isinstance(item, dict) for item in items):
        raise GpuError(f"{program} listed no GPU but said: {text.strip():.500}")
    return said


# --- what the environment leaves ---


def allowed(maker: str, gpus: Sequence[Gpu], env: Mapping[str, str]) -> list[Gpu]:
    """The GPUs that a process with these environment variables sees, in the order in which it sees them.

    Parameters
    ----------
    maker
        ``"nvidia"`` or ``"amd"``.
    gpus
        What the machine has.
    env
        Environment variables.

    Raises
    ------
    GpuError
        MIG instances are named by their numbers, which count differently from one driver to another.
    """
    left = list(gpus)
    if maker == "nvidia":
        return left if (named := env.get("CUDA_VISIBLE_DEVICES")) is None else _named_by_cuda(left, named, env)
    if (named := env.get("ROCR_VISIBLE_DEVICES")) is not None:
        left = _picked(left, named)
    named = env.get("HIP_VISIBLE_DEVICES", env.get("CUDA_VISIBLE_DEVICES"))
    return left if named is None else _picked(left, named)


def _named_by_cuda(gpus: Sequence[Gpu], named: str, env: Mapping[str, str]) -> list[Gpu]:
    numbers = [word for word in _words(named) if word.isdecimal()]
    if numbers and any(gpu.id.startswith("MIG-") for gpu in gpus):
        raise GpuError(f"CUDA_VISIBLE_DEVICES={named}: name MIG instances by UUID, as `nvidia-smi -L` shows them")
    picked = _picked(gpus, named)
    # CUDA puts the fastest GPU first, nvidia-smi goes by their place on the bus: only the numbers themselves are safe.
    alike = len({(gpu.name, gpu.memory) for gpu in gpus}) <= 1 or env.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    if not numbers or alike:
        return picked
    valid = itertools.takewhile(lambda word: word.isdecimal() and int(word) < len(gpus), _words(named))
    return [Gpu(number) for number in dict.fromkeys(valid)]


def _words(named: str) -> list[str]:
    return [word.strip() for word in named.split(",")]


def _picked(gpus: Sequence[Gpu], named: str) -> list[Gpu]:
    """Those named by number, or by the beginning of their UUID; CUDA and HIP stop at the first invalid name."""
    picked: list[Gpu] = []
    for word in _words(named):
        found = [gpu for gpu in gpus if len(word) > 4 and gpu.id.lower().startswith(word.lower())]
        if word.isdecimal():
            found = list(gpus[int(word) : int(word) + 1])
        if len(found) != 1:
            break
        picked += [gpu for gpu in found if gpu not in picked]
    return picked
