"""Blobs on their way to nodes, with nodes in memory: what the driver says, and what it does when a node fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pytest

from skyward.core.blobs import relay
from skyward.core.blobs.distributor import ABOUT_BLOBS, Distributor, LateBlob
from skyward.core.blobs.snapshots import digest
from skyward.core.events import Transferred
from skyward.core.protocol import messages
from skyward.core.tasks.jobs import TaskOptions
from tests.core.memory_agent import MemoryAgent, MemoryPool
from tests.lab.wait import eventually

DATA = np.arange(1_000_000, dtype=float)
NAME = digest(memoryview(DATA).cast("B"))


@pytest.fixture
def pool() -> Iterator[MemoryPool]:
    pool = MemoryPool()
    yield pool
    pool.close()


def total(array: Any) -> float:
    return float(array.sum())


def say(pool: MemoryPool, agent: MemoryAgent, *said: messages.Message) -> None:
    for message in said:
        pool.do(agent.say, message)
    pool.do(agent.flush)


def acquainted(pool: MemoryPool, count: int) -> list[MemoryAgent]:
    """Nodes that reach each other."""
    agents = [pool.add(slots=1) for _ in range(count)]
    names = [session.node for session in pool.sessions]
    for number, agent in enumerate(agents):
        say(pool, agent, messages.Listening(5000 + number, ["10.0.0.1"]))
    eventually(lambda: all(len(agent.peers) == count - 1 for agent in agents))
    for agent in agents:
        say(pool, agent, messages.Reached([name for name in names if name in agent.peers]))
    eventually(lambda: all(len(reach) == count - 1 for reach in plan(pool)._reach.values()))
    return agents


def test_what_can_not_be_read_fails_for_who_waits(pool: MemoryPool) -> None:
    """Whatever its reader raises."""
    pool.add(slots=1)
    failed: list[BaseException | None] = []

    async def read() -> bytes:
        raise MemoryError("no room")

    def bring() -> None:
        arrival = pool.dispatcher.runner._distributor.bring("m0", b"x" * 16, LateBlob(5, read))
        arrival.add_done_callback(lambda arrival: failed.append(arrival.exception()))

    pool.do(bring)
    eventually(lambda: failed)
    assert f"{failed[0]}" == "no room"


def plan(pool: MemoryPool) -> relay.Relay:
    return pool.dispatcher.runner._distributor._relay


def to(pool: MemoryPool, node: int) -> Any:
    return pool.submit(total, DATA, options=TaskOptions(node=f"m{node}"))


def test_nodes_are_introduced_to_each_other(pool: MemoryPool) -> None:
    first, second = acquainted(pool, 2)
    assert first.peers == {"m1": [5001, "10.0.0.1"]}
    assert second.peers == {"m0": [5000, "10.0.0.1"]}


def test_a_second_node_is_told_to_fetch(pool: MemoryPool) -> None:
    """And what it and its peer have stays until it has come; then both may be forgotten."""
    _, second = acquainted(pool, 2)
    arrived: list[Transferred] = []
    pool.events.subscribe(arrived.append, [Transferred])
    assert to(pool, 0).result(30) == DATA.sum()
    future = to(pool, 1)
    eventually(lambda: second.fetches)
    assert second.fetches == [messages.Fetch(NAME, DATA.nbytes, "m0")]
    assert pool.dispatcher.runner._distributor._nodes["m0"].blobs._users == {NAME: 1}
    pool.do(second.growing.__setitem__, NAME, bytearray(DATA))
    pool.do(second.keep, NAME)
    pool.do(second.flush)
    assert future.result(30) == DATA.sum()
    eventually(lambda: not pool.dispatcher.runner._distributor._nodes["m0"].blobs._users)
    assert not pool.dispatcher.runner._distributor._nodes["m1"].coming
    assert [(each.node, each.size, each.peer) for each in arrived] == [
        ("m0", DATA.nbytes, ""),
        ("m1", DATA.nbytes, "m0"),
    ]
    assert all(each.began > 0 and each.seconds >= 0 for each in arrived)


def test_a_fetch_that_fails_is_finished_by_the_driver(pool: MemoryPool) -> None:
    """From where it had come to; also when the task that wanted it has been given up meanwhile."""
    _, second = acquainted(pool, 2)
    assert to(pool, 0).result(30) == DATA.sum()
    gone, future = to(pool, 1), to(pool, 1)
    eventually(lambda: second.fetches)
    gone.cancel()
    half = 4_000_000
    pool.do(second.growing.__setitem__, NAME, bytearray(bytes(DATA)[:half] + bytes(DATA.nbytes - half)))
    pool.do(second.missing.__setitem__, NAME, DATA.nbytes - half)
    say(pool, second, messages.Kept(NAME, half, "the peer is gone"))
    assert future.result(30) == DATA.sum()


def test_a_node_that_dies_makes_those_it_serves_tell_how_far_they_are(pool: MemoryPool) -> None:
    first, second = acquainted(pool, 2)
    assert to(pool, 0).result(30) == DATA.sum()
    future = to(pool, 1)
    eventually(lambda: second.fetches)
    first.dead = True
    pool.do(first.cut)
    assert future.result(30) == DATA.sum()  # the agent says that it has nothing yet


@pytest.mark.slow
def test_who_the_driver_lost_sight_of_serves_a_moment_longer_only(
    pool: MemoryPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "UNLINKED", 0.0)
    _, second = acquainted(pool, 2)
    assert to(pool, 0).result(30) == DATA.sum()
    future = to(pool, 1)
    eventually(lambda: second.fetches)
    pool.do(setattr, pool.sessions[0], "_channel", None)  # as while it connects again
    assert future.result(30) == DATA.sum()


def test_an_empty_buffer_is_a_blob_too(pool: MemoryPool) -> None:
    """Where the user wants everything mapped."""
    pool.add()
    future = pool.submit(total, np.zeros(0), options=TaskOptions(large=0))
    assert future.result(30) == 0.0


def test_every_message_and_command_has_a_handler() -> None:
    assert set(Distributor._MESSAGES) == set(ABOUT_BLOBS)
    assert set(Distributor._COMMANDS) == set(get_args(relay.Command))
