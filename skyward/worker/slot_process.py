"""What an agent keeps for each unanswered task, and for each slot: its ends of the socket and the pipes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from skyward.core.protocol.messages import Run
from skyward.core.protocol.roll_call import RollCall
from skyward.core.protocol.wire import Buffer
from skyward.worker.output import SlotOutput
from skyward.worker.tickets import Tickets
from skyward.worker.wire_socket import WireSocket

__all__ = ["PendingTask", "SlotProcess"]


class PendingTask:
    """A task that has not been answered."""

    __slots__ = ("began", "buffers", "mark", "reported", "run", "timer")

    def __init__(self, run: Run, buffers: Sequence[Buffer]) -> None:
        self.run = run
        self.buffers = buffers
        self.mark = 0  # a new number each time it is handed to a slot
        self.began = 0.0  # time of the loop at which it is taken to have begun; 0 before
        self.reported = False  # to the owner, as begun
        self.timer: asyncio.TimerHandle | None = None

    def stop_timer(self) -> None:
        """Stop counting its running time."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class SlotProcess:
    """The agent's ends of a slot's socket and pipes.

    Parameters
    ----------
    link
        The socket.
    output
        The pipes that the slot prints to.
    tickets
        The pipe of tickets.
    """

    __slots__ = ("link", "lost", "output", "peak", "pid", "roll", "seat", "tickets", "up")

    def __init__(self, link: WireSocket, output: SlotOutput, tickets: Tickets) -> None:
        self.link = link
        self.output = output
        self.tickets = tickets
        self.pid: int | None = None
        self.peak: int | None = None  # the most memory that it has used, in bytes, if it was killed
        self.seat = 0  # its number for tasks, as in `Done`; 0 if it is not known, or differs from task to task
        self.up = False
        self.roll = RollCall()
        self.lost: str | None = None  # why the agent killed it, if it did

    def hand_over(self) -> None:
        """Send the slot what was queued for it."""
        self.tickets.issue()
        self.link.wake()

    def close(self) -> None:
        """Close the socket and the pipes."""
        self.output.close()
        self.link.close()
        self.tickets.close()
