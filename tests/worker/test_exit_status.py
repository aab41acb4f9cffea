"""How the end of a process is described."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from skyward.worker import exit_status
from skyward.worker.exit_status import OutOfMemory, describe
from skyward.worker.forkserver.protocol import HUNG


@pytest.mark.parametrize(
    ("status", "description"),
    [
        (0, "exit status 0"),
        (3 << 8, "exit status 3"),
        (signal.SIGSEGV | 0x80, "killed by SIGSEGV"),
        (signal.SIGKILL, "killed by SIGKILL (out of memory?)"),
        (62, "killed by signal 62"),
        (HUNG, "lost with the process that it was forked from, which did not answer"),
    ],
)
def test_a_wait_status(status: int, description: str) -> None:
    assert describe(status, OutOfMemory()) == description


def test_running_out_of_memory_is_detected_where_the_kernel_counts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = tmp_path / "memory.events"
    events.write_text("low 0\noom 5\noom_kill 1\n")
    monkeypatch.setattr(exit_status, "_cgroup_files", lambda: [str(events), str(tmp_path / "missing")])
    memory = OutOfMemory()
    assert describe(signal.SIGKILL, memory) == "killed by SIGKILL (out of memory?)"
    events.write_text("low 0\noom 5\noom_kill 2\n")
    assert describe(signal.SIGKILL, memory) == "killed by SIGKILL (out of memory)"
    assert describe(signal.SIGKILL, memory) == "killed by SIGKILL (out of memory?)"
