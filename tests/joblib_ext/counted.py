"""Cached functions that count how often they run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from joblib import Memory
from joblib.memory import MemorizedFunc


class Counted:
    """How often the functions of one test have run, on any node of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "ran"
        self.log.touch()
        self.memory = Memory(str(folder / "cache"), verbose=0)

    @property
    def ran(self) -> list[str]:
        return self.log.read_text(encoding="utf-8").split()

    def square(self, memory: Memory | None = None, **options: Any) -> MemorizedFunc:
        log = str(self.log)

        def square(x: Any, label: str = "square") -> Any:
            with open(log, "a", encoding="utf-8") as file:  # noqa: PTH123
                file.write(f"{label}\n")
            return x * x

        return (memory or self.memory).cache(square, **options)


def wait_for(path: Path) -> None:
    """In a task: until the test makes a file."""
    import time

    while not path.exists():
        time.sleep(0.002)


class Model:
    """With a method that is cached the way joblib documents."""

    def __init__(self, memory: Memory, factor: int) -> None:
        self.factor = factor
        self.times = memory.cache(self.times_)

    def times_(self, x: int) -> int:
        return self.factor * x
