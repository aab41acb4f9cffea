"""The lab's hosts for those peers and limits that cross a network: see tests/lab. Needs root, OpenSSH and iproute2."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.meter import Meter
from benchmarks.model import Setting
from tests.lab import Host, Lab

__all__ = ["REPOSITORY", "Hosts", "hosts", "index"]

REPOSITORY = Path(__file__).resolve().parents[1]
_WHEELS = ("cloudpickle", "msgpack", "xxhash", "zstandard", "joblib", "numpy", "scikit-learn", "scipy")


@dataclass(frozen=True)
class Hosts:
    """Hosts that are on, and the lab that they are in."""

    lab: Lab
    all: list[Host]
    _counted: dict[str, int] = field(default_factory=dict, repr=False)

    @property
    def meter(self) -> Meter:
        """Counts what all hosts sent and received, and beside it what of that this machine, as the driver, did."""
        return Meter(self._traffic)

    def _traffic(self) -> Mapping[str, int]:
        # A bridge's own counters are about what its machine sends and receives, not what it forwards.
        counters = Path(f"/sys/class/net/{self.lab.net.bridge}/statistics")
        driver = sum(int((counters / name).read_text()) for name in ("rx_bytes", "tx_bytes"))
        for host in self.all:
            with contextlib.suppress(FileNotFoundError):  # it lost its power, and what it had counted stands
                self._counted[host.name] = host.rx_bytes + host.tx_bytes
        return {"wire": sum(self._counted.values()), "driver_wire": driver}

    def kill_first(self, program: str) -> None:
        """End the processes of the first host whose command line has this in it; the host itself goes on."""
        host = self.all[0]
        pids = [str(pid) for pid, command in host.pids() if program in command and not command.startswith("sshd")]
        if not pids:
            raise LookupError(f"nothing on {host.name} has {program} in its command line: {host.pids()}")
        host.run("kill", "-KILL", *pids)

    def ssh(self, host: Host, *options: str) -> list[str]:
        """OpenSSH's client, with the cipher that is fast on both ends."""
        trust = ["-o", "StrictHostKeyChecking=yes", "-o", f"UserKnownHostsFile={self.lab.known_hosts}"]
        alone = ["-F", "/dev/null", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-i", str(self.lab.key)]
        return ["ssh", *alone, *trust, "-c", "aes128-gcm@openssh.com", *options, f"root@{host.address}"]


@contextlib.contextmanager
def hosts(setting: Setting, files: Mapping[str, str | Path] | None = None) -> Iterator[Hosts]:
    """As many hosts as there are nodes, as far away as the setting says."""
    with Lab() as lab:
        yield Hosts(lab, lab.up(setting.nodes, delay=setting.delay, files=files or {}))


def index() -> Path:
    """A folder with the wheels that hosts install, in the versions that are installed here; downloaded once by pip.

    The tests have it too (tests/wheels.py, whose fixture needs pytest), and whoever comes first fills it.
    """
    folder = REPOSITORY / "build" / "wheels" / f"{sys.version_info.major}.{sys.version_info.minor}"
    folder.mkdir(parents=True, exist_ok=True)
    pins = sorted(f"{name}=={importlib.metadata.version(name)}" for name in _WHEELS)
    done = folder / "pins.txt"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several runners start at a time
        if not done.exists() or done.read_text().split() != pins:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "-d", str(folder)]
            subprocess.run([*command, *pins], check=True, timeout=600)
            done.write_text("\n".join(pins))
    return folder
