"""Starts and ends agents as processes of this machine: one is our child, others started with it are its forks.

`local` decides when.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import selectors
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from typing import IO

import msgpack

from skyward.core.errors import ProvisioningError
from skyward.core.protocol.framing import frame
from skyward.core.system.launch import command

__all__ = ["Process", "greet", "start"]

_START = 30.0  # seconds within which an agent must listen
_PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Process:
    """The process of an agent.

    Parameters
    ----------
    child
        The agent itself, or the agent whose fork it is.
    lifeline, said
        Its standard input, whose end makes it exit, and its standard output.
    """

    def __init__(self, child: subprocess.Popen[bytes], lifeline: IO[bytes], said: IO[bytes]) -> None:
        self.lifeline = lifeline
        self.said = said
        self.pid = 0
        self._child = child
        self._fd: int | None = None  # identifies a fork, whose pid may be reused

    def __repr__(self) -> str:
        return f"<agent {self.pid or 'of unknown number'}, from {self._child.pid}>"

    def met(self, pid: int) -> None:
        """Note the pid that the agent has reported."""
        self.pid = pid
        if pid != self._child.pid and sys.platform == "linux":  # elsewhere each is a child of ours
            self._fd = os.pidfd_open(pid)

    @property
    def is_alive(self) -> bool:
        """Whether it is running."""
        return not self._wait(0.0)

    def let_go(self) -> None:
        """Cut the lifeline."""
        for pipe in (self.lifeline, self.said):
            with contextlib.suppress(OSError):
                pipe.close()

    def end(self, patience: float) -> None:
        """Wait up to `patience` seconds for it to exit, then kill it. Call this once."""
        if not self._wait(patience):
            if self._fd is not None and sys.platform == "linux":
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)
            else:
                self._child.kill()
            self._wait(None)
        self._forget()

    def kill(self) -> None:
        """Kill it at once, with all agents that were started with it. Instead of `end`; may be repeated."""
        self.let_go()
        self._forget()
        if self._child.poll() is None:
            os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()

    def _forget(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _wait(self, seconds: float | None) -> bool:
        """Whether it exits within this time; None waits without limit."""
        if self._fd is not None:
            poll = select.poll()
            poll.register(self._fd, select.POLLIN)
            return bool(poll.poll(None if seconds is None else seconds * 1000))
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(seconds)
        return self._child.returncode is not None


def start(count: int, errors: IO[bytes]) -> Sequence[Process]:
    """Start agents, which write errors to `errors`; `greet` each of them.

    Raises
    ------
    ProvisioningError
        An agent can't be started.
    """
    try:
        if _has_pidfds():
            return _start(count, errors)
        return [process for _ in range(count) for process in _start(1, errors)]
    except OSError as error:
        raise ProvisioningError(f"can't start an agent on this machine: {error}") from error


def _start(count: int, errors: IO[bytes]) -> Sequence[Process]:
    ours: list[tuple[IO[bytes], IO[bytes]]] = []
    theirs: list[int] = []
    try:
        for _ in range(count - 1):
            (read, lifeline), (said, write) = os.pipe(), os.pipe()
            theirs += read, write
            ours.append((os.fdopen(lifeline, "wb"), os.fdopen(said, "rb")))
        pairs = (f"{theirs[index]},{theirs[index + 1]}" for index in range(0, len(theirs), 2))
        child = subprocess.Popen(
            [*command("skyward.worker.agent", _PACKAGE), *pairs],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            pass_fds=theirs,
            start_new_session=True,  # the driver handles Ctrl-C
        )
    finally:
        for fd in theirs:
            os.close(fd)
    assert child.stdin is not None
    assert child.stdout is not None
    return [Process(child, lifeline, said) for lifeline, said in ((child.stdin, child.stdout), *ours)]


@cache
def _has_pidfds() -> bool:
    """Whether we can wait for a process that is not our child: on Linux, but not in every container."""
    if sys.platform != "linux":
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


def greet(process: Process, secret: bytes, orphan_timeout: float, errors: IO[bytes], **more: object) -> str:
    """Send a new agent its settings, and return the address where it listens.

    Parameters
    ----------
    process
        The agent.
    secret
        Secret that both ends of a link prove to know.
    orphan_timeout
        Seconds without an owner after which it exits.
    errors
        As given to `start`.
    more
        Further fields of `worker.agent.Start`.

    Raises
    ------
    ProvisioningError
        It did not start, and should be killed.
    """
    values = {"listen": "unix", "secret": secret, "lifeline": True, "orphan_timeout": orphan_timeout, **more}
    start = msgpack.packb(values)
    line = b""
    with contextlib.suppress(BrokenPipeError), selectors.DefaultSelector() as ready:
        process.lifeline.write(frame(start))
        process.lifeline.flush()
        ready.register(process.said, selectors.EVENT_READ)
        if ready.select(_START):
            line = process.said.readline()
    try:
        said = json.loads(line)
        process.met(said["pid"])
        return str(said["listening"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        errors.seek(0)
        words = errors.read().decode(errors="replace")[-2000:]
        raise ProvisioningError(
            f"an agent on this machine did not start ({sys.executable}); its output:\n{words}"
        ) from error
