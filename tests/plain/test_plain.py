"""A driver and Local without what only Linux has: right results, and nothing left whoever is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Lab, eventually
from tests.lab.fixtures import LabHosts
from tests.plain import world
from tests.processes import alive
from tests.remote import index, wheels

__all__ = ["index", "wheels"]  # fixtures

pytestmark = pytest.mark.slow
plain = pytest.mark.skipif(world.missing() is not None, reason=str(world.missing()))


@plain
@pytest.mark.parametrize("program", ["arrays", "search", "limits", "kept", "managers"])
def test_programs_are_right(program: str, tmp_path: Path) -> None:
    assert world.run(tmp_path, program).endswith("right\n")


@plain
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_slot_that_dies_is_replaced(how: signal.Signals, tmp_path: Path) -> None:
    assert world.run(tmp_path, "deaths", str(int(how))).endswith("right\n")


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[list[int]]]]:
    """A driver, and the pids of each task on its two nodes: of its slot, its fork server, and a program it started."""
    driver = world.start(tmp_path, "busy", str(tmp_path))
    try:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "running\n"
        files = [tmp_path / str(number) for number in range(2)]
        eventually(lambda: all(file.exists() for file in files), 30)
        yield driver, [json.loads(file.read_text()) for file in files]
    finally:
        driver.kill()
        driver.communicate()


@plain
def test_nothing_is_left_of_a_driver_that_was_killed(
    busy: tuple[subprocess.Popen[str], list[list[int]]], tmp_path: Path
) -> None:
    """Which `unshare` has become."""
    driver, tasks = busy
    driver.kill()
    driver.wait()
    eventually(lambda: not any(alive(pid) for task in tasks for pid in task), 30, "all have ended")


@plain
@pytest.mark.parametrize("who", ["agent", "fork server"])
def test_slots_end_with_what_made_them(who: str, busy: tuple[subprocess.Popen[str], list[list[int]]]) -> None:
    """And the node's task runs again, on a new slot or node."""
    driver, ((slot, server, child), other) = busy
    victim = server if who == "fork server" else _parent(server)
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: not any(alive(pid) for pid in (slot, server, child)), 30, "they have ended")
    assert alive(other[0])
    assert driver.poll() is None


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@plain
@pytest.mark.lab
def test_hosts_run_what_such_a_driver_sends(lab: Lab, lab_hosts: LabHosts, index: str, tmp_path: Path) -> None:
    """As from a Mac to Linux hosts."""
    provider = {
        "hosts": [host.address for host in lab_hosts(2)],
        "user": "root",
        "key": str(lab.key),
        "known_hosts": str(lab.known_hosts),
    }
    assert world.run(tmp_path, "hosts", json.dumps({"provider": provider, "index": index})).endswith("right\n")
