"""A task that its node has lost is noticed, and a node that does not say which it has is lost."""

from __future__ import annotations

import time

import pytest

from skyward.core.errors import NodeLost, WorkerCrashed
from skyward.core.events import Note
from tests.core.memory_agent import QUICK, MemoryPool
from tests.core.tasks.calls import double
from tests.lab.wait import eventually


def test_a_task_that_its_node_has_lost_is_tried_again_and_said(pool: MemoryPool) -> None:
    """Nobody would ever answer for it; what the node has is left alone, however long it takes."""
    notes: list[str] = []
    pool.events.subscribe(lambda event: notes.append(event.text) if isinstance(event, Note) else None)
    agent = pool.add(slots=4, forgetful=True)
    lost = pool.submit(double, 1)
    eventually(lambda: agent.inbox.received >= 2)
    agent.forgetful, agent.holding = False, True
    kept = pool.submit(double, 2)
    eventually(lambda: len(agent.held) == 2)
    asked = agent.asked
    eventually(lambda: agent.asked > asked + 2)
    assert not kept.done()
    pool.do(agent.release)
    assert (lost.result(30), kept.result(30)) == (2, 4)
    assert len(agent.ran) == 2
    (note,) = notes
    assert "m0 has lost double" in note


def test_a_task_that_is_lost_again_and_again_fails(pool: MemoryPool) -> None:
    pool.add(forgetful=True)
    with pytest.raises(WorkerCrashed, match="the node lost it"):
        pool.submit(double, 1).result(30)


@pytest.mark.slow
def test_a_loop_that_was_held_up_does_not_blame_its_nodes(pool: MemoryPool) -> None:
    """A thread that unpickles gigabytes may hold Python's lock for longer than a node may be silent."""
    agent = pool.add()
    assert pool.submit(double, 1).result(30) == 2
    for _ in range(3):
        pool.do(time.sleep, 2 * QUICK.silence)  # what is slow is the subject
        assert pool.submit(double, 2).result(30) == 4
    heard = agent.inbox.received
    pool.submit(double, 3).result(30)
    eventually(lambda: agent.inbox.received > heard)
    assert agent.links == 1


def test_a_node_that_does_not_say_what_it_has_is_lost() -> None:
    """It answers every heartbeat, keeps its task and never answers for it."""
    pool = MemoryPool(attempts=1)
    pool.add(forgetful=True, reticent=True)
    with pytest.raises(NodeLost, match="asked which of its tasks it has"):
        pool.submit(double, 1).result(20)
    pool.close()
