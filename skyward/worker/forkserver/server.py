"""The process that slots are forked from. It has one thread, runs no task, and is the slots' parent.

Forking a clean process that has loaded the usual modules makes a slot in a few milliseconds, and no slot inherits locks
or sockets of other threads. Requests arrive over a socket pair (see protocol.py); if that is closed without `END`, the
agent is dead, and everything here is killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import gc
import importlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import msgpack

from skyward.core.protocol.framing import read_frame
from skyward.worker import arrivals, blob_store, bridge, scratch, slot
from skyward.worker.forkserver import imports
from skyward.worker.forkserver.heirs import Heirs
from skyward.worker.forkserver.liveness import LIMITS, Limits
from skyward.worker.forkserver.protocol import (
    ECHO,
    END,
    EXITED,
    FAILED,
    FILES,
    FORK_ISOLATED,
    FORK_SHARED,
    FORKED,
    KILL,
    PEAK,
    REPORT,
    REQUEST,
    SEAT,
    SEATED,
    TRYING,
    UP,
)
from skyward.worker.forkserver.seating import Seating
from skyward.worker.process import (
    die_with_parent,
    ignore_interrupts,
    kill_group,
    name_process,
    reap_group,
    sit_down,
    watch_parent,
)

__all__ = ["gpu_device", "live", "main"]

_MAX_VALUE = 2**31 - 1  # of a report


class ForkServer:
    """Forks, kills and reaps slots.

    Parameters
    ----------
    control
        Socket to the agent.
    unborn
        The slot that each fork becomes.
    scratch
        The agent's folders, to be removed if the agent can't.
    import_reports
        Socket on which slots report what they import; None in an heir, which makes no heirs.
    limits
        When an heir counts as hung.
    """

    def __init__(
        self,
        control: socket.socket,
        unborn: slot.Slot,
        scratch: Sequence[str] = (),
        import_reports: socket.socket | None = None,
        limits: Limits = LIMITS,
    ) -> None:
        self.control = control
        self.scratch = scratch
        self.unborn = unborn
        self.pid = os.getpid()  # which its children can't ask for once it is dead
        self.pids: dict[int, int] = {}  # slot -> pid
        self.slots: dict[int, int] = {}  # pid -> slot
        self.seating: Seating[tuple[int, list[int]]] = Seating(len(unborn.settings.gpus))
        self.deadline: float | None = None  # when to end and kill what still lives, once END has arrived
        self.signals: dict[signal.Signals, Any] = {}  # handlers before ours
        self.heirs = (
            Heirs(import_reports, self._relay, self._run_heir, self._fork, limits=limits)
            if import_reports is not None
            else None
        )
        self.seat: int | None = None  # of the next slot, in an heir
        self._partial, self._files = b"", list[int]()  # of a request that has not arrived whole; see `Records`
        self._wake, self._woken = os.pipe()
        for fd in (self._wake, self._woken):
            os.set_blocking(fd, False)

    def __repr__(self) -> str:
        return f"<ForkServer of {len(self.pids)} slots>"

    def serve(self) -> None:
        """Run until the agent has sent END and all slots have ended, or until the agent is dead."""
        signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        self.signals = {
            signal.SIGCHLD: signal.signal(signal.SIGCHLD, lambda *_: None),
            signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: self.orphaned()),
        }
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(self.control, select.POLLIN)
        if self.heirs is not None:
            self.heirs.watch(poll)
        while self.deadline is None or (self.is_needed() and time.monotonic() < self.deadline):
            events = dict(poll.poll(self.patience()))
            if self._wake in events:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake, 4096)
                self.reap()
            if self.control.fileno() in events and not self.obey():
                self.orphaned()
            if self.heirs is not None:
                self.heirs.attend(events)
            self._attend_waiting()
        self.kill_all()

    def is_needed(self) -> bool:
        """Whether slots live, or heirs, which may have slots."""
        return bool(self.pids or (self.heirs is not None and self.heirs.all))

    def patience(self) -> float | None:
        """Return milliseconds until there is something to do, if nothing arrives before; None for never."""
        times = [self.deadline, self.heirs.next if self.heirs is not None else None, self.seating.next]
        return min((max(0.0, at - time.monotonic()) * 1000 for at in times if at is not None), default=None)

    def obey(self) -> bool:
        """Read no more than one request, and carry it out once it is whole; False if the agent is gone."""
        try:
            data, fds, _, _ = socket.recv_fds(self.control, REQUEST.size - len(self._partial), FILES)
        except OSError:
            return False
        partial, files = self._partial + data, [*self._files, *fds]
        if len(partial) < REQUEST.size:
            self._partial, self._files = partial, files
            return bool(data)
        self._partial, self._files = b"", []
        what, number = REQUEST.unpack(partial)
        self._REQUESTS[what](self, what, number, files)
        return True

    def _kill(self, _: int, number: int, __: list[int]) -> None:
        if number in self.pids:
            kill_group(self.pids[number])
        elif self.heirs is not None:
            self.heirs.kill(number)
        if (request := self.seating.withdraw(number)) is not None:
            _close(request[1])
            self.report(EXITED, number, signal.SIGKILL)
        self.seating.killed(number)

    def _set_seat(self, _: int, number: int, __: list[int]) -> None:
        self.seat = number

    def _echo(self, _: int, number: int, __: list[int]) -> None:
        self.report(ECHO, number, 0)

    def _end(self, *_: object) -> None:
        self.deadline = time.monotonic() + self.unborn.settings.grace
        if self.heirs is not None:
            self.heirs.end()

    def _seat_and_fork(self, what: int, number: int, fds: list[int]) -> None:
        """Fork a slot, from this process or from an heir."""
        seating = self.seating
        if not seating.has_place:
            seating.wait(number, (what, fds), time.monotonic())
            return
        if what != FORK_SHARED:
            if self.seat is None:
                self.report(SEATED, number, seating.take(number))
            else:  # an heir is told by its fork server
                seating.seated[number] = self.seat
        if len(fds) != FILES or not self.heirs or not self.heirs.fork(what, number, seating.seated.get(number, 0), fds):
            self._fork(what, number, fds)

    def _attend_waiting(self) -> None:
        """Fork the slots whose GPUs have become free, and give up those whose predecessors don't end."""
        for number, (what, fds), has_place in self.seating.due(time.monotonic()):
            if has_place:
                self._seat_and_fork(what, number, fds)
            else:
                _close(fds)
                self.report(FAILED, number, errno.EBUSY)

    def _fork(self, what: int, number: int, fds: list[int]) -> None:
        """Fork a slot from this process."""
        try:
            if len(fds) != FILES:
                raise OSError(errno.EMFILE, "no file descriptors came with the request")
            pid = os.fork()
        except OSError as error:
            pid = -1
            self.seating.release(number)
            self.report(FAILED, number, error.errno or errno.EAGAIN)
        if pid == 0:
            self._run_slot(number, what == FORK_SHARED, fds)
        for fd in fds:
            os.close(fd)
        if pid > 0:
            self.pids[number] = pid
            self.slots[pid] = number
            self.report(FORKED, number, pid)

    _REQUESTS: ClassVar[dict[int, Callable[[ForkServer, int, int, list[int]], None]]] = {
        KILL: _kill,
        SEAT: _set_seat,
        ECHO: _echo,
        END: _end,
        FORK_ISOLATED: _seat_and_fork,
        FORK_SHARED: _seat_and_fork,
    }

    def _relay(self, what: int, number: int, value: int) -> None:
        """Pass on an heir's report."""
        if what in (EXITED, FAILED):
            self.seating.release(number)
        self.report(what, number, value)

    def _run_heir(self, control: socket.socket, names: list[str], variables: dict[str, str | None]) -> NoReturn:
        """Run as an heir in a new child: import, and fork slots from then on. Never returns."""
        try:
            self.leave()
            name_process("skyward-forks")
            slot.close_all(keep={0, 1, 2, control.fileno(), self.unborn.imports.fd})
            heir = ForkServer(control, self.unborn)
            with _kept():
                imports.import_ahead(names, variables, lambda index: heir.report(TRYING, index, 0))
            self.unborn.imports.renew()
            die_with_parent(self.pid, signal.SIGTERM)
            heir.report(UP, 0, 0)
            heir.serve()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)

    def leave(self) -> None:
        """Stop being a fork server, in a child."""
        signal.set_wakeup_fd(-1)
        for caught, before in self.signals.items():
            signal.signal(caught, before)
        die_with_parent(self.pid, signal.SIGKILL)
        self.control.detach()  # its descriptor is closed with all others, and may then be another file's

    def _run_slot(self, number: int, shared: bool, fds: list[int]) -> NoReturn:
        """Run as a slot in the child. Never returns."""
        code = 70
        try:
            self.leave()
            watch_parent(self.pid)
            name_process("skyward-slot")
            sit_down(self.unborn.settings.node, seat := self.seating.seated.get(number))
            self.unborn.seat = seat or 0
            if self.unborn.settings.gpus:
                assert seat is not None, "threads of one process have no GPUs of their own"
                self.unborn.take_gpus(seat)
            code = slot.live(self.unborn, number, shared, *fds)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)

    def reap(self) -> None:
        """Report the slots that have ended, after killing what they left running."""
        while (ended := reap_group()) is not None:
            pid, status, usage = ended
            number = self.slots.pop(pid, None)
            if number is not None:
                del self.pids[number]
                self.seating.release(number)
                if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
                    self.report(PEAK, number, min(usage.ru_maxrss, _MAX_VALUE))
                self.report(EXITED, number, status)

    def orphaned(self) -> None:
        """Clean up, since the agent was killed; or end as an heir whose fork server was killed or has dropped it."""
        self.kill_slots()
        if self.heirs is None:
            os._exit(0)
        for folder in self.scratch:
            scratch.remove(folder)
        blob_store.sweep()
        os._exit(0)

    def kill_all(self) -> None:
        """Kill every slot and everything that it started, and end."""
        self.kill_slots()
        os._exit(0)

    def kill_slots(self) -> None:
        """Kill every slot and everything that it started."""
        for pid in [*self.slots, *(self.heirs.pids() if self.heirs is not None else ())]:
            kill_group(pid)
        if self.heirs is not None:
            self.heirs.kill_all()

    def report(self, what: int, number: int, value: int) -> None:
        """Report to the agent; no effect if it is gone, which reading the socket will show.

        Parameters
        ----------
        what
            A report of protocol.py.
        number
            The slot's number; 0 if it concerns none.
        value
            See protocol.py.
        """
        with contextlib.suppress(OSError):
            self.control.sendall(REPORT.pack(what, number, value))


@contextlib.contextmanager
def _kept() -> Iterator[None]:
    """Keep for good what is made in this block: mostly modules, which need not be looked through again and again."""
    before, rarely = gc.get_threshold(), (1_000_000, 100, 100)
    gc.set_threshold(*rarely)
    yield
    if gc.get_threshold() == rarely:  # no module has set it
        gc.set_threshold(*before)
    gc.collect()
    gc.freeze()


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def prepare(config: dict[str, Any]) -> None:
    """Prepare this process as all slots need it: variables, path, working directory, modules."""
    root, path = config["root"], config["path"]
    # The owner's path, in its order. skyward's own folder came first, and comes last unless the owner's path has it.
    path += [folder for folder in sys.path if folder not in path and folder != root]
    sys.path[:] = path if root in path else [*path, root]
    os.environ.clear()
    os.environ.update(config["env"])
    time.tzset()
    sys.argv = list(config["argv"])
    if config["cwd"] is not None:
        os.chdir(config["cwd"])
    for name in config["preload"]:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
        if config["gpus"] and (device := gpu_device(_open_files())):
            raise SystemExit(
                f"Image(preload=[{name!r}]): the import opens {device}, and forks of a process that has opened a GPU "
                "can't use it; leave it out, so that each slot imports it"
            )


def _open_files() -> list[str]:
    found: list[str] = []
    with contextlib.suppress(OSError):
        for path in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):  # the descriptor of the listing itself
                found.append(str(path.readlink()))
    return found


def gpu_device(files: Iterable[str]) -> str | None:
    """The first of these files that is a GPU's device."""
    return next((file for file in files if file.startswith(("/dev/nvidia", "/dev/dxg", "/dev/kfd", "/dev/dri/"))), None)


def read_config(control: socket.socket) -> dict[str, Any]:
    """Read the configuration, which comes first on the control socket: length and msgpack."""
    try:
        packed = read_frame(control.recv)
    except EOFError:
        raise SystemExit from None  # the agent has ended, or does not need this process
    config: dict[str, Any] = msgpack.unpackb(packed, unicode_errors="surrogatepass")
    return config


def live(control: socket.socket) -> None:
    """Run the fork server at the other end of this socket."""
    name_process("skyward-forks")
    config = read_config(control)
    die_with_parent(config["agent"], signal.SIGKILL)  # an import can hang, and there are no slots yet
    with _kept():
        prepare(config)
        bridge.install(config["bridge"])  # here, since it imports a lot; slots inherit it
        slot.prepare_modules()
        arrivals.install()
        settings = slot.Settings(**{field.name: config[field.name] for field in dataclasses.fields(slot.Settings)})
        reports, slots_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for sock in (reports, slots_end):
            sock.setblocking(False)
        unborn = slot.Slot(settings, slots_end.detach())
        server = ForkServer(control, unborn, config["scratch"], reports, Limits(*config["limits"]))
    if not imports.CAN_CHECK:
        server.unborn.imports.stop()
    die_with_parent(config["agent"], signal.SIGTERM)  # from now on there is something to clean up
    server.report(UP, 0, 0)
    server.serve()


def main() -> None:
    """Run as a program, on the inherited socket whose number is the argument."""
    ignore_interrupts()
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    live(control)


if __name__ == "__main__":
    main()
