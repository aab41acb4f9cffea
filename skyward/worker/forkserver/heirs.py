"""Processes that take a fork server's place in forking: each has imported what slots were seen to import.

A fork server imports nothing itself after its start, for an import can hang or crash, and what it does to the process
can't be undone. It forks an heir that imports, and goes on; when the heir is ready, new slots are forked from that one.
An heir is a fork server whose agent is the first one: same words, same duties. Old heirs end with their last slot.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from skyward.worker.forkserver import imports
from skyward.worker.forkserver.liveness import LIMITS, Limits, Look, Probe
from skyward.worker.forkserver.protocol import ECHO, END, EXITED, FORKED, KILL, REPORT, REQUEST, SEAT, TRYING, UP
from skyward.worker.process import kill_group

__all__ = ["Heir", "Heirs"]

_WORTH = 20  # modules that a new slot would import itself; fewer are not worth an heir
_QUIET = 0.5  # seconds after the last report of imports, since slots mostly import at the same time
_SLOWER = 4.0  # times as long until each further heir, for imports may go on as long as tasks do
_LIMIT = 60.0  # seconds
_MESSAGE = 256 * 1024


@dataclass
class Heir:
    """One of them.

    Attributes
    ----------
    sock
        To it; it reports as to an agent.
    names
        What it imports, or has imported.
    until
        When it must be ready.
    at
        The index of the name that it has come to.
    slots
        Those forked from it, and their processes; 0 where that has not been reported.
    unborn
        Those of them that nobody has killed since: what was asked for, and files, by which another can make them.
    probe
        Whether it hangs, once it is ready.
    """

    pid: int
    sock: socket.socket
    names: list[str]
    until: float
    at: int = 0
    ready: bool = False
    slots: dict[int, int] = field(default_factory=dict)
    unborn: dict[int, tuple[int, list[int]]] = field(default_factory=dict)
    probe: Probe = field(default_factory=Probe)

    def settle(self, number: int) -> None:
        """A slot of it has been made, or need not be."""
        _, fds = self.unborn.pop(number, (0, ()))
        for fd in fds:
            os.close(fd)


class Heirs:
    """All heirs of a fork server, and what it has learned of slots.

    Parameters
    ----------
    lore
        Where slots tell of imports.
    report
        Told of each report of an heir: what, slot, value.
    become
        In a new process: live as an heir, with this socket, these modules and variables. Does not return.
    fork
        Make a slot here that an heir has not made: what, slot, files. The files are to be closed.
    limit
        Seconds that all imports may take.
    limits
        When an heir that is ready counts as hung.
    """

    def __init__(
        self,
        lore: socket.socket,
        report: Callable[[int, int, int], None],
        become: Callable[[socket.socket, list[str], dict[str, str | None]], None],
        fork: Callable[[int, int, list[int]], None],
        limit: float = _LIMIT,
        limits: Limits = LIMITS,
    ) -> None:
        self.all: dict[int, Heir] = {}  # by the number of its socket
        self.current: Heir | None = None
        self._lore = lore
        self._report = report
        self._become = become
        self._fork = fork
        self._limit = limit
        self._period = limits.period
        self._look_at = 0.0
        self._poll: select.poll | None = None
        self._names: dict[str, None] = {}  # for the next heir
        self._new = 0  # of them, those that no heir has had
        self._refused: set[str] = set()  # roots of modules that can't be imported ahead
        self._seen = set(sys.modules)
        self._variables: dict[str, str | None] = {}
        self._due: float | None = None  # when to make an heir
        self._pause = _QUIET
        self._earliest = 0.0
        self._ends = False

    def __repr__(self) -> str:
        return f"<{len(self.all)} heirs, {self._new} new modules>"

    def watch(self, poll: select.poll) -> None:
        """Begin: what is to be heard is registered here."""
        self._poll = poll
        poll.register(self._lore, select.POLLIN)

    @property
    def next(self) -> float | None:
        """When `attend` has something to do though nobody says anything."""
        if self._ends:
            return None
        times = [heir.until for heir in self.all.values() if not heir.ready]
        times += [self._look_at for heir in self.all.values() if heir.probe.is_needed]
        return min([*times, *([] if self._due is None else [self._due])], default=None)

    def attend(self, heard: dict[int, int]) -> None:
        """Do what is due, or has become possible."""
        if self._lore.fileno() in heard:
            self._hear_slots()
        for heir in [heir for fd, heir in self.all.items() if fd in heard]:
            self._hear(heir)
        if self._ends:
            return
        now = time.monotonic()
        for heir in list(self.all.values()):
            if not heir.ready and now > heir.until:
                os.kill(heir.pid, signal.SIGKILL)
                heir.until = now + self._limit  # its end will be heard
        if now >= self._look_at:
            self._look_at = now + self._period
            for heir in self.all.values():
                _look(heir)
        if self._due is not None and now >= self._due and all(heir.ready for heir in self.all.values()):
            self._due = None
            self._make()

    # --- slots of heirs ---

    def fork(self, what: int, number: int, seat: int, fds: list[int]) -> bool:
        """Let the newest heir fork a slot, and take its files; False if there is none that can."""
        heir = self.current
        if heir is None:
            return False
        try:
            heir.sock.sendall(REQUEST.pack(SEAT, seat))
            socket.send_fds(heir.sock, [REQUEST.pack(what, number)], fds)
        except OSError:  # it has died, as we shall hear
            return False
        self._awaits()
        heir.slots[number] = 0
        heir.unborn[number] = what, fds
        heir.probe.forks(number)
        return True

    def kill(self, number: int) -> None:
        """Kill a slot, if it is one of an heir's."""
        for heir in self.all.values():
            if number in heir.slots:
                self._awaits()
                heir.settle(number)
                heir.probe.kills(number)
                _tell(heir, KILL, number)

    def _awaits(self) -> None:
        """Looks begin, unless they go on already."""
        if not any(heir.probe.is_needed for heir in self.all.values()):
            self._look_at = time.monotonic() + self._period

    def end(self) -> None:
        """Let them end with their slots, and make no more."""
        self._ends = True
        for heir in self.all.values():
            if heir.ready:
                _tell(heir, END, 0)
            else:
                os.kill(heir.pid, signal.SIGKILL)

    def pids(self) -> Iterator[int]:
        """The processes of all slots of heirs."""
        for heir in self.all.values():
            yield from filter(None, heir.slots.values())

    def kill_all(self) -> None:
        """End the heirs themselves."""
        for heir in self.all.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(heir.pid, signal.SIGKILL)

    # --- what is heard ---

    def _hear_slots(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                data = self._lore.recv(_MESSAGE)
                with contextlib.suppress(ValueError, TypeError):  # whatever a task has written there
                    self._learn(*imports.parse(data))

    def _learn(self, names: list[str], variables: dict[str, str | None]) -> None:
        new = [name for name in names if name not in self._seen and name.partition(".")[0] not in self._refused]
        self._seen.update(new)
        self._names.update(dict.fromkeys(new))
        self._new += len(new)
        self._variables.update(variables)
        if new and self._new >= _WORTH:  # a slot that came in another's place tells the same again
            self._due = max(time.monotonic() + _QUIET, self._earliest)

    def _hear(self, heir: Heir) -> None:
        try:
            data = heir.sock.recv(REPORT.size * 64)
        except OSError:
            data = b""
        if not data:
            self._bury(heir)
        for what, number, value in REPORT.iter_unpack(data[: len(data) // REPORT.size * REPORT.size]):
            heir.probe.heard(what, number)
            if what == TRYING:
                heir.at = number
            elif what == UP:
                heir.ready = True
                self.current = heir
            elif what != ECHO:
                heir.settle(number)
                if what == FORKED:
                    heir.slots[number] = value
                else:
                    heir.slots.pop(number, None)
                self._report(what, number, value)
        for old in list(self.all.values()):
            if old.ready and old is not self.current and not old.slots:
                self._drop(old)

    def _bury(self, heir: Heir) -> None:
        """It has died, and the kernel kills its slots, but not at once, nor what they have started.

        Those that it had not made are made here, so that nothing which they were given comes to harm.
        """
        self._drop(heir)
        for number, pid in heir.slots.items():
            if pid:
                kill_group(pid)
            if number in heir.unborn:
                what, fds = heir.unborn[number]
                self._fork(what, number, fds)
            else:
                self._report(EXITED, number, signal.SIGKILL)
        if heir.ready:
            return
        if heir.at < len(heir.names):
            self._refused.add(heir.names[heir.at].partition(".")[0])
            self._names = {name: None for name in self._names if name.partition(".")[0] not in self._refused}
        else:  # imported as they were under other variables
            self._names.clear()
        if len(self._names) >= _WORTH:
            self._due = max(time.monotonic() + _QUIET, self._earliest)

    def _drop(self, heir: Heir) -> None:
        assert self._poll is not None
        self._poll.unregister(heir.sock)
        del self.all[heir.sock.fileno()]
        heir.sock.close()  # at which it ends, if it lives
        if self.current is heir:
            self.current = None

    # --- a new one ---

    def _make(self) -> None:
        names = list(self._names)
        self._new = 0
        now = time.monotonic()
        self._pause *= _SLOWER
        self._earliest = now + self._pause
        try:
            ours, theirs = socket.socketpair()
        except OSError:
            return  # slots go on to import for themselves
        with theirs:
            try:
                pid = os.fork()
            except OSError:
                ours.close()
                return
            if pid == 0:
                self._become(theirs, names, self._variables)
        heir = Heir(pid, ours, names, now + self._limit)
        self.all[ours.fileno()] = heir
        assert self._poll is not None
        self._poll.register(ours, select.POLLIN)


def _look(heir: Heir) -> None:
    look = heir.probe.look()
    if look is Look.ASK:
        _tell(heir, ECHO, 0)
    elif look is Look.HUNG:
        with contextlib.suppress(ProcessLookupError):
            os.kill(heir.pid, signal.SIGKILL)  # its end will be heard


def _tell(heir: Heir, what: int, number: int) -> None:
    with contextlib.suppress(OSError):  # it has died, as we shall hear
        heir.sock.sendall(REQUEST.pack(what, number))
