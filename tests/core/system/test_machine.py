from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from skyward.core.system import machine


def test_cores_are_those_that_the_process_may_use() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
    code += "from skyward.core.system import machine; print(*machine.cores(), machine.core_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(min(os.sched_getaffinity(0))), "1"]


def test_all_cores_count_where_the_system_can_t_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert list(machine.cores()) == list(range(os.cpu_count() or 1))


def test_memory_is_the_machine_s() -> None:
    total = Path("/proc/meminfo").read_text(encoding="ascii").split()[1]
    assert machine.memory() == int(total) * 1024
