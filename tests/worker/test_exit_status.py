"""How the end of a process is described, and when memory is blamed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import skyward as sky
from skyward.worker.exit_status import Kill, OutOfMemory, describe
from skyward.worker.forkserver.protocol import HUNG
from tests.lab.fixtures import FreshHost
from tests.remote import Reach, index, reach, wheels

__all__ = ["index", "reach", "wheels"]  # fixtures

GB = 1_000_000_000
REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("status", "description"),
    [
        (0, "exit status 0"),
        (3 << 8, "exit status 3"),
        (signal.SIGSEGV | 0x80, "killed by SIGSEGV"),
        (62, "killed by signal 62"),
        (HUNG, "lost with the process that it was forked from, which did not answer"),
    ],
)
def test_a_wait_status(status: int, description: str) -> None:
    for kill in ("no", "ours", "unknown"):
        assert describe(status, kill) == description  # type: ignore[arg-type]


MORE = "use machines with more memory (memory=...)"


@pytest.mark.parametrize(
    ("kill", "slots", "description"),
    [
        ("ours", 1, f"killed by the kernel because memory ran out: it used 7.2 GB of 8.0 GB; {MORE}"),
        (
            "ours", 4, "killed by the kernel because memory ran out: it used 7.2 GB of 8.0 GB; have fewer slots than 4 "
            f"on a node (Worker(concurrency=...)), or {MORE}",
        ),
        ("no", 4, "killed by SIGKILL, and the kernel has counted no kill for memory: it used 7.2 GB of 8.0 GB"),
        (
            "somebody's", 1, "killed by SIGKILL, when memory ran out and the kernel killed a process of that machine: "
            f"it used 7.2 GB of 8.0 GB; if it was that, {MORE}",
        ),
        (
            "unknown", 1, "killed by SIGKILL, perhaps because memory ran out: it used 7.2 GB of 8.0 GB; "
            f"if it was that, {MORE}",
        ),
    ],
)  # fmt: skip
def test_a_kill(kill: Kill, slots: int, description: str) -> None:
    assert describe(signal.SIGKILL, kill, 7_200_000_000, 8 * GB, slots) == description


def test_a_kill_of_which_less_is_known() -> None:
    by_kernel = "killed by the kernel because memory ran out"
    assert describe(signal.SIGKILL, "ours", 300_000_000) == f"{by_kernel}: it used 300 MB; {MORE}"
    assert describe(signal.SIGKILL, "ours") == f"{by_kernel}; {MORE}"
    assert describe(signal.SIGKILL, "no") == "killed by SIGKILL, and the kernel has counted no kill for memory"


class Kernel:
    """The files of a machine."""

    def __init__(self, folder: Path, cgroup: str) -> None:
        self.proc, self.cgroups = folder / "proc", folder / "cgroup"
        self.write(self.proc / "self/cgroup", cgroup)
        self.write(self.proc / "meminfo", "MemFree: 5 kB\nMemTotal:       16000000 kB\n")
        self.write(self.proc / "vmstat", "oom_kill 1\n")

    def write(self, file: Path, text: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    @property
    def memory(self) -> OutOfMemory:
        return OutOfMemory(self.proc, self.cgroups)


def test_cgroups_of_version_2(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, "0::/user.slice/session\n")
    events = kernel.cgroups / "user.slice/session/memory.events"
    kernel.write(events, "low 0\noom 5\noom_kill 1\n")
    kernel.write(kernel.cgroups / "user.slice/session/memory.max", "max\n")
    memory = kernel.memory
    assert memory.look() == "no"
    assert memory.limit() == 16_000_000 * 1024
    kernel.write(kernel.cgroups / "user.slice/memory.max", "1000000\n")
    assert memory.limit() == 1_000_000
    kernel.write(kernel.proc / "vmstat", "oom_kill 2\n")  # somebody else's
    assert memory.look() == "no"
    events.write_text("low 0\noom 5\noom_kill 2\n")
    assert memory.look() == "ours"
    assert memory.look() == "no"


@pytest.mark.parametrize("folder", ["docker/7", "."], ids=["host", "container"])
def test_cgroups_of_version_1(tmp_path: Path, folder: str) -> None:
    """In a container the path is the host's, and the cgroup is at the root."""
    kernel = Kernel(tmp_path, "5:cpu:/\n4:memory:/docker/7\n0::/\n")
    control = kernel.cgroups / "memory" / folder / "memory.oom_control"
    kernel.write(control, "oom_kill_disable 0\noom_kill 3\n")
    kernel.write(control.with_name("memory.limit_in_bytes"), "5000\n")
    memory = kernel.memory
    control.write_text("oom_kill 4\n")
    assert memory.look() == "ours"
    assert memory.limit() == 5000


def test_without_cgroups_it_is_not_known_whose_process_it_was(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, "0::/\n")
    memory = kernel.memory
    kernel.write(kernel.proc / "vmstat", "oom_kill 2\n")
    assert memory.look() == "somebody's"
    (kernel.proc / "vmstat").unlink()
    assert memory.look() == "unknown"
    (kernel.proc / "meminfo").unlink()
    assert memory.limit() is None
    assert OutOfMemory(tmp_path / "none", tmp_path / "none").look() == "unknown"


@pytest.fixture
def small() -> Iterator[Path]:
    """A cgroup of 400 MB, as far as this test may make one."""
    for parent, limit in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
        group = Path("/sys/fs/cgroup") / parent / f"skyward-test-{os.getpid()}"
        try:
            group.mkdir()
            (group / limit).write_text("400000000")
        except OSError:
            if group.is_dir():
                group.rmdir()
            continue
        yield group
        group.rmdir()
        return
    pytest.skip("no cgroup can be made here")


PROGRAM = """
import os, signal, sys
import skyward as sky

with open(sys.argv[1] + "/cgroup.procs", "w") as procs:
    procs.write("0")

def hungry():
    return len([bytearray(10_000_000) for _ in range(100)])

with sky.Compute(worker=sky.Worker(concurrency=2, attempts=1), console=False) as pool:
    for call in (lambda: pool.submit(hungry), lambda: pool.submit(os.kill, 0, signal.SIGKILL)):
        try:
            call().result()
        except sky.WorkerCrashed as error:
            print(error)
"""


@pytest.mark.slow
def test_the_kernel_itself(small: Path) -> None:
    """A task that needs more than there is, and one that is killed by somebody else."""
    command = [sys.executable, "-c", PROGRAM, str(small)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout
    hungry, killed = out.splitlines()
    assert "killed by the kernel because memory ran out: it used 3" in hungry
    assert " MB of 400 MB; have fewer slots than 2 on a node" in hungry
    assert "killed by SIGKILL, and the kernel has counted no kill for memory: it used" in killed


JOIN = """
mount -t tmpfs none /sys/fs/cgroup
if mkdir /sys/fs/cgroup/memory && mount -t cgroup -o memory none /sys/fs/cgroup/memory && cd /sys/fs/cgroup/memory/$1
then :
else mount -t cgroup2 none /sys/fs/cgroup && cd /sys/fs/cgroup/$1
fi
cat /run/sshd.pid > cgroup.procs
"""


@pytest.mark.lab
@pytest.mark.slow
def test_a_host_whose_memory_runs_out(small: Path, fresh_host: FreshHost, reach: Reach) -> None:
    """The error names the item and the peak, and the arguments are kept."""

    def hungry(megabytes: int) -> int:  # defined here, so that no host needs this module
        return len([bytearray(1_000_000) for _ in range(megabytes)])

    host = fresh_host()
    host.run("sh", "-c", JOIN, "sh", small.name, check=True)
    with sky.Compute(**reach([host]), worker=sky.Worker(concurrency=2, attempts=1)) as pool:
        with pytest.raises(sky.WorkerCrashed, match=r"because memory ran out: it used [23]\d\d MB of 400 MB") as caught:
            list(pool.map(hungry, [1, 2, 1000, 1]))
        assert "item 2 (the first is 0) on node-1" in caught.value.__notes__
        assert sky.last_failure.args == (1000,)
