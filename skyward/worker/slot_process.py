"""What an agent keeps of each task that it has not answered, and of each slot: its ends of the socket and the pipes."""

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

    __slots__ = ("began", "buffers", "given", "missing", "run", "timer", "told")

    def __init__(self, run: Run, buffers: Sequence[Buffer]) -> None:
        self.run = run
        self.buffers = buffers
        self.missing: set[bytes] = set()
        self.given = 0  # counts what was handed to slots; the last time that it was this task
        self.began = 0.0  # when it was taken to begin
        self.told = False  # the owner knows that it has begun
        self.timer: asyncio.TimerHandle | None = None

    def stop_timer(self) -> None:
        """It does not run (any more)."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class SlotProcess:
    """Our ends of a slot: its socket and its pipes."""

    __slots__ = ("link", "lost", "output", "pid", "roll", "tickets", "up")

    def __init__(self, link: WireSocket, output: SlotOutput, tickets: Tickets) -> None:
        self.link = link
        self.output = output
        self.tickets = tickets
        self.pid: int | None = None
        self.up = False
        self.roll = RollCall()
        self.lost: str | None = None  # why we have ended it: it does not have what it was given

    def hand_over(self) -> None:
        """Let the slot have what was queued for it."""
        self.tickets.issue()
        self.link.wake()

    def close(self) -> None:
        """Let its files go."""
        self.output.close()
        self.link.close()
        self.tickets.close()
