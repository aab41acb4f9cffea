"""Rounds: each is a pool of its own, its users, its faults, one of the ways to end, and a look at what is left."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import logging
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import skyward as sky
from tests.lab import Host, Lab, eventually
from tests.processes import alive, comm, descendants
from tests.soak.faults import Adversary
from tests.soak.users import SETTLE, MainUser, Refusal, Report, User, interrupted

__all__ = ["Ground", "play"]

_USERS = 3
_LIMIT = 6.0  # seconds a task may run, in rounds that have a limit
_GROWTH = 40  # MB that the driver may have in use beyond what it had after its second round: asyncssh takes 24


@dataclass
class Ground:
    """The lab and its index of packages, where there are any."""

    lab: Lab
    index: str
    hosts: list[Host]


def play(
    seconds: float, seed: int, *, ground: Ground | None = None, always_faults: bool = False, say: Callable[[str], None]
) -> Report:
    """Rounds until the time is over; at least one.

    Parameters
    ----------
    seconds
        When no further round is begun.
    seed
        Of everything that is chosen.
    ground
        Hosts to be used in addition to this machine.
    always_faults
        Only rounds with hosts and faults.
    say
        Called with the figures after each round.
    """
    report = Report(seed)
    end = time.monotonic() + seconds
    with _errors_counted(report):
        while not report.wrong and (not report.rounds or time.monotonic() < end):
            faulthandler.dump_traceback_later(5 * SETTLE, exit=True)  # a round has limits of its own, which come first
            choose = random.Random(f"{seed}.{sum(report.rounds.values())}")
            on_hosts = ground is not None and (always_faults or choose.random() < 0.5)
            round_ = _Round(choose, report, ground if on_hosts else None, faults=always_faults or choose.random() < 0.4)
            round_.play()
            say(str(report))
    faulthandler.cancel_dump_traceback_later()
    return report


class _Round:
    def __init__(self, choose: random.Random, report: Report, ground: Ground | None, *, faults: bool) -> None:
        self.choose, self.report, self.ground, self.faults = choose, report, ground, faults
        self.hosts = ground.hosts if ground is not None else []
        self.limit = _LIMIT if not faults and choose.random() < 0.5 else None
        self.executor = "process" if faults or choose.random() < 0.7 else "thread"
        self.nodes = 3 if ground is not None else choose.choice((1, 2))
        self.seed = str(choose.random())
        self.adversary = Adversary(self.hosts, self.seed, report)
        self.ended = 0.0  # when the last thing was asked for

    def __str__(self) -> str:
        where = "hosts" if self.hosts else "this machine"
        return f"rounds on {where} in {'threads' if self.executor == 'thread' else 'processes'}"

    def play(self) -> None:
        for host in [host for host in self.hosts if not host.alive]:
            host.restart()
        before = _Left.now()
        users = self._use()
        for user in users:
            user.take(SETTLE)
            self.report.wrong += _stays(user.untold, f"futures of {user.name} did not tell once")
        self.report.slowest = max(self.report.slowest, time.monotonic() - self.ended)
        del users, user
        self.report.wrong += _stays(before.behind, "left behind")
        for host in self.hosts:
            if host.alive and host is not self.adversary.doomed:
                _is_clean(host, self.report)
            elif host.alive:
                host.restart()  # an agent that was killed leaves its files to the next one, which sweeps
        self.report.rounds[str(self)] += 1
        self.report.memory.append(_megabytes())
        if self.report.memory[-1] > self.report.memory[:2][-1] + _GROWTH:
            self.report.wrong.append(f"the driver uses more and more memory: {self.report.memory} MB")

    def _pool(self) -> sky.Compute:
        worker = sky.Worker(
            concurrency=self.choose.choice((1, 2, 3)), executor=self.executor, attempts=50 if self.faults else 4
        )
        options: dict[str, Any] = {"nodes": self.nodes, "worker": worker, "timeout": self.limit}
        if self.ground is not None:
            lab = self.ground.lab
            addresses = [host.address for host in self.hosts]
            login = {"user": "root", "key": str(lab.key), "known_hosts": str(lab.known_hosts)}
            options |= {"provider": sky.SSH(hosts=addresses, **login), "image": sky.Image(index=self.ground.index)}
        return sky.Compute(plugins=[sky.plugins.joblib()], console=False, **options)

    def _use(self) -> list[User | MainUser]:
        """Open a pool, use it, and end it in one of many ways, when everything must settle by itself."""
        stop = threading.Event()
        overlong = 10 * self.limit if self.limit else 0.0
        folders: set[str] = set()
        pool = self._pool()
        if self.choose.random() < 0.2 and interrupted(pool.start, self.choose):
            self.report.done["interrupted starts"] += 1
        if not pool.is_active:
            pool = self._pool()
            pool.start()
        try:
            users = [User(pool, self.report, f"{self.seed}.{k}", overlong, stop) for k in range(_USERS)]
            here = MainUser(pool, self.report, f"{self.seed}.main", overlong)
            for user in users:
                user.start()
            self._main(here)
            folders = _folders()
            stop.set()
            self.ended = time.monotonic()
            if self.choose.random() < 0.5:
                self._join(users)
            self._end(pool)
            self._join(users)
        finally:
            stop.set()
            pool.close(cancel=True)
        for folder in folders:
            if Path(folder).exists():
                self.report.wrong.append(f"left behind: {folder}")
        return [*users, here]

    def _main(self, here: MainUser) -> None:
        """The main thread interrupts itself, or is the adversary."""
        for _ in range(self.choose.randrange(4, 10)):
            if self.faults:
                time.sleep(self.choose.uniform(0.1, 1.5))
                self.adversary.act()
            elif self.choose.random() < 0.5:
                here.interrupted()
            else:
                here.act()
            here.take(0.0)

    def _join(self, users: Sequence[User]) -> None:
        for user in users:
            user.join(2 * SETTLE)
            if user.is_alive():
                self.report.wrong.append(f"{user.name} is stuck in a call")

    def _end(self, pool: sky.Compute) -> None:
        """One of the ways."""
        way = self.choose.randrange(6)
        if way == 0:
            pool.close()
        elif way == 1:
            pool.close(cancel=True)
        elif way == 2:
            pool.shutdown(cancel_futures=True)
        elif way == 3:
            pool.shutdown(wait=False, cancel_futures=self.choose.random() < 0.5)
            pool.close()
        elif way == 4 and interrupted(pool.close, self.choose):
            self.report.done["interrupted ends"] += 1
        else:
            pool.__exit__(Refusal, Refusal(), None)


# --- what is left -----------------------------------------------------------------------------------------------------


@dataclass
class _Left:
    """What this process and its children have."""

    children: set[int]
    files: dict[str, str]
    threads: set[str]
    mounts: str

    @classmethod
    def now(cls) -> _Left:
        gc.collect()
        return cls(
            {pid for pid in descendants(os.getpid()) if alive(pid)},
            _open_files(),
            {thread.name for thread in threading.enumerate()},
            Path("/proc/self/mounts").read_text(),
        )

    def behind(self) -> list[str]:
        """What is there now, and was not."""
        now = _Left.now()
        processes = [f"{comm(pid)} {pid}" for pid in now.children - self.children]
        files = [f"file {fd} {now.files[fd]}" for fd in now.files.keys() - self.files.keys()]
        threads = [f"thread {name}" for name in now.threads - self.threads]
        mounts = ["mounts"] if now.mounts != self.mounts else []
        return [*processes, *files, *threads, *mounts]


def _open_files(pid: int | str = "self") -> dict[str, str]:
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found[entry.name] = str(entry.readlink())
    return {fd: name for fd, name in found.items() if not name.startswith(f"/proc/{os.getpid()}/fd")}


def _folders() -> set[str]:
    """Folders that our agents have made, of which they hold the locks."""
    found = set()
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            found |= {os.path.dirname(name) for name in _open_files(pid).values() if "/skyward-" in name}
    return {folder for folder in found if os.path.basename(folder).startswith("skyward-")}


def _megabytes() -> int:
    """In use, after what is free has been given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20


def _is_clean(host: Host, report: Report) -> None:
    report.wrong += _stays(host.pids, f"left on {host.name}")
    left = host.run("sh", "-c", "ls -d /tmp/skyward-* /dev/shm/skyward-* /root/.cache/skyward/run/* 2>/dev/null").stdout
    if left.strip():
        report.wrong.append(f"left on {host.name}: {left.split()}")


def _stays(left: Callable[[], Sequence[object]], what: str) -> list[str]:
    """What is still there after a while."""
    try:
        eventually(lambda: not left(), 20)
    except TimeoutError:
        return [f"{what}: {left()}"]
    return []


# --- what is logged ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _errors_counted(report: Report) -> Iterator[None]:
    """An error that nobody is told of is wrong too: in a log, a thread, or a finalizer."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            error = record.exc_info[1] if record.exc_info else None
            if not isinstance(error, Refusal):
                report.wrong.append(f"logged: {record.getMessage()} {error!r}")

    def hook(found: Any) -> None:
        if not isinstance(found.exc_value, Refusal):
            report.wrong.append(f"unheard: {found.exc_value!r} in {getattr(found, 'object', None) or found.thread}")
            sys.__excepthook__(found.exc_type, found.exc_value, found.exc_traceback)

    handler = Handler(logging.ERROR)
    logging.getLogger().addHandler(handler)
    hooks = threading.excepthook, sys.unraisablehook
    threading.excepthook = sys.unraisablehook = hook
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        threading.excepthook, sys.unraisablehook = hooks
