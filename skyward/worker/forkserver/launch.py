"""How a fork server is started: as a fork of the agent, or as a program of its own.

A fork is available at once, and shares with the agent the memory of all that both have imported, which leaves more for
tasks on a small machine. It is made before the agent has a loop, a session or an owner, so it inherits nothing of them.
A program is started instead if the user sets environment variables, since some take effect only when an interpreter
starts, and to replace a fork server that has died.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn, Protocol, cast

import skyward.worker
from skyward.core.system.launch import command

__all__ = ["ROOT", "ForkServerProcess", "forked", "started"]

ROOT = str(Path(skyward.worker.__file__).parent.parent.parent)
"""The folder or archive that contains skyward."""

_KILLED = 5.0  # seconds that the kernel may take to end it
_HEIRS = 1.0  # seconds that heirs may take to end with their fork server
_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)  # as this process was started


class _Process(Protocol):
    """The part of `subprocess.Popen` that is needed for a fork server."""

    pid: int
    returncode: int | None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its exit code; raises `subprocess.TimeoutExpired`."""


@dataclass(frozen=True)
class ForkServerProcess:
    """A fork server's process.

    Attributes
    ----------
    control
        Socket, see `skyward.worker.forkserver.protocol`; it first expects its configuration there.
    output
        Read end of the pipe that it prints to.
    """

    process: _Process
    control: socket.socket
    output: IO[bytes]

    def ends_within(self, seconds: float) -> bool:
        """Wait for its end. It is not reaped: its pid, which is also its group's, is not reused before `kill`."""
        deadline = time.monotonic() + seconds
        while self.process.returncode is None:
            if self._has_ended():
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.001)
        return True

    def _has_ended(self) -> bool:
        if hasattr(os, "waitid"):
            return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        poll = select.poll()
        poll.register(self.control, 0)  # reports only its end
        return bool(poll.poll(0))

    def kill(self) -> None:
        """Kill it and its heirs, even those that hang, and close its files; may be repeated.

        Heirs learn of its end from the kernel, and kill their slots with all that these have started before they end
        themselves, so they get a moment for that. Once they have ended, nobody holds the pipe that it prints to.
        """
        if self.process.returncode is None:
            os.kill(self.process.pid, signal.SIGKILL)
            poll = select.poll()
            poll.register(self.output, 0)  # reports only its end
            poll.poll(_HEIRS * 1000)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            with contextlib.suppress(
                subprocess.TimeoutExpired
            ):  # it may hang in the kernel, as one that waits for FUSE
                self.process.wait(_KILLED)
        self.control.close()
        self.output.close()


def started(env: Mapping[str, str]) -> ForkServerProcess:
    """Start a program in this environment."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [*command("skyward.worker.forkserver.server", ROOT), str(theirs.fileno())],
            env=env,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    if hasattr(resource, "prlimit"):  # the agent has raised its own limit, which programs of tasks would inherit
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, _FILES)
    return ForkServerProcess(process, ours, cast("IO[bytes]", process.stdout))


def forked() -> ForkServerProcess:
    """Fork this process, which must have one thread."""
    ours, theirs = socket.socketpair()
    read, write = os.pipe()
    gc.freeze()  # as in `process.multiply`
    pid = os.fork()
    if pid == 0:
        _become(theirs, write)
    theirs.close()
    os.close(write)
    return ForkServerProcess(_Fork(pid), ours, os.fdopen(read, "rb", buffering=0))


def _become(control: socket.socket, output: int) -> NoReturn:
    """Run the fork server in the child. Never returns, since the callers are the agent's."""
    status = 1
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDONLY)
        for fd, target in ((null, 0), (output, 1), (output, 2)):
            os.dup2(fd, target)
        from skyward.worker import slot  # noqa: PLC0415 - the agent does not need them, nor wait for them
        from skyward.worker.forkserver import server  # noqa: PLC0415 - the agent does not need them, nor wait for them

        slot.close_all(keep={0, 1, 2, control.fileno()})
        server.live(control)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(Exception):  # a preloaded module may have left it in any state
            sys.stdout.flush()
        os._exit(status)


class _Fork:
    """The interface of `subprocess.Popen` for a fork."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def __repr__(self) -> str:
        return f"<fork {self.pid}, {'running' if self.returncode is None else self.returncode}>"

    def poll(self) -> int | None:
        """Return its exit code if it has ended."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its exit code by polling, as `subprocess` does."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(repr(self), timeout or 0.0)
            time.sleep(0.001)
        return status
