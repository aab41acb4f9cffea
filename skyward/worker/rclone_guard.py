"""The process between an agent and its rclone: it ends rclone when the agent ends, however that ends.

It reads a pipe to which the agent never writes, so that it learns of the agent's end from the kernel. If it is killed
itself, the kernel kills rclone. What is mounted is unmounted at the end, and not as soon as rclone dies: tasks would
find an empty folder instead of an error.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import NoReturn

from skyward.worker.mounts import unmount_below
from skyward.worker.process import die_with_parent, ignore_interrupts, name_process

__all__ = ["PATIENCE", "main"]

PATIENCE = 3.0
"""Seconds that rclone may take to end, to give up what it was writing, before it is killed."""


def main() -> None:
    """Run a program; the arguments are where it may mount something, and its command."""
    place, *command = sys.argv[1:]
    ignore_interrupts()
    name_process("skyward-rclone")
    guard = os.getpid()
    child = os.fork()
    if child == 0:
        _become(command, guard)
    while os.read(0, 4096):
        pass
    _end(child)
    unmount_below(place)


def _become(command: list[str], guard: int) -> NoReturn:
    """Run the program in the child. Never returns."""
    try:
        die_with_parent(guard, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execv(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def _end(child: int) -> None:
    if os.waitpid(child, os.WNOHANG)[0]:
        return  # it had ended before
    os.kill(child, signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE
    while not os.waitpid(child, os.WNOHANG)[0]:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            break  # it may hang in the kernel, and then nobody can wait for it
        time.sleep(0.005)


if __name__ == "__main__":
    main()
