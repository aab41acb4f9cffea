"""Who has a task that was handed to a slot: the slot that began it, or the agent that reclaimed it.

In addition to its socket each isolated slot has a pipe of tickets: numbers of tasks, in the order in which they are
handed over. The slot draws a ticket before it begins a task; the agent draws the rest to reclaim them. The kernel gives
each ticket to only one of them, so a task never runs twice and is never lost, whenever either of them acts or dies. A
task whose ticket was drawn has begun, or begins when its bytes have arrived, so a time limit, a cancellation or the
slot's death concerns that task and no other.

This relies on tasks arriving in the slot in the order of their tickets: the agent's wire to a slot is `fifo`. A task
that was reclaimed and handed over again arrives twice, and either copy may be the one that runs.
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
_MANY = 512  # tickets that fit into the smallest pipe


class Tickets:
    """The agent's end.

    Parameters
    ----------
    read, write
        Ends of a pipe, which this object closes; the slot has `read` as well.
    """

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write
        self._unwritten = bytearray()
        os.set_blocking(read, False)
        os.set_blocking(write, False)

    def __repr__(self) -> str:
        return f"<Tickets on {self._write}, {len(self._unwritten) // _TICKET.size} unwritten>"

    def add(self, task: int) -> None:
        """Make a ticket, which can be drawn at either end after `issue`."""
        self._unwritten += _TICKET.pack(task)

    def issue(self) -> None:
        """Let the slot draw the new tickets; to be called before it can see the tasks."""
        if self._unwritten:
            os.write(self._write, self._unwritten)  # in one piece: it is less than a pipe holds
            self._unwritten.clear()

    @property
    def undrawn(self) -> int:
        """The number of tickets that nobody has drawn yet."""
        (size,) = _INT.unpack(fcntl.ioctl(self._read, termios.FIONREAD, _INT.pack(0)))
        return int(size) // _TICKET.size + len(self._unwritten) // _TICKET.size

    def reclaim(self) -> list[int]:
        """Draw all remaining tickets, oldest first."""
        with contextlib.suppress(BlockingIOError):
            return [task for (task,) in _TICKET.iter_unpack(os.read(self._read, _MANY * _TICKET.size))]
        return []

    def close(self) -> None:
        """Close both ends."""
        os.close(self._read)
        os.close(self._write)


class Claims:
    """The slot's end.

    Parameters
    ----------
    fd
        Read end of the pipe of tickets.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.drawn: int | None = None
        """The drawn ticket whose task has not arrived yet."""

    def __repr__(self) -> str:
        return f"<Claims on {self._fd}, drawn: {self.drawn}>"

    def claim(self, task: int) -> bool:
        """Whether to run the task that has arrived; one whose ticket is not the next was reclaimed."""
        if self.drawn is None:
            try:
                self.drawn = _TICKET.unpack(os.read(self._fd, _TICKET.size))[0]
            except (BlockingIOError, struct.error):  # the latter at end of file: the agent is gone
                return False
        if self.drawn != task:
            return False
        self.drawn = None
        return True
