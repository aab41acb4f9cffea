"""Each ticket goes to the slot or back to the agent, in whatever order they act, and however large its task is."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from skyward.core.protocol.messages import Run
from skyward.core.protocol.wire import Role, Wire
from skyward.worker.tickets import Claims, Tickets

SIZES = (0, 30_000, 33_000, 100_000, 600_000)


class Line:
    """An agent and its slot, with tickets and the wire that slots have."""

    def __init__(self) -> None:
        read, write = os.pipe()
        self.theirs = os.dup(read)
        self.tickets, self.claims = Tickets(read, write), Claims(self.theirs)
        self.agent, self.slot = Wire.opened(Role.OWNER, fifo=True), Wire.opened(Role.AGENT)
        self.owned: list[int] = []  # waiting at the agent, oldest first
        self.given: list[int] = []  # with the slot, as far as the agent knows
        self.begun: list[int] = []
        self.last = 0

    def give(self, size: int) -> None:
        if not self.owned:
            self.last += 1
            self.owned.append(self.last)
        task = self.owned.pop(0)
        self.tickets.add(task)
        self.agent.send(Run(task, True, None, None, {}), [bytes(size)])
        self.given.append(task)

    def go_on(self, budget: int) -> None:
        """Write a part, which the slot reads as it arrives; tickets are issued first."""
        self.tickets.issue()
        for part in self.agent.data_to_send(budget):
            for received in self.slot.receive_data(part):
                assert isinstance(received.message, Run)
                if self.claims.claim(received.message.task):
                    self.begun.append(received.message.task)

    def take_back(self) -> None:
        taken = self.tickets.reclaim()
        self.owned[:0] = taken
        self.given = [task for task in self.given if task not in taken]

    def close(self) -> None:
        self.tickets.close()
        os.close(self.theirs)


@given(st.lists(st.sampled_from(["issue", "go on", "go on", "take back"]) | st.sampled_from(SIZES), max_size=60))
def test_a_task_is_begun_once_or_comes_back(steps: list[str | int]) -> None:
    """Tasks of any size begin in the order in which they were handed over, or are reclaimed, and it is known which."""
    line = Line()
    try:
        for step in steps:
            if isinstance(step, int):
                line.give(step)
            elif step == "issue":
                line.tickets.issue()
            elif step == "go on":
                line.go_on(50_000)
            else:
                line.take_back()
            waits = line.claims.drawn is not None  # the slot has a ticket, and its bytes are on their way
            assert len(line.given) - line.tickets.undrawn == len(line.begun) + waits
        while line.agent.has_data:
            line.go_on(1 << 20)
        assert line.begun == line.given
        assert sorted(line.begun + line.owned) == list(range(1, line.last + 1))
    finally:
        line.close()


def test_a_slot_whose_agent_is_gone_begins_nothing() -> None:
    read, write = os.pipe()
    theirs = os.dup(read)
    tickets, claims = Tickets(read, write), Claims(theirs)
    tickets.close()
    assert not claims.claim(1)
    os.close(theirs)
