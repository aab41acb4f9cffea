"""Agents for tests, as forks of one process that has imported what agents need: importing it is most of their start.

Pools on this machine start agents in the same way (`skyward.worker.process.multiply`), only all of them at once.
"""

from __future__ import annotations

import functools
import gc
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from typing import IO

import msgpack

from skyward.core.system.launch import command
from skyward.worker import agent, slot  # noqa: F401 - what agents and slots share
from skyward.worker.forkserver import server  # noqa: F401 - as above
from tests.processes import alive

__all__ = ["Forked", "forked", "main"]

_PID = struct.Struct("!I")
_LARGEST = 1 << 17  # bytes of an environment


class Forked:
    """The part of `subprocess.Popen` that tests use, for an agent that is a grandchild."""

    def __init__(self, pid: int, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self.pid = pid
        self.stdin = stdin
        self.stdout = stdout

    def wait(self, timeout: float) -> None:
        """Wait for its end."""
        deadline = time.monotonic() + timeout
        while alive(self.pid):
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"agent {self.pid}", timeout)
            time.sleep(0.002)


@functools.cache
def _nursery(_: int, root: str) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start the process that forks agents for this one, with which it ends."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        program = [*command("tests.worker.nursery", root), str(theirs.fileno())]
        return ours, subprocess.Popen(program, cwd=root, pass_fds=[theirs.fileno()])


def forked(root: str) -> Forked:
    """Return a new agent, which waits for its start map; its environment is that of this moment."""
    nursery, _ = _nursery(os.getpid(), root)
    (their_in, our_in), (our_out, their_out) = os.pipe(), os.pipe()
    socket.send_fds(nursery, [msgpack.packb(dict(os.environb))], [their_in, their_out])
    for fd in (their_in, their_out):
        os.close(fd)
    (pid,) = _PID.unpack(nursery.recv(_PID.size))
    return Forked(pid, os.fdopen(our_in, "wb"), os.fdopen(our_out, "rb"))


def _reap(*_: object) -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _become(fds: list[int], environment: dict[bytes, bytes]) -> None:
    os.environb.clear()
    os.environb.update(environment)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for fd, target in zip(fds, (0, 1), strict=True):
        os.dup2(fd, target)
        os.close(fd)
    status = 1
    try:
        agent.main()
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def main() -> None:
    """Fork an agent for each pair of file descriptors that arrives, and report its pid."""
    requests = socket.socket(fileno=int(sys.argv.pop()))
    signal.signal(signal.SIGCHLD, _reap)
    gc.freeze()  # as in `multiply`
    while True:
        data, fds, _, _ = socket.recv_fds(requests, _LARGEST, 2)
        if not data:
            return
        pid = os.fork()
        if pid == 0:
            requests.close()
            _become(fds, msgpack.unpackb(data, raw=True))
        for fd in fds:
            os.close(fd)
        requests.send(_PID.pack(pid))
