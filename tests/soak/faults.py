"""What goes wrong meanwhile: processes die and freeze, here and on hosts; hosts' lines are cut, their disks full."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Sequence

from tests.lab import Host, LabError
from tests.processes import comm, descendants
from tests.soak.users import Report

__all__ = ["Adversary"]


class Adversary:
    """Does one thing after another to this machine's nodes, or to hosts, and undoes what it can.

    Parameters
    ----------
    hosts
        Where the nodes are; none for this machine.
    seed, report
        What is drawn from, and where it is counted.
    """

    def __init__(self, hosts: Sequence[Host], seed: str, report: Report) -> None:
        self.hosts, self.report = hosts, report
        self.random = random.Random(seed)
        self.lives = 1  # machines that may be lost in a round, so that one is always left
        self.doomed: Host | None = None
        self.faults: list[Callable[[Host | None], str | None]] = [
            self.kill_slot, self.kill_slot, self.kill_slots, self.kill_server, self.freeze,
        ]  # fmt: skip
        if hosts:
            self.faults += [self.freeze_agent, self.kill_agent, self.cut, self.cut, self.fill, self.unplug]

    def act(self) -> None:
        """One fault in one place that is there."""
        host = self.random.choice([host for host in self.hosts if host is not self.doomed]) if self.hosts else None
        try:
            name = self.random.choice(self.faults)(host)
        except LabError:
            return
        if name is not None:
            self.report.faults[name] += 1

    def _processes(self, host: Host | None, name: str) -> list[int]:
        if host is None:
            return sorted(pid for pid in descendants(os.getpid()) if comm(pid) == name)
        return host.named(name)

    def _send(self, host: Host | None, number: signal.Signals, pids: Sequence[int]) -> None:
        if host is not None:
            host.run("kill", f"-{int(number)}", *map(str, pids))
            return
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def _signal(self, host: Host | None, name: str, number: signal.Signals, most: int = 1) -> list[int]:
        pids = self._processes(host, name)
        chosen = self.random.sample(pids, min(most, len(pids)))
        if chosen:
            self._send(host, number, chosen)
        return chosen

    def kill_slot(self, host: Host | None) -> str | None:
        return "slots killed" if self._signal(host, "skyward-slot", signal.SIGKILL) else None

    def kill_slots(self, host: Host | None) -> str | None:
        return "times all slots killed" if self._signal(host, "skyward-slot", signal.SIGKILL, 99) else None

    def kill_server(self, host: Host | None) -> str | None:
        return "fork servers killed" if self._signal(host, "skyward-forks", signal.SIGKILL) else None

    def freeze(self, host: Host | None) -> str | None:
        return self._freeze(host, self.random.choice(("skyward-slot", "skyward-forks")))

    def freeze_agent(self, host: Host | None) -> str | None:
        return self._freeze(host, "skyward-agent")

    def _freeze(self, host: Host | None, name: str) -> str | None:
        frozen = self._signal(host, name, signal.SIGSTOP)
        if not frozen:
            return None
        time.sleep(self.random.uniform(0.2, 3.0))
        self._send(host, signal.SIGCONT, frozen)
        return f"{name.removeprefix('skyward-')} frozen"

    def kill_agent(self, host: Host) -> str | None:
        if not self.lives:
            return None
        self.lives, self.doomed = 0, host
        return "agents killed" if self._signal(host, "skyward-agent", signal.SIGKILL) else None

    def cut(self, host: Host) -> str:
        host.cut()
        time.sleep(self.random.choice((0.05, 0.5, 2.0, 5.0)))
        host.mend()
        return "lines cut"

    def fill(self, host: Host) -> str:
        host.run("sh", "-c", "cat /dev/zero > /tmp/full 2>/dev/null")
        time.sleep(self.random.uniform(0.5, 2.0))
        host.run("rm", "-f", "/tmp/full")
        return "disks full"

    def unplug(self, host: Host) -> str | None:
        if not self.lives:
            return None
        self.lives, self.doomed = 0, host
        host.kill()
        return "plugs pulled"
