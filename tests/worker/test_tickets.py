"""Each ticket goes to the slot or back to the agent, whatever order they act in."""

from __future__ import annotations

import os
from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from skyward.worker.tickets import Claims, Tickets


@given(st.lists(st.sampled_from(["give", "issue", "run", "take back"]), max_size=60))
def test_a_task_is_begun_once_or_comes_back(steps: list[str]) -> None:
    read, write = os.pipe()
    theirs = os.dup(read)
    tickets, claims = Tickets(read, write), Claims(theirs)
    given_now: list[int] = []  # not issued yet
    socket: deque[int] = deque()  # what the slot will see, in order
    owned: list[int] = []  # waiting at the agent, oldest first
    begun: list[int] = []
    last = 0
    try:
        for step in steps:
            if step == "give":
                if not owned:
                    last += 1
                    owned.append(last)
                tickets.add(owned[0])
                given_now.append(owned.pop(0))
            elif step == "issue":
                tickets.issue()
                socket += given_now
                given_now.clear()
            elif step == "run" and socket:
                task = socket.popleft()
                if claims.claim(task):
                    begun.append(task)
            elif step == "take back":
                owned[:0] = tickets.take_back()
        tickets.issue()
        socket += given_now
        while socket:
            task = socket.popleft()
            if claims.claim(task):
                begun.append(task)
        assert sorted(begun + owned) == list(range(1, last + 1))
    finally:
        tickets.close()
        os.close(theirs)


def test_a_slot_whose_agent_is_gone_begins_nothing() -> None:
    read, write = os.pipe()
    theirs = os.dup(read)
    tickets, claims = Tickets(read, write), Claims(theirs)
    tickets.close()
    assert not claims.claim(1)
    os.close(theirs)
