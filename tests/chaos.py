"""Chaos with an oracle: tasks of all kinds on real hosts while processes die, freeze and lines break, from one seed.

Each round is a pool of its own on three hosts of the lab. Users in several threads submit small and large, short and
long, failing and cancelled tasks, and `Parallel` calls; an adversary picks a fault every second or so. What must hold:

* each future settles, once, with its own result or its own exception; a cancelled one may have been too late;
* nothing waits for longer than `SETTLE` seconds after the last fault has been undone;
* when the pool is closed, no process and no file of ours is left on any host.

``python -m tests.chaos --seconds 1200`` runs it by hand and prints the figures.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from joblib import Parallel, delayed, parallel_config

import skyward as sky
from skyward.core.tasks.futures import TaskFuture
from tests.lab import Host, Lab, LabError, eventually

SETTLE = 120.0
_USERS = 4
_SIZES = (0, 1, 100, 5_000, 33_000, 100_000, 400_000, 1_200_000, 5_000_000)


@dataclass
class Report:
    """What happened."""

    seed: int
    rounds: int = 0
    tasks: int = 0
    cancelled: int = 0
    calls: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0
    """Seconds from the last fault's end until everything had settled, in the slowest round."""

    def __str__(self) -> str:
        faults = ", ".join(f"{count} x {name}" for name, count in sorted(self.faults.items()))
        return (
            f"seed {self.seed}: {self.rounds} rounds, {self.tasks:,} tasks ({self.cancelled:,} given up) and "
            f"{self.calls} Parallel calls; {faults}; settled {self.slowest:.1f} s after the last fault at most; "
            f"{len(self.wrong)} wrong"
        )


# --- tasks, which travel by value -----------------------------------------------------------------------------------


def work(number: int, data: bytes, seconds: float, size: int, fails: bool) -> tuple[int, str, bytes]:
    """Something whose result says whether the arguments came whole."""
    import hashlib
    import time

    time.sleep(seconds)
    name = hashlib.sha256(data).hexdigest()
    if fails:
        raise ValueError(number, name)
    if number % 7 == 0:
        print(f"task {number} says {'so ' * (size % 50)}")
    return number, name, bytes([number % 256]) * size


work.__module__ = "__main__"


class User(threading.Thread):
    """Submits tasks until it is told to stop, and compares what comes with what must come."""

    def __init__(self, pool: sky.Compute, seed: str, report: Report, stop: threading.Event) -> None:
        super().__init__(name=f"chaos-user-{seed}", daemon=True)
        self.pool, self.report, self.stop = pool, report, stop
        self.random = random.Random(seed)
        self.open: list[tuple[TaskFuture[Any], tuple[Any, ...]]] = []
        self.number = 0

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                if self.random.random() < 0.05:
                    self._call()
                for _ in range(self.random.choice((1, 5, 40))):
                    self._submit()
                self._take(0.0)
                time.sleep(self.random.uniform(0.0, 0.1))
            self._take(SETTLE)
        except BaseException as error:
            self._wrong(f"the user's thread ended with {error!r}")

    def _arguments(self) -> tuple[int, bytes, float, int, bool]:
        self.number += 1
        choose = self.random
        seconds = choose.choice((0.0, 0.0, 0.001, 0.02, choose.uniform(0, 0.5)))
        data = choose.randbytes(16) * (choose.choice(_SIZES) // 16)
        size = choose.choice(_SIZES[:6] if choose.random() < 0.8 else _SIZES)
        return self.number, data, seconds, size, choose.random() < 0.1

    def _submit(self) -> None:
        arguments = self._arguments()
        future = self.pool.submit(work, *arguments)
        self.report.tasks += 1
        self.open.append((future, arguments))
        if self.random.random() < 0.05:
            doomed = self.random.choice(self.open)[0]
            if doomed.cancel():
                self.report.cancelled += 1

    def _call(self) -> None:
        self.report.calls += 1
        calls = [(*self._arguments()[:4], False) for _ in range(self.random.choice((3, 30)))]
        with parallel_config(backend="skyward"):  # which joblib keeps for each thread
            results = Parallel(n_jobs=-1)(delayed(work)(*arguments) for arguments in calls)
        for result, arguments in zip(results, calls, strict=True):
            self._compare(result, arguments)

    def _take(self, patience: float) -> None:
        """Look at what is done; with patience, wait for all of it."""
        end = time.monotonic() + patience
        left = []
        for future, arguments in self.open:
            try:
                result = future.result(max(0.0, end - time.monotonic()) if patience else 0)
            except concurrent.futures.CancelledError:
                continue
            except TimeoutError:
                left.append((future, arguments))
                continue
            except ValueError as error:
                if not arguments[4] or error.args != (arguments[0], _digest(arguments[1])):
                    self._wrong(f"task {arguments[0]} of {self.name}: {error!r}")
                continue
            except Exception as error:
                self._wrong(f"task {arguments[0]} of {self.name}: {type(error).__name__}: {error}")
                continue
            self._compare(result, arguments)
        self.open = left
        if patience and left:
            self._wrong(f"{len(left)} tasks of {self.name} never settled, the first is {left[0][1][0]}")

    def _compare(self, result: Any, arguments: tuple[Any, ...]) -> None:
        number, data, _, size, fails = arguments
        if fails or result != (number, _digest(data), bytes([number % 256]) * size):
            self._wrong(f"task {number} of {self.name} has a wrong result")

    def _wrong(self, text: str) -> None:
        self.report.wrong.append(text)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- faults ---------------------------------------------------------------------------------------------------------


class Adversary:
    """Does one thing after another to the hosts, and undoes what it can."""

    def __init__(self, hosts: list[Host], seed: str, report: Report) -> None:
        self.hosts, self.report = hosts, report
        self.random = random.Random(seed)
        self.lives = 1  # machines that may be lost in a round, so that one is always left
        self.doomed: Host | None = None
        self.faults: list[Callable[[Host], str | None]] = [
            self.kill_slot, self.kill_slot, self.kill_slots, self.kill_server, self.kill_agent, self.freeze,
            self.cut, self.cut, self.fill, self.unplug,
        ]  # fmt: skip

    def act(self) -> None:
        """One fault on one host that is there."""
        host = self.random.choice([host for host in self.hosts if host is not self.doomed])
        try:
            name = self.random.choice(self.faults)(host)
        except LabError:
            return
        if name is not None:
            self.report.faults[name] += 1

    def _processes(self, host: Host, name: str) -> list[str]:
        found = []
        for pid, _ in host.pids():
            try:
                if (host.root / f"proc/{pid}/comm").read_text().strip() == name:
                    found.append(str(pid))
            except OSError:
                continue
        return found

    def _signal(self, host: Host, name: str, signal: str, most: int = 1) -> list[str]:
        pids = self._processes(host, name)
        chosen = self.random.sample(pids, min(most, len(pids)))
        if chosen:
            host.run("kill", f"-{signal}", *chosen)
        return chosen

    def kill_slot(self, host: Host) -> str | None:
        return "slot killed" if self._signal(host, "skyward-slot", "KILL") else None

    def kill_slots(self, host: Host) -> str | None:
        return "all slots killed" if self._signal(host, "skyward-slot", "KILL", 99) else None

    def kill_server(self, host: Host) -> str | None:
        return "fork server killed" if self._signal(host, "skyward-forks", "KILL") else None

    def kill_agent(self, host: Host) -> str | None:
        if not self.lives:
            return None
        self.lives, self.doomed = 0, host
        return "agent killed" if self._signal(host, "skyward-agent", "KILL") else None

    def freeze(self, host: Host) -> str | None:
        name = self.random.choice(("skyward-slot", "skyward-forks", "skyward-agent"))
        frozen = self._signal(host, name, "STOP")
        if not frozen:
            return None
        time.sleep(self.random.uniform(0.2, 3.0))
        host.run("kill", "-CONT", *frozen)
        return f"{name.removeprefix('skyward-')} frozen"

    def cut(self, host: Host) -> str:
        host.cut()
        time.sleep(self.random.choice((0.05, 0.5, 2.0, 5.0)))
        host.mend()
        return "line cut"

    def fill(self, host: Host) -> str:
        host.run("sh", "-c", "cat /dev/zero > /tmp/full 2>/dev/null")
        time.sleep(self.random.uniform(0.5, 2.0))
        host.run("rm", "-f", "/tmp/full")
        return "disk full"

    def unplug(self, host: Host) -> str | None:
        if not self.lives:
            return None
        self.lives, self.doomed = 0, host
        host.kill()
        return "plug pulled"


# --- rounds ---------------------------------------------------------------------------------------------------------


def play(lab: Lab, index: str, seconds: float, seed: int, say: Callable[[str], None] = print) -> Report:
    """Rounds until the time is over; at least one.

    Parameters
    ----------
    lab, index
        Where the hosts are, and where they get packages.
    seconds
        When no further round is begun.
    seed
        Of everything that is chosen.
    """
    report = Report(seed)
    end = time.monotonic() + seconds
    hosts = lab.up(3, disk="300M")
    try:
        while not report.wrong and (report.rounds == 0 or time.monotonic() < end):
            for host in [host for host in hosts if not host.alive]:
                host.restart()
            _round(lab, index, hosts, f"{seed}.{report.rounds}", report)
            report.rounds += 1
            say(str(report))
    finally:
        for host in hosts:
            lab.remove(host)
    return report


def _round(lab: Lab, index: str, hosts: list[Host], seed: str, report: Report) -> None:
    choose = random.Random(seed)
    adversary = Adversary(hosts, seed, report)
    stop = threading.Event()
    provider = sky.SSH(
        hosts=[host.address for host in hosts], user="root", key=str(lab.key), known_hosts=str(lab.known_hosts)
    )
    worker = sky.Worker(concurrency=2, executor="process", attempts=50)
    image = sky.Image(index=index)
    plugins = [sky.plugins.joblib()]
    with sky.Compute(provider=provider, nodes=3, worker=worker, image=image, plugins=plugins, console=False) as pool:
        users = [User(pool, f"{seed}.{k}", report, stop) for k in range(_USERS)]
        for user in users:
            user.start()
        for _ in range(choose.randrange(6, 14)):
            time.sleep(choose.uniform(0.1, 1.5))
            adversary.act()
        stop.set()
        ended = time.monotonic()
        for user in users:
            user.join(2 * SETTLE)
            if user.is_alive():
                report.wrong.append(f"{user.name} is stuck in a call")
        report.slowest = max(report.slowest, time.monotonic() - ended)
    for host in hosts:
        if host.alive and host is not adversary.doomed:
            _is_clean(host, report)
        elif host.alive:
            host.restart()  # an agent that was killed leaves its files to the next one, which sweeps


def _is_clean(host: Host, report: Report) -> None:
    try:
        eventually(lambda: not host.pids(), 20, "no process stays on the host")
    except AssertionError:
        report.wrong.append(f"left on {host.name}: {host.pids()}")
    left = host.run("sh", "-c", "ls -d /tmp/skyward-* /dev/shm/skyward-* /root/.cache/skyward/run/* 2>/dev/null").stdout
    if left.strip():
        report.wrong.append(f"left on {host.name}: {left.split()}")


def main() -> int:
    """Run it by hand."""
    from tests.wheels import wheels

    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="when no further round is begun (default: 120)")
    parser.add_argument("--seed", type=int, default=None, help="a former run's, to choose the same again")
    options = parser.parse_args()
    seed = int.from_bytes(os.urandom(4), "big") if options.seed is None else options.seed
    with Lab() as lab:
        index = lab.serve_index(wheels.__wrapped__())  # type: ignore[attr-defined]
        report = play(lab, index, options.seconds, seed, lambda text: print(text, flush=True))
    for text in report.wrong:
        print(text)
    return bool(report.wrong)


if __name__ == "__main__":
    sys.exit(main())
