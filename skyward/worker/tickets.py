"""Who has a task that was given to a slot: the slot that began it, or the agent that took it back.

Beside its socket each isolated slot has a pipe of tickets, numbers of tasks in the order in which they are given. The
slot draws a ticket before it begins; the agent draws the rest when it wants the tasks back. The kernel gives each
ticket to one of them only, so a task never runs twice and is never lost, whenever either of them acts or dies. And what
has been drawn has begun, or begins when its bytes are there: a limit, a cancel or a death of the slot is that task's
affair and no other's.

This relies on tasks arriving in the slot in the order of their tickets: the agent's wire to a slot is `fifo`. A task
that was taken back and given again arrives twice, and either copy may be the one that runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import termios

__all__ = ["Claims", "Tickets"]

_TICKET = struct.Struct("!Q")
_INT = struct.Struct("i")
_MANY = 512  # tickets that fit into a pipe of the smallest size


class Tickets:
    """The agent's half.

    Parameters
    ----------
    read, write
        Ends of a pipe, ours from now on; the slot has `read` too.
    """

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write
        self._unwritten = bytearray()
        os.set_blocking(read, False)
        os.set_blocking(write, False)

    def __repr__(self) -> str:
        return f"<Tickets on {self._write}, {len(self._unwritten) // _TICKET.size} unwritten>"

    def add(self, task: int) -> None:
        """Make a ticket, which can be drawn, here and there, from `issue` on."""
        self._unwritten += _TICKET.pack(task)

    def issue(self) -> None:
        """Let the slot draw; to be called before it can see the tasks."""
        if self._unwritten:
            os.write(self._write, self._unwritten)  # whole: it is less than a pipe holds
            self._unwritten.clear()

    @property
    def undrawn(self) -> int:
        """How many of those that were issued nobody has drawn yet."""
        (size,) = _INT.unpack(fcntl.ioctl(self._read, termios.FIONREAD, _INT.pack(0)))
        return int(size) // _TICKET.size + len(self._unwritten) // _TICKET.size

    def reclaim(self) -> list[int]:
        """Draw all that are left, oldest first."""
        with contextlib.suppress(BlockingIOError):
            return [task for (task,) in _TICKET.iter_unpack(os.read(self._read, _MANY * _TICKET.size))]
        return []

    def close(self) -> None:
        """Close both ends."""
        os.close(self._read)
        os.close(self._write)


class Claims:
    """The slot's half.

    Parameters
    ----------
    fd
        Where the tickets come from.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.drawn: int | None = None
        """The ticket in hand, whose task has not come yet."""

    def __repr__(self) -> str:
        return f"<Claims on {self._fd}, drawn: {self.drawn}>"

    def claim(self, task: int) -> bool:
        """Whether to run the task that came now; one whose ticket is not the next was taken back."""
        if self.drawn is None:
            try:
                self.drawn = _TICKET.unpack(os.read(self._fd, _TICKET.size))[0]
            except (BlockingIOError, struct.error):  # the latter at the end: the agent is gone
                return False
        if self.drawn != task:
            return False
        self.drawn = None
        return True
