"""What a slot keeps from task to task."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.worker.helpers import owner


def held() -> int:
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE") >> 20


def leave_a_cycle(seconds: float = 0.06) -> tuple[int, int]:
    """Make thirty megabytes of garbage that only a collection of cycles finds."""
    part: dict[str, Any] = {"data": b"x" * (30 << 20)}
    part["part"] = part
    time.sleep(seconds)
    return os.getpid(), held()


def leave_for_good(folder: str) -> tuple[int, int]:
    import atexit

    if not hasattr(os, "left"):
        os.left = []  # type: ignore[attr-defined]
        atexit.register(Path(folder, str(os.getpid())).touch)
    os.left.append(b"x" * (60 << 20))  # type: ignore[attr-defined]
    time.sleep(0.06)
    return os.getpid(), held()


@pytest.mark.slow
@pytest.mark.parametrize("isolated", [True, False])
def test_cycles_are_collected_between_tasks(isolated: bool) -> None:
    with owner() as node:
        node.set_up(concurrency=1, isolated=isolated)
        node.isolated = isolated
        seen = [node.result(task) for task in [node.submit(leave_a_cycle) for _ in range(12)]]
        assert len({pid for pid, _ in seen}) == 1
        assert max(size for _, size in seen) < 300  # of 390


@pytest.mark.slow
def test_a_slot_that_keeps_growing_is_replaced(tmp_path: Path) -> None:
    with owner() as node:
        node.set_up(concurrency=1)
        seen = [node.result(task) for task in [node.submit(leave_for_good, str(tmp_path)) for _ in range(9)]]
        assert len({pid for pid, _ in seen}) == 2
        assert (tmp_path / str(seen[0][0])).exists()  # it has ended in order


@pytest.mark.slow
def test_what_the_first_task_loads_may_stay() -> None:
    def use_a_model() -> tuple[int, int]:
        if not hasattr(os, "model"):
            os.model = b"x" * (350 << 20)  # type: ignore[attr-defined]
        return leave_a_cycle()

    with owner() as node:
        node.set_up(concurrency=1)
        seen = [node.result(task) for task in [node.submit(use_a_model) for _ in range(7)]]
        assert len({pid for pid, _ in seen}) == 1
