"""The process that slots are forked from. It has one thread, runs no task, and is the only one that knows slots' pids.

Forking from a clean process with the usual modules loaded makes a slot in a few milliseconds, and no slot inherits
locks or sockets of somebody's threads. Commands come over a socket pair (see `control`); when that is closed without
`END`, the agent is dead, and everything here is killed.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import os
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NoReturn

import msgpack

from skyward.core.protocol.framing import read_frame
from skyward.core.whoami import Seats
from skyward.worker import blob_store, bridge, slot
from skyward.worker.forkserver import imports
from skyward.worker.forkserver.heirs import Heirs
from skyward.worker.forkserver.liveness import LIMITS, Limits
from skyward.worker.forkserver.protocol import (
    ECHO,
    END,
    EXITED,
    FAILED,
    FILES,
    FORK_SHARED,
    FORKED,
    KILL,
    REPORT,
    REQUEST,
    SEAT,
    TRYING,
    UP,
)
from skyward.worker.process import ignore_interrupts, kill_group, name_process, sit_down

__all__ = ["live", "main"]


class ForkServer:
    """Forks, kills and reaps.

    Parameters
    ----------
    control
        Socket to the agent.
    unborn
        What each fork becomes.
    scratch
        The agent's folders, to be removed if the agent can't.
    lore
        Where slots tell what they import; None in an heir, which does not learn.
    limits
        When an heir counts as hung.
    """

    def __init__(
        self,
        control: socket.socket,
        unborn: slot.Slot,
        scratch: Sequence[str] = (),
        lore: socket.socket | None = None,
        limits: Limits = LIMITS,
    ) -> None:
        self.control = control
        self.scratch = scratch
        self.unborn = unborn
        self.pids: dict[int, int] = {}  # slot -> pid
        self.slots: dict[int, int] = {}  # pid -> slot
        self.seats = Seats()
        self.seated: dict[int, int] = {}  # slot -> its number for tasks, unless threads share it or it is being killed
        self.deadline: float | None = None  # set when we are to end: what lives then is killed
        self.signals: dict[signal.Signals, Any] = {}  # what became of them before they were ours
        self.heirs = Heirs(lore, self.relay, self.bequeath, self.fork, limits=limits) if lore is not None else None
        self.seat: int | None = None  # of the next slot, where another one gives them out
        self._wake, self._woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def __repr__(self) -> str:
        return f"<ForkServer of {len(self.pids)} slots>"

    def serve(self) -> None:
        """Until the agent says END and all slots have gone, or until the agent is dead."""
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
        self.kill_all()

    def is_needed(self) -> bool:
        """Whether slots live, or heirs, whose slots may."""
        return bool(self.pids or (self.heirs is not None and self.heirs.all))

    def patience(self) -> float | None:
        """Milliseconds until there is something to do, if nobody says anything before."""
        times = [self.deadline, self.heirs.next if self.heirs is not None else None]
        return min((max(0.0, at - time.monotonic()) * 1000 for at in times if at is not None), default=None)

    def obey(self) -> bool:
        """Read one command; False when the agent is gone."""
        try:
            data, fds, _, _ = socket.recv_fds(self.control, REQUEST.size, FILES)
        except OSError:
            return False
        if len(data) < REQUEST.size:
            return False
        what, number = REQUEST.unpack(data)
        if what == KILL:
            if number in self.pids:
                kill_group(self.pids[number])
            elif self.heirs is not None:
                self.heirs.kill(number)
            self.rise(number)  # now, since the one that comes in its place may be asked for already
        elif what == SEAT:
            self.seat = number
        elif what == ECHO:
            self.report(ECHO, number, 0)
        elif what == END:
            self.deadline = time.monotonic() + self.unborn.settings.grace
            if self.heirs is not None:
                self.heirs.end()
        else:
            self.seat_and_fork(what, number, fds)
        return True

    def seat_and_fork(self, what: int, number: int, fds: list[int]) -> None:
        """Make a slot, out of this process or of one that has imported more."""
        if what != FORK_SHARED:
            self.seated[number] = self.seats.take() if self.seat is None else self.seat
        if len(fds) != FILES or not self.heirs or not self.heirs.fork(what, number, self.seated.get(number, 0), fds):
            self.fork(what, number, fds)

    def fork(self, what: int, number: int, fds: list[int]) -> None:
        """Make a slot out of this process."""
        try:
            if len(fds) != FILES:
                raise OSError(errno.EMFILE, "no file descriptors came with the request")
            parent = os.getpid()
            pid = os.fork()
        except OSError as error:
            pid = -1
            self.rise(number)
            self.report(FAILED, number, error.errno or errno.EAGAIN)
        if pid == 0:
            self.become(number, what == FORK_SHARED, fds, parent)
        for fd in fds:
            os.close(fd)
        if pid > 0:
            self.pids[number] = pid
            self.slots[pid] = number
            self.report(FORKED, number, pid)

    def rise(self, number: int) -> None:
        """A slot needs its number no more."""
        if (seat := self.seated.pop(number, None)) is not None:
            self.seats.release(seat)

    def relay(self, what: int, number: int, value: int) -> None:
        """An heir's report."""
        if what in (EXITED, FAILED):
            self.rise(number)
        self.report(what, number, value)

    def bequeath(self, control: socket.socket, names: list[str], variables: dict[str, str | None]) -> NoReturn:
        """In a new child: import, and fork slots from then on. Never returns."""
        try:
            parent = os.getppid()
            self.leave(parent)
            name_process("skyward-forks")
            slot.close_all(keep={0, 1, 2, control.fileno(), self.unborn.imports.fd})
            heir = ForkServer(control, self.unborn)
            imports.learn(names, variables, lambda index: heir.report(TRYING, index, 0))
            self.unborn.imports.renew()
            gc.collect()
            gc.freeze()
            die_with_parent(parent, signal.SIGTERM)
            heir.report(UP, 0, 0)
            heir.serve()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)

    def leave(self, parent: int) -> None:
        """In a child: be no fork server any more."""
        signal.set_wakeup_fd(-1)
        for caught, before in self.signals.items():
            signal.signal(caught, before)
        die_with_parent(parent, signal.SIGKILL)
        self.control.detach()  # its number is closed with all others, and may then be another file

    def become(self, number: int, shared: bool, fds: list[int], parent: int) -> NoReturn:
        """In the child: a slot's life. Never returns."""
        code = 70
        try:
            self.leave(parent)
            name_process("skyward-slot")
            sit_down(self.unborn.settings.node, self.seated.get(number))
            code = slot.live(self.unborn, number, shared, *fds)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)

    def reap(self) -> None:
        """Report the slots that have ended, after ending what they have left running."""
        while True:
            try:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            except ChildProcessError:
                return
            if info is None:
                return
            kill_group(info.si_pid)  # while it is a zombie its number can't be anybody else's
            _, status = os.waitpid(info.si_pid, 0)
            number = self.slots.pop(info.si_pid, None)
            if number is not None:
                del self.pids[number]
                self.rise(number)
                self.report(EXITED, number, status)

    def orphaned(self) -> None:
        """The agent was killed: clear up in its place. Or an heir's fork server was, or needs the heir no more."""
        self.kill_slots()
        if self.heirs is None:
            os._exit(0)
        for folder in self.scratch:
            shutil.rmtree(folder, ignore_errors=True)
        blob_store.sweep()
        os._exit(0)

    def kill_all(self) -> None:
        """Kill every slot and what it started, and end."""
        self.kill_slots()
        os._exit(0)

    def kill_slots(self) -> None:
        """Kill them, and what they have started."""
        for pid in [*self.slots, *(self.heirs.pids() if self.heirs is not None else ())]:
            kill_group(pid)
        if self.heirs is not None:
            self.heirs.kill_all()

    def report(self, what: int, number: int, value: int) -> None:
        """Tell the agent; if it is gone we learn so from the socket."""
        with contextlib.suppress(OSError):
            self.control.sendall(REPORT.pack(what, number, value))


@cache
def _prctl() -> Callable[..., int]:
    """The kernel call; found in the fork server, and not again in each slot."""
    import ctypes  # noqa: PLC0415 - not needed everywhere

    call: Callable[..., int] = ctypes.CDLL(None, use_errno=True).prctl
    return call


def die_with_parent(parent: int, how: signal.Signals) -> None:
    """Ask the kernel (Linux) for a signal when the parent ends; end now if it has ended already."""
    if sys.platform == "linux":
        _prctl()(1, int(how), 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(0)


def prepare(config: dict[str, Any]) -> None:
    """Make this process what every slot shall find: variables, path, folder, modules."""
    root, path = config["root"], config["path"]
    # The owner's, in its order. Our own code, which was put first to be found, comes last unless that has it elsewhere.
    path += [folder for folder in sys.path if folder not in path and folder != root]
    sys.path[:] = path if root in path else [*path, root]
    os.environ.clear()
    os.environ.update(config["env"])
    sys.argv = list(config["argv"])
    if config["cwd"] is not None:
        os.chdir(config["cwd"])
    for name in config["preload"]:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def read_config(control: socket.socket) -> dict[str, Any]:
    """The first thing on the control socket: length and msgpack."""
    try:
        packed = read_frame(control.recv)
    except EOFError:
        raise SystemExit from None  # the agent has ended, or has no use for us
    config: dict[str, Any] = msgpack.unpackb(packed, unicode_errors="surrogatepass")
    return config


def live(control: socket.socket) -> None:
    """Be the fork server at the other end of this socket."""
    name_process("skyward-forks")
    config = read_config(control)
    die_with_parent(config["agent"], signal.SIGKILL)  # an import can hang, and there are no slots yet
    prepare(config)
    bridge.install(config["bridge"])  # here, since it imports much; slots inherit it
    slot.settle_in()
    settings = slot.Settings(**{name: config[name] for name in ("node", "around", "threads", "result_files", "data")})
    lore, told = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for sock in (lore, told):
        sock.setblocking(False)
    server = ForkServer(control, slot.Slot(settings, told.detach()), config["scratch"], lore, Limits(*config["limits"]))
    gc.collect()
    gc.freeze()
    die_with_parent(config["agent"], signal.SIGTERM)  # from now on there is something to clear up
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
