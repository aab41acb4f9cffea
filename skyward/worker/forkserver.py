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
import struct
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NoReturn

import msgpack

from skyward.core.whoami import Seats
from skyward.worker import bridge, slot, store
from skyward.worker.control import END, EXITED, FAILED, FILES, FORK_SHARED, FORKED, KILL, REPORT, REQUEST, UP
from skyward.worker.process import ignore_interrupts, name_process, sit_down

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
    """

    def __init__(self, control: socket.socket, unborn: slot.Slot, scratch: Sequence[str]) -> None:
        self.control = control
        self.scratch = scratch
        self.unborn = unborn
        self.pids: dict[int, int] = {}  # slot -> pid
        self.slots: dict[int, int] = {}  # pid -> slot
        self.seats = Seats()
        self.seated: dict[int, int] = {}  # slot -> its number for tasks, unless threads share it or it is being killed
        self.deadline: float | None = None  # set when we are to end: what lives then is killed
        self.signals: dict[signal.Signals, Any] = {}  # what became of them before they were ours
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
        while self.deadline is None or (self.pids and time.monotonic() < self.deadline):
            wait = None if self.deadline is None else max(0.0, self.deadline - time.monotonic()) * 1000
            events = dict(poll.poll(wait))
            if self._wake in events:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake, 4096)
                self.reap()
            if self.control.fileno() in events and not self.obey():
                self.orphaned()
        self.kill_all()

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
            self.rise(number)  # now, since the one that comes in its place may be asked for already
        elif what == END:
            self.deadline = time.monotonic() + self.unborn.settings.grace
        else:
            self.fork(number, what == FORK_SHARED, fds)
        return True

    def fork(self, number: int, shared: bool, fds: list[int]) -> None:
        """Make a slot out of this process."""
        try:
            if len(fds) != FILES:
                raise OSError(errno.EMFILE, "no file descriptors came with the request")
            parent = os.getpid()
            if not shared:
                self.seated[number] = self.seats.take()
            pid = os.fork()
        except OSError as error:
            pid = -1
            self.rise(number)
            self.report(FAILED, number, error.errno or errno.EAGAIN)
        if pid == 0:
            self.become(number, shared, fds, parent)
        for fd in fds:
            os.close(fd)
        if pid > 0:
            self.pids[number] = pid
            self.slots[pid] = number
            self.report(FORKED, number, pid)

    def rise(self, number: int) -> None:
        """A slot needs its number no more."""
        if (seat := self.seated.pop(number, None)) is not None:
            self.seats.give_back(seat)

    def become(self, number: int, shared: bool, fds: list[int], parent: int) -> NoReturn:
        """In the child: a slot's life. Never returns."""
        code = 70
        try:
            signal.set_wakeup_fd(-1)
            for caught, before in self.signals.items():
                signal.signal(caught, before)
            die_with_parent(parent, signal.SIGKILL)
            self.control.detach()  # its number is closed with all others, and may then be another file
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
        """The agent was killed: clear up in its place."""
        for pid in self.slots:
            kill_group(pid)
        for folder in self.scratch:
            shutil.rmtree(folder, ignore_errors=True)
        store.sweep()
        os._exit(0)

    def kill_all(self) -> None:
        """Kill every slot and what it started, and end."""
        for pid in self.slots:
            kill_group(pid)
        os._exit(0)

    def report(self, what: int, number: int, value: int) -> None:
        """Tell the agent; if it is gone we learn so from the socket."""
        with contextlib.suppress(OSError):
            self.control.sendall(REPORT.pack(what, number, value))


def kill_group(pid: int) -> None:
    """SIGKILL to a slot, and to the group it leads unless it is too young to lead one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


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
    head = control.recv(4, socket.MSG_WAITALL)
    if not head:
        raise SystemExit  # the agent has ended, or has no use for us
    (length,) = struct.unpack("!I", head)
    config: dict[str, Any] = msgpack.unpackb(control.recv(length, socket.MSG_WAITALL))
    return config


def live(control: socket.socket) -> None:
    """Be the fork server at the other end of this socket."""
    name_process("skyward-forks")
    config = read_config(control)
    die_with_parent(config["agent"], signal.SIGKILL)  # an import can hang, and there are no slots yet
    prepare(config)
    bridge.install(config["bridge"])  # here, since it imports much; slots inherit it
    slot.settle_in()
    settings = slot.Settings(**{name: config[name] for name in ("node", "around", "threads", "shelf", "data")})
    server = ForkServer(control, slot.Slot(settings), config["scratch"])
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
