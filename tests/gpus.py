"""Stand-ins for the makers' programs, for machines that have no GPU."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["A100", "T4", "plant", "rocm_script", "script", "uuid"]

A100, T4 = "NVIDIA A100-SXM4-40GB", "Tesla T4"


def uuid(number: int) -> str:
    """The UUID of a GPU that is not there."""
    return f"GPU-{number:08x}-0000-4000-8000-000000000000"


def script(names: list[str], used: int = 3, migs: dict[int, list[str]] | None = None) -> str:
    """An ``nvidia-smi`` that lists these models; memory is 40 GiB each, and `migs` are the profiles of some."""
    query = "".join(f"{uuid(number)}, {name}, 40960, {used}, 50\n" for number, name in enumerate(names))
    listing = ""
    for number, name in enumerate(names):
        listing += f"GPU {number}: {name} (UUID: {uuid(number)})\n"
        for index, profile in enumerate((migs or {}).get(number, [])):
            listing += f"  MIG {profile}     Device  {index}: (UUID: MIG-{uuid(16 * number + index)[4:]})\n"
    return f"#!/bin/sh\ncase $1 in\n-L) cat <<'END'\n{listing}END\n;;\n*) cat <<'END'\n{query}END\n;;\nesac\n"


def plant(folder: Path, text: str, name: str = "nvidia-smi") -> Path:
    """Put a program there, for PATH, in place of one that may be running and so can't be written to."""
    folder.mkdir(exist_ok=True)
    written = folder / f"{name}.new"
    written.write_text(text)
    written.chmod(0o755)
    return written.rename(folder / name)


def rocm_script(count: int) -> str:
    """A ``rocm-smi`` that lists some GPUs, the second of which has no unique id."""
    cards = {
        f"card{number}": {
            "Unique ID": "N/A" if number == 1 else f"0x{number + 0xABC000:x}",
            "Card Series": "AMD Instinct MI300X",
            "VRAM Total Memory (B)": str(192 * 2**30),
            "VRAM Total Used Memory (B)": str(2**30),
        }
        for number in range(count)
    }
    return f"#!/bin/sh\necho WARNING: GPUs sleep\ncat <<'END'\n{json.dumps({**cards, 'system': {}})}\nEND\n"
