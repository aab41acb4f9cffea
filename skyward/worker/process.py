"""What a process of ours does about itself: its name, and forks of an agent that are agents of other nodes."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import time
from collections.abc import Iterable

from skyward.core.whoami import SLOT, CurrentWorker

__all__ = ["heed_interrupts", "ignore_interrupts", "kill_group", "multiply", "name_process", "reap", "sit_down"]


def name_process(name: str) -> None:
    """Tell ``top`` and ``pstree`` apart what has one command line; at most 15 characters, and on Linux only."""
    with contextlib.suppress(OSError):
        fd = os.open("/proc/self/comm", os.O_WRONLY)
        try:
            os.write(fd, name.encode())
        finally:
            os.close(fd)


def sit_down(node: str, seat: int | None) -> None:
    """Let tasks tell this slot from others, as they do with loky's workers and multiprocessing's.

    Parameters
    ----------
    node
        The node's name.
    seat
        The slot's number, from 1 on; None where tasks are threads, which have each their own.
    """
    from multiprocessing.process import current_process  # noqa: PLC0415 - slots have it, and the agent does without

    process = current_process()
    process.name = node if seat is None else str(CurrentWorker(node, seat))
    if seat is not None:
        process._identity = (seat,)  # noqa: SLF001 - it has no public name, and is what people ask
        os.environ[SLOT] = str(seat)


def ignore_interrupts() -> None:
    """Leave Ctrl-C, which reaches the whole terminal, to the driver.

    By a handler that does nothing: programs that tasks start would inherit `signal.SIG_IGN`, and could not be stopped.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _nothing)


def heed_interrupts() -> None:
    """Be interrupted as any Python is. Undoes `ignore_interrupts`; where SIGINT was ignored before, it still is."""
    if signal.getsignal(signal.SIGINT) is _nothing:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _nothing(*_: object) -> None:
    pass


def kill_group(pid: int) -> None:
    """SIGKILL to a slot, and to the group it leads unless it is too young to lead one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def multiply(pipes: Iterable[str]) -> list[int]:
    """Fork as often as there are pipes, ``IN,OUT``; each fork has them as standard input and output. Returns in all.

    Nodes on one machine share by this what an agent imports, and one interpreter's start.

    Returns
    -------
    list of int
        In this process the forks' pids; in a fork, none.
    """
    pairs = [tuple(map(int, pair.split(","))) for pair in pipes]
    pids: list[int] = []
    gc.freeze()  # else the collectors would write to every page of what they share
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
    """Strike off those that have ended, and wait a while for those that have not."""
    deadline = time.monotonic() + patience
    while True:
        for pid in list(pids):
            if os.waitpid(pid, os.WNOHANG)[0]:
                pids.remove(pid)
        if not pids or time.monotonic() >= deadline:
            return
        time.sleep(0.002)
