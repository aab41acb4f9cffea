"""Heirs of a fork server: processes that have imported what slots were seen to import, and take over the forking.

A fork server imports nothing after its start, since an import can hang or crash, and its effects can't be undone.
Instead it forks an heir that imports, and continues; once the heir is ready, new slots are forked from it. An heir is a
fork server whose agent is the first fork server: same protocol, same duties. Old heirs end with their last slot.
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

from skyward.core.protocol.framing import Records
from skyward.core.system import open_files
from skyward.worker.forkserver import imports
from skyward.worker.forkserver.liveness import LIMITS, Limits, Probe, ProbeState
from skyward.worker.forkserver.protocol import (
    ECHO,
    END,
    EXITED,
    FILES,
    FORKED,
    HUNG,
    KILL,
    PEAK,
    REPORT,
    REQUEST,
    SEAT,
    TRYING,
    UP,
)
from skyward.worker.process import kill_group

__all__ = ["Heir", "Heirs"]

_MIN_MODULES = 20  # that a new slot would have to import; fewer are not worth an heir
_QUIET = 0.5  # seconds after the last report of imports, since slots mostly import at the same time
_SLOWER = 4.0  # factor by which the pause grows with each heir, since tasks may import new modules all the time
_LIMIT = 60.0  # seconds that an heir's imports may take
_MESSAGE = 256 * 1024  # bytes
_FILES_SHARE = 4  # share of our limit of open files that requested slots may take


@dataclass
class Heir:
    """One heir.

    Attributes
    ----------
    sock, reports
        Connection to it, and what it has reported, as to an agent.
    names
        The modules that it imports.
    until
        When it must be ready, on the monotonic clock.
    at
        Index of the module that it is importing.
    slots
        The slots forked from it, and their pids; 0 until reported.
    unborn
        Slots that have been requested, and were not made or killed since: the request and its files, with which another
        process can make them.
    probe
        Detects whether it hangs, once it is ready.
    hung
        Whether it was killed for that.
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
    hung: bool = False
    reports: Records = field(default_factory=lambda: Records(REPORT))

    def discard_request(self, number: int) -> None:
        """Close the files of a slot that has been made, or need not be."""
        _, fds = self.unborn.pop(number, (0, ()))
        for fd in fds:
            os.close(fd)


class Heirs:
    """All heirs of a fork server, and the imports that slots have reported.

    Parameters
    ----------
    import_reports
        Socket on which slots report imports.
    report
        Called with each report of an heir: what, slot, value.
    become
        Called in a new process, to run as an heir with this socket, these modules and variables. Does not return.
    fork
        Makes a slot that an heir has not made: what, slot, files. It closes the files.
    limit
        Seconds that an heir's imports may take.
    limits
        When an heir that is ready counts as hung.
    """

    def __init__(
        self,
        import_reports: socket.socket,
        report: Callable[[int, int, int], None],
        become: Callable[[socket.socket, list[str], dict[str, str | None]], None],
        fork: Callable[[int, int, list[int]], None],
        limit: float = _LIMIT,
        limits: Limits = LIMITS,
    ) -> None:
        self.all: dict[int, Heir] = {}  # by the descriptor of its socket
        self.current: Heir | None = None
        self._import_reports = import_reports
        self._report = report
        self._become = become
        self._fork = fork
        self._limit = limit
        self._period = limits.period
        self._poll_at = 0.0
        self._poll: select.poll | None = None
        self._names: dict[str, None] = {}  # for the next heir
        self._new = 0  # how many of them no heir has had
        self._refused: set[str] = set()  # top-level packages that can't be imported ahead
        self._seen = set(sys.modules)
        self._variables: dict[str, str | None] = {}
        self._due: float | None = None  # when to make the next heir
        self._pause = _QUIET
        self._earliest = 0.0
        self._ends = False

    def __repr__(self) -> str:
        return f"<{len(self.all)} heirs, {self._new} new modules>"

    def watch(self, poll: select.poll) -> None:
        """Register the sockets to read from with this poll object."""
        self._poll = poll
        poll.register(self._import_reports, select.POLLIN)

    @property
    def next(self) -> float | None:
        """When `attend` has something to do even if nothing arrives; None for never."""
        if self._ends:
            return None
        times = [heir.until for heir in self.all.values() if not heir.ready]
        times += [self._poll_at for heir in self.all.values() if heir.probe.is_needed]
        return min([*times, *([] if self._due is None else [self._due])], default=None)

    def attend(self, events: dict[int, int]) -> None:
        """Read what has arrived, as `poll` reports, and do what is due."""
        if self._import_reports.fileno() in events:
            self._read_import_reports()
        for heir in [heir for fd, heir in self.all.items() if fd in events]:
            self._read(heir)
        if self._ends:
            return
        now = time.monotonic()
        for heir in list(self.all.values()):
            if not heir.ready and now > heir.until:
                os.kill(heir.pid, signal.SIGKILL)
                heir.until = now + self._limit  # its end follows
        if now >= self._poll_at:
            self._poll_at = now + self._period
            for heir in self.all.values():
                _poll(heir)
        if self._due is not None and now >= self._due and all(heir.ready for heir in self.all.values()):
            self._due = None
            self._make()

    # --- slots of heirs ---

    def fork(self, what: int, number: int, seat: int, fds: list[int]) -> bool:
        """Let the newest heir fork a slot; returns False if there is no heir.

        Parameters
        ----------
        what, number
            The request.
        seat
            The slot's number for tasks.
        fds
            Its file descriptors, which this object closes if an heir forks it.
        """
        heir = self.current
        # Requests keep their files until they are answered; those of many slots at once would be all that we may open.
        held = sum(len(each.unborn) for each in self.all.values()) * FILES
        if heir is None or held >= open_files.limit() // _FILES_SHARE:
            return False
        try:
            heir.sock.sendall(REQUEST.pack(SEAT, seat))
            socket.send_fds(heir.sock, [REQUEST.pack(what, number)], fds)
        except OSError:  # it has died, or takes no more since it hangs; its socket or its probe will report it
            return False
        self._schedule_poll()
        heir.slots[number] = 0
        heir.unborn[number] = what, fds
        heir.probe.forks(number)
        return True

    def kill(self, number: int) -> None:
        """Kill a slot if an heir has forked it."""
        for heir in self.all.values():
            if number in heir.slots:
                self._schedule_poll()
                heir.discard_request(number)
                heir.probe.kills(number)
                if not _send(heir, KILL, number) and (pid := heir.slots[number]):
                    kill_group(pid)

    def _schedule_poll(self) -> None:
        """Begin to poll the heirs' probes, unless that is going on."""
        if not any(heir.probe.is_needed for heir in self.all.values()):
            self._poll_at = time.monotonic() + self._period

    def end(self) -> None:
        """Let the heirs end with their slots, and make no more of them."""
        self._ends = True
        for heir in self.all.values():
            if heir.ready:
                _send(heir, END, 0)
            else:
                os.kill(heir.pid, signal.SIGKILL)

    def pids(self) -> Iterator[int]:
        """The pids of all slots of heirs."""
        for heir in self.all.values():
            yield from filter(None, heir.slots.values())

    def kill_all(self) -> None:
        """Kill the heirs themselves."""
        for heir in self.all.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(heir.pid, signal.SIGKILL)

    # --- reports ---

    def _read_import_reports(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                data = self._import_reports.recv(_MESSAGE)
                with contextlib.suppress(ValueError, TypeError):  # a task may have written anything there
                    self._learn(*imports.parse(data))

    def _learn(self, names: list[str], variables: dict[str, str | None]) -> None:
        new = [name for name in names if name not in self._seen and name.partition(".")[0] not in self._refused]
        self._seen.update(new)
        self._names.update(dict.fromkeys(new))
        self._new += len(new)
        self._variables.update(variables)
        if new and self._new >= _MIN_MODULES:  # a slot that replaces another reports the same again
            self._due = max(time.monotonic() + _QUIET, self._earliest)

    def _read(self, heir: Heir) -> None:
        try:
            data = heir.sock.recv(REPORT.size * 64)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._bury(heir)
        for what, number, value in heir.reports.receive(data):
            heir.probe.heard(what, number)
            if what == TRYING:
                heir.at = number
            elif what == UP:
                heir.ready = True
                self.current = heir
            elif what != ECHO:
                heir.discard_request(number)
                if what == FORKED:
                    heir.slots[number] = value
                elif what != PEAK:
                    heir.slots.pop(number, None)
                self._report(what, number, value)
        for old in list(self.all.values()):
            if old.ready and old is not self.current and not old.slots:
                self._drop(old)

    def _bury(self, heir: Heir) -> None:
        """Clean up after an heir that has died: the kernel kills its slots, but not at once, nor what they started.

        Slots that it had not made are made here, so that no task handed to them is lost.
        """
        self._drop(heir)
        for number, pid in heir.slots.items():
            if pid:
                kill_group(pid)
            if number in heir.unborn:
                what, fds = heir.unborn[number]
                self._fork(what, number, fds)
            else:
                self._report(EXITED, number, HUNG if heir.hung else signal.SIGKILL)
        if heir.ready:
            return
        if heir.at < len(heir.names):
            self._refused.add(heir.names[heir.at].partition(".")[0])
            self._names = {name: None for name in self._names if name.partition(".")[0] not in self._refused}
        else:  # slots imported them under other environment variables
            self._names.clear()
        if len(self._names) >= _MIN_MODULES:
            self._due = max(time.monotonic() + _QUIET, self._earliest)

    def _drop(self, heir: Heir) -> None:
        assert self._poll is not None
        self._poll.unregister(heir.sock)
        del self.all[heir.sock.fileno()]
        heir.sock.close()  # which ends it if it lives
        if self.current is heir:
            self.current = None

    # --- making an heir ---

    def _make(self) -> None:
        names = list(self._names)
        self._new = 0
        now = time.monotonic()
        self._pause *= _SLOWER
        self._earliest = now + self._pause
        try:
            ours, theirs = socket.socketpair()
        except OSError:
            return  # slots keep importing for themselves
        with theirs:
            try:
                pid = os.fork()
            except OSError:
                ours.close()
                return
            if pid == 0:
                self._become(theirs, names, self._variables)
        ours.setblocking(False)  # an heir that hangs takes nothing more: its fork server must not wait for it
        heir = Heir(pid, ours, names, now + self._limit)
        self.all[ours.fileno()] = heir
        assert self._poll is not None
        self._poll.register(ours, select.POLLIN)


def _poll(heir: Heir) -> None:
    state = heir.probe.poll()
    if state is ProbeState.ASK:
        _send(heir, ECHO, 0)
    elif state is ProbeState.HUNG:
        heir.hung = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(heir.pid, signal.SIGKILL)  # its end follows


def _send(heir: Heir, what: int, number: int) -> bool:
    """Send a request; False if it has died, or takes no more: its socket or its probe will report it."""
    try:
        heir.sock.sendall(REQUEST.pack(what, number))
    except OSError:
        return False
    return True
