"""Finds a machine's GPUs by running the vendors' tools, with a time limit, since a broken driver may hang them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from skyward.core.gpus import Gpu
from skyward.worker import gpu_listing
from skyward.worker.gpu_shares import GpuError

__all__ = ["FoundGpus", "find"]

_LIMIT = 30.0  # seconds; a driver that has to be initialised first takes up to ten on a machine with eight GPUs
_PLACES = ("/usr/bin", "/usr/local/nvidia/bin", "/usr/lib/wsl/lib", "/opt/rocm/bin")  # beyond PATH
_FIELDS = "uuid,name,memory.total,memory.used,utilization.gpu"


@dataclass(frozen=True, slots=True)
class FoundGpus:
    """What a machine has.

    Attributes
    ----------
    maker
        ``"nvidia"`` or ``"amd"``; empty if it has no GPU.
    gpus
        Those that the environment allows.
    remark
        Why there are none, or not all.
    """

    maker: str = ""
    gpus: tuple[Gpu, ...] = ()
    remark: str = ""


def find(env: Mapping[str, str], limit: float = _LIMIT, root: str = "/") -> FoundGpus:
    """Find the GPUs that processes with these environment variables may use. Blocks, perhaps until the limit.

    NVIDIA's come first: AMD's are looked for only where there are none.

    Parameters
    ----------
    env
        Environment variables, which may restrict the GPUs, and whose PATH leads to the programs.
    limit
        Seconds that a program may take.
    root
        The machine's file system.

    Raises
    ------
    GpuError
        A program fails, hangs or prints something else, and no other found any GPU.
    """
    problem: GpuError | None = None
    for maker, ask in (("nvidia", _nvidia), ("amd", _amd)):
        try:
            gpus = ask(env, limit, Path(root))
            if gpus:
                left = tuple(gpu_listing.allowed(maker, gpus, env))
                return FoundGpus(maker, left, "" if len(left) == len(gpus) else _restricted(env, len(gpus)))
        except GpuError as error:
            problem = problem or error
    if problem is not None:
        raise problem
    return FoundGpus(remark=_why_none(env, Path(root)))


def _nvidia(env: Mapping[str, str], limit: float, root: Path) -> list[Gpu]:
    program = _program("nvidia-smi", env, root)
    if program is not None:
        query = [program, f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"]
        return gpu_listing.nvidia_smi(*_ask([query, [program, "-L"]], env, limit))
    names = [path.name for path in (root / "dev").glob("nvidia[0-9]*")]
    minors = [int(match[1]) for name in names if (match := re.fullmatch(r"nvidia(\d+)", name))]
    files = (root / "proc/driver/nvidia/gpus").glob("*/information")
    return gpu_listing.nvidia_files(sorted(minors), [path.read_text(errors="replace") for path in files])


def _amd(env: Mapping[str, str], limit: float, root: Path) -> list[Gpu]:
    if (program := _program("rocm-smi", env, root)) is not None:
        command = [program, "--showuniqueid", "--showproductname", "--showmeminfo", "vram", "--json"]
        (text,) = _ask([command], env, limit)
        return gpu_listing.rocm_smi(text) if text.strip() else []
    if (program := _program("amd-smi", env, root)) is not None:
        commands = [[program, "list", "-e", "--json"], [program, "metric", "--mem-usage", "--json"]]
        return gpu_listing.amd_smi(*_ask(commands, env, limit))
    return []


def _program(name: str, env: Mapping[str, str], root: Path) -> str | None:
    beyond = [str(root / place.lstrip("/")) for place in _PLACES]
    return shutil.which(name, path=os.pathsep.join([env.get("PATH", os.defpath), *beyond]))


def _ask(commands: Sequence[Sequence[str]], env: Mapping[str, str], limit: float) -> list[str]:
    """Run commands side by side, and return what each has printed."""
    deadline = time.monotonic() + limit
    begun: list[subprocess.Popen[str]] = []
    try:
        for command in commands:
            begun.append(_begin(command, env))
        return [_answer(process, command, deadline, limit) for process, command in zip(begun, commands, strict=True)]
    finally:
        for process in begun:
            _end(process)


def _begin(command: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            command,
            env={**env, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # to be killed with what it has started
        )
    except OSError as error:
        raise GpuError(f"{command[0]} can't be started: {error}") from error


def _answer(process: subprocess.Popen[str], command: Sequence[str], deadline: float, limit: float) -> str:
    name = Path(command[0]).name
    try:
        out, errors = process.communicate(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        advice = "the GPU's driver probably hangs; try it there by hand, and restart the machine if it hangs as well"
        raise GpuError(f"{name} did not answer within {limit:g} s: {advice}") from None
    if process.returncode:
        said = " ".join((out + errors).split())[-500:] or "nothing"
        raise GpuError(f"{name} failed with status {process.returncode}, so the driver can't be used; it said: {said}")
    return out


def _end(process: subprocess.Popen[str]) -> None:
    """Kill what still runs, without waiting: a process that hangs in the kernel does not end when it is killed."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _restricted(env: Mapping[str, str], count: int) -> str:
    names = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
    set_ = ", ".join(f"{name}={env[name]}" for name in names if name in env)
    return f"of {count} on the machine, by {set_}"


def _why_none(env: Mapping[str, str], root: Path) -> str:
    for device in (root / "sys/bus/pci/devices").glob("*"):
        with contextlib.suppress(OSError):
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
            maker = {"0x10de": "NVIDIA", "0x1002": "AMD"}.get(vendor)
            if maker and kind.startswith(("0x0300", "0x0302", "0x0380", "0x1200")):
                return f"{device.name} is a GPU by {maker}, but its driver's programs are missing: install the driver"
    smi = _program("nvidia-smi", env, root) or _program("rocm-smi", env, root) or _program("amd-smi", env, root)
    if smi is not None:
        return f"{smi} lists none"
    return "there is neither nvidia-smi, rocm-smi or amd-smi nor /dev/nvidia0"
