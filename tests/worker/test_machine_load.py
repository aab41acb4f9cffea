"""A machine's load, from the files that kernels and containers have, or lack."""

from __future__ import annotations

from pathlib import Path

import pytest

from skyward.worker.machine_load import MachineLoad, Usage, busy_of

GIB = 2**30
MEMINFO = f"MemTotal: {32 * 2**20} kB\nMemFree: 1 kB\nMemAvailable: {24 * 2**20} kB\n"


def stat(*cpus: tuple[int, int]) -> str:
    """Busy and idle ticks of each processor."""
    lines = [f"cpu{number} {busy} 0 0 {idle} 0 0 0 0 7 7" for number, (busy, idle) in enumerate(cpus)]
    return "\n".join(["cpu  1 1 1 1", *lines, "intr 5 6", "ctxt 1"])


class Root:
    """A machine's files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write("proc/meminfo", MEMINFO)
        self.write("proc/stat", stat((100, 100), (100, 100), (0, 0)))

    def write(self, name: str, text: object) -> None:
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_text(f"{text}\n")

    def load(self, cpus: tuple[int, ...] = (0, 1)) -> MachineLoad:
        return MachineLoad(str(self.path), str(self.path), cpus)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path)


def test_a_whole_machine(root: Root) -> None:
    load = root.load()
    assert load.read()._replace(disk_free=None) == Usage(None, 2, 8 * GIB, 32 * GIB), "no time has passed"
    root.write("proc/stat", stat((175, 125), (100, 200), (1000, 0)))
    usage = load.read()
    assert (usage.cpu, usage.cores) == (75 / 200, 2), "only those that tasks may use"
    assert usage.disk_free
    root.write("proc/stat", stat((275, 125), (200, 200), (1000, 0)))
    assert load.read().cpu == 1


def test_a_container_of_version_2(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    root.write("proc/self/cgroup", "0::/kube/pod/box")
    inner, outer = "sys/fs/cgroup/kube/pod/box", "sys/fs/cgroup/kube/pod"
    for folder, limit in ((inner, "max"), (outer, 4 * GIB)):
        root.write(f"{folder}/memory.max", limit)
        root.write(f"{folder}/cpu.max", f"{limit if limit == 'max' else 150000} 100000")
        root.write(f"{folder}/cpu.stat", "usage_usec 5000000\nuser_usec 1")
    root.write(f"{outer}/memory.current", 3 * GIB)
    root.write(f"{outer}/memory.stat", f"anon 5\ninactive_file {GIB}\nactive_file 7")
    now = 10.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    load = root.load(cpus=(0, 1, 2, 3))
    now = 14.0
    root.write(f"{inner}/cpu.stat", "usage_usec 8000000\nuser_usec 1")
    assert load.read()._replace(disk_free=None) == Usage(0.5, 2, 2 * GIB, 4 * GIB), "3 of 4 x 1.5 seconds"


def test_a_container_of_version_1_whose_path_is_that_of_the_host(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    root.write("proc/self/cgroup", "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n1:name=systemd:/docker/abc")
    memory, cpu, cpuacct = (f"sys/fs/cgroup/{kind}" for kind in ("memory", "cpu", "cpuacct"))
    root.write(f"{memory}/memory.limit_in_bytes", 2 * GIB)
    root.write(f"{memory}/memory.usage_in_bytes", GIB)
    root.write(f"{memory}/memory.stat", f"inactive_file 1\ntotal_inactive_file {GIB // 2}")
    root.write(f"{cpu}/cpu.cfs_quota_us", 100000)
    root.write(f"{cpu}/cpu.cfs_period_us", 100000)
    root.write(f"{cpuacct}/cpuacct.usage", 1_000_000_000)
    now = 10.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    load = root.load()
    now = 12.0
    root.write(f"{cpuacct}/cpuacct.usage", 1_500_000_000)
    assert load.read()._replace(disk_free=None) == Usage(0.25, 1, GIB // 2, 2 * GIB)


@pytest.mark.parametrize("limit", ["max", 64 * GIB, 2**63 - 4096])
def test_limits_beyond_the_machine_are_none(root: Root, limit: object) -> None:
    root.write("proc/self/cgroup", "0::/")
    root.write("sys/fs/cgroup/memory.max", limit)
    root.write("sys/fs/cgroup/cpu.max", "800000 100000")
    assert root.load().read()._replace(disk_free=None) == Usage(None, 2, 8 * GIB, 32 * GIB)


def test_what_cant_be_read_is_none(tmp_path: Path) -> None:
    load = MachineLoad(str(tmp_path / "none"), str(tmp_path), (0,))
    assert load.read() == load.read() == Usage(None, 1, None, None, None)


def test_nonsense_is_none(root: Root) -> None:
    root.write("proc/self/cgroup", "what\n\n0::")
    root.write("proc/meminfo", "MemTotal: many kB\nMemAvailable:")
    root.write("proc/stat", "cpu0\ncpu1 x y\n\ncpu")
    root.write("sys/fs/cgroup/cpu.max", "0 0")
    assert root.load().read()._replace(disk_free=None) == Usage(None, 2, None, None)
    assert busy_of("", (0,)) is None


def test_this_machine(tmp_path: Path) -> None:
    """Whatever it has."""
    usage = MachineLoad(str(tmp_path)).read()
    assert usage.cores
    assert usage.disk_free
    assert usage.memory_used is None or usage.memory_total is None or 0 < usage.memory_used <= usage.memory_total
