"""Names and signals of skyward's own processes, and forking further agents from an agent."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from functools import cache

from skyward.core.whoami import SLOT, CurrentWorker

__all__ = [
    "die_with_parent",
    "heed_interrupts",
    "ignore_interrupts",
    "kill_group",
    "multiply",
    "name_process",
    "reap",
    "reap_group",
    "sit_down",
    "watch_parent",
]

_LOOK = 0.5  # seconds between checks for the parent


def name_process(name: str) -> None:
    """Set the name that ``top`` and ``pstree`` show, at most 15 characters; Linux only."""
    with contextlib.suppress(OSError):
        fd = os.open("/proc/self/comm", os.O_WRONLY)
        try:
            os.write(fd, name.encode())
        finally:
            os.close(fd)


def sit_down(node: str, seat: int | None) -> None:
    """Let tasks tell this slot from others, as they can with the workers of loky and multiprocessing.

    Parameters
    ----------
    node
        The node's name.
    seat
        The slot's number, from 1; None where tasks are threads, each of which has its own number.
    """
    from multiprocessing.process import current_process  # noqa: PLC0415 - slots have loaded it, and the agent does not need it

    process = current_process()
    process.name = node if seat is None else str(CurrentWorker(node, seat))
    if seat is not None:
        process._identity = (seat,)  # noqa: SLF001 - it has no public name, and people do use it
        os.environ[SLOT] = str(seat)


def ignore_interrupts() -> None:
    """Leave Ctrl-C, which the whole terminal receives, to the driver.

    The handler does nothing. `signal.SIG_IGN` would be inherited by programs that tasks start, which could then not be
    interrupted.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _nothing)


def heed_interrupts() -> None:
    """Let SIGINT interrupt this process again, after `ignore_interrupts`; if it was ignored before, it still is."""
    if signal.getsignal(signal.SIGINT) is _nothing:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _nothing(*_: object) -> None:
    pass


def kill_group(pid: int) -> None:
    """Send SIGKILL to a slot, and to the process group it leads, which a very new one does not yet."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def reap_group() -> tuple[int, int, resource.struct_rusage] | None:
    """Reap a child that has ended, after killing what it left running; None if none has ended.

    Returns
    -------
    tuple of int, int and struct_rusage
        Its pid, its status, and what it used.
    """
    try:
        if hasattr(os, "waitid"):
            info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            if info is None:
                return None
            kill_group(info.si_pid)  # while it is a zombie its pid is not reused
            return os.wait4(info.si_pid, 0)
        pid, status, usage = os.wait4(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    if not pid:
        return None
    kill_group(pid)  # macOS gives pids out in turn, so this one is not reused so soon
    return pid, status, usage


@cache
def _prctl() -> Callable[..., int]:
    """Look up the system call, once in the fork server instead of in each slot."""
    import ctypes  # noqa: PLC0415 - only needed on Linux

    call: Callable[..., int] = ctypes.CDLL(None, use_errno=True).prctl
    return call


def die_with_parent(parent: int, how: signal.Signals) -> None:
    """Let the kernel (Linux) send a signal when the parent ends; end now if it has ended already."""
    if sys.platform == "linux":
        _prctl()(1, int(how), 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(0)


def watch_parent(parent: int) -> None:
    """Where the kernel does not do that, end this process, and all that it has started, soon after its parent."""
    if sys.platform != "linux":
        threading.Thread(target=_outlive, args=(parent,), name="skyward-parent", daemon=True).start()


def _outlive(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK)
    kill_group(os.getpid())


def multiply(pipes: Iterable[str]) -> list[int]:
    """Fork once per pair of pipes, ``IN,OUT``, which become a fork's standard input and output. Returns in all of them.

    Agents of several nodes on one machine so share the start of one interpreter, and the memory of what it imported.

    Returns
    -------
    list of int
        The forks' pids; empty in a fork.
    """
    pairs = [tuple(map(int, pair.split(","))) for pair in pipes]
    pids: list[int] = []
    gc.freeze()  # otherwise the garbage collectors would write to every shared page
    for source, target in pairs:
        pid = os.fork()
        if pid == 0:
            os.dup2(source, 0)
            os.dup2(target, 1)
            pids.clear()
            break
        pids.append(pid)
    for pair in pairs:
        for fd in pair:
            os.close(fd)
    return pids


def reap(pids: list[int], patience: float = 0.0) -> None:
    """Remove the processes that have ended from the list, waiting up to `patience` seconds for the others."""
    deadline = time.monotonic() + patience
    while True:
        for pid in list(pids):
            if os.waitpid(pid, os.WNOHANG)[0]:
                pids.remove(pid)
        if not pids or time.monotonic() >= deadline:
            return
        time.sleep(0.002)
