"""Tasks settle once, whatever nodes do."""

from __future__ import annotations

import concurrent.futures
import os
import pickle
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from skyward.core.blobs.distributor import ABOUT_BLOBS
from skyward.core.blobs.snapshots import digest
from skyward.core.code.local_code import CodeVersion
from skyward.core.errors import NodeLost, PayloadError, WorkerCrashed
from skyward.core.events import Printed
from skyward.core.payload.shared_file import CAN_SHARE
from skyward.core.protocol import messages
from skyward.core.protocol.states import TALK, Role
from skyward.core.tasks.jobs import TaskGroup, TaskOptions
from skyward.core.tasks.runner import TaskRunner
from skyward.core.tasks.schedule_events import Command
from tests.core.memory_agent import MemoryPool
from tests.core.tasks.calls import double
from tests.lab.wait import eventually


def test_a_waiting_task_is_cancelled_and_never_runs(pool: MemoryPool) -> None:
    """Cancel before the run: the future is cancelled, the node never hears of it."""
    agent = pool.add(slots=1, holding=True)
    first, second = pool.submit(double, 1), pool.submit(double, 2)
    eventually(lambda: len(agent.held) == 1)
    assert second.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        second.result(30)
    pool.do(agent.answer, 1)
    pool.do(agent.flush)
    assert first.result(30) == 2
    assert agent.ran == [1]


def test_a_running_task_is_stopped(pool: MemoryPool) -> None:
    """Cancel while it runs: the node is told, and the slot serves the next."""
    agent = pool.add(slots=1, holding=True)
    first = pool.submit(double, 1)
    eventually(lambda: agent.held)
    assert first.cancel()
    concurrent.futures.wait([first], 5)
    eventually(lambda: agent.cancelled == [1])
    agent.holding = False
    assert pool.submit(double, 3).result(30) == 6


def test_a_future_knows_whether_its_task_runs(pool: MemoryPool) -> None:
    """As its node says; not while it waits, not when its process has died and it waits again, not when it is done."""
    agent = pool.add(slots=1, holding=True)
    first, second = pool.submit(double, 1), pool.submit(double, 2)
    eventually(lambda: agent.held)
    assert not first.running()
    pool.do(agent.begin, 1)
    eventually(first.running)
    assert not second.running()
    pool.do(agent.crash, 1)
    eventually(lambda: not first.running() and agent.held)
    pool.do(agent.begin, 1)
    eventually(first.running)
    pool.do(agent.release)
    assert first.result(30) == 2
    assert not first.running()


def test_withdrawn_tasks_end_and_those_that_run_go_on(pool: MemoryPool) -> None:
    """Whether they wait here, or at a node that has not begun them."""
    agent = pool.add(slots=2, holding=True)
    futures = [pool.submit(double, i) for i in range(4)]
    eventually(lambda: len(agent.held) == 2)
    pool.do(agent.begin, 1)
    pool.do(pool.dispatcher.withdraw_all)
    concurrent.futures.wait(futures[1:], 5)
    assert [future.cancelled() for future in futures] == [False, True, True, True]
    assert agent.cancelled == [2]
    pool.do(agent.release)
    assert futures[0].result(30) == 0


def test_a_crash_is_tried_again_then_named(pool: MemoryPool) -> None:
    """A task that kills its process twice fails with what happened, where and which."""
    agent = pool.add(holding=True)
    future = pool.submit(double, 1)
    for _ in range(2):
        eventually(lambda: 1 in agent.held)
        pool.do(agent.crash, 1)
    with pytest.raises(WorkerCrashed, match=r"double \(task 1\) on m0 died: killed by SIGKILL"):
        future.result(30)


def test_attempts_of_one_turns_it_off(pool: MemoryPool) -> None:
    """With attempts=1 a crash is final."""
    agent = pool.add(holding=True)
    future = pool.submit(double, 1, options=TaskOptions(attempts=1))
    eventually(lambda: 1 in agent.held)
    pool.do(agent.crash, 1)
    with pytest.raises(WorkerCrashed):
        future.result(30)


def test_a_node_that_can_not_begin_a_task_costs_it_nothing(pool: MemoryPool) -> None:
    """It runs elsewhere, though it may be tried but once; when nobody can begin it, the node's word is in the error."""
    bad, good = pool.add(slots=1, refuses=True), pool.add(slots=1, holding=True)
    once = TaskOptions(attempts=1)
    futures = [pool.submit(double, number, options=once) for number in range(2)]
    eventually(lambda: len(good.held) == 1)
    pool.do(good.release)
    assert [future.result(30) for future in futures] == [0, 2]
    assert not bad.ran
    good.refuses = True
    with pytest.raises(WorkerCrashed, match=r"no node can start double \(task 3\); m\d reports: no room"):
        pool.submit(double, 1, options=once).result(30)


def test_a_node_where_nothing_goes_well_is_taken_out(pool: MemoryPool) -> None:
    """Its own word says why; who waits gets results of another."""
    pool.add(slots=1, refuses=True)
    pool.add(slots=1)
    assert [pool.submit(double, number).result(30) for number in range(12)] == [2 * number for number in range(12)]
    eventually(lambda: pool.ends)
    assert pool.ends == ["taken out of service: 5 tasks in a row failed there; the last one: no room"]


def test_a_task_that_no_link_takes_is_an_error_of_that_task_only(pool: MemoryPool) -> None:
    """Found out when it is sent, and what is to be done besides is done."""
    pool.add(slots=1)
    pool.submit(double, 1).result(30)
    futures = [pool.submit(double, 1, options=TaskOptions(threads=2**70)), pool.submit(double, 4)]
    with pytest.raises(PayloadError, match=r"double \(task 2\) can't be sent to m0: Integer"):
        futures[0].result(30)
    assert futures[1].result(30) == 8


def test_a_lost_nodes_tasks_run_elsewhere(pool: MemoryPool) -> None:
    """When a node goes for good, what it had runs on another."""
    agent = pool.add(slots=1, holding=True)
    future = pool.submit(double, 1)
    eventually(lambda: agent.held)
    agent.dead = True
    pool.add(slots=1)
    pool.do(agent.cut)
    assert future.result(30) == 2
    assert pool.ends == ["the agent is gone"]


def test_without_hope_tasks_fail(pool: MemoryPool) -> None:
    """When no node is left and none will come, what waits fails with the reason."""
    future = pool.submit(double, 1)
    pool.do(pool.dispatcher.runner.hopeless, "all machines burnt")
    with pytest.raises(NodeLost, match="all machines burnt"):
        future.result(30)
    with pytest.raises(NodeLost):
        pool.submit(double, 1).result(30)


def test_a_broken_link_loses_and_doubles_nothing(pool: MemoryPool) -> None:
    """Cutting the link again and again in mid-run changes no result, and no task runs twice."""
    agent = pool.add()
    futures = []
    for i in range(300):
        futures.append(pool.submit(double, i))
        if i % 30 == 0:
            pool.do(agent.cut)
    assert [future.result(30) for future in futures] == [2 * i for i in range(300)]
    assert sorted(agent.ran) == list(range(1, 301))
    assert agent.links > 1


@pytest.mark.slow
def test_a_silent_node_is_noticed(pool: MemoryPool) -> None:
    """A node that says nothing, not even to the heartbeat, loses its link and then its tasks."""
    agent = pool.add(slots=1, holding=True)
    future = pool.submit(double, 1)
    eventually(lambda: agent.held)
    agent.mute = True
    pool.add(slots=1)
    assert future.result(30) == 2


def test_large_buffers_go_to_a_node_once(pool: MemoryPool) -> None:
    """The same content, in whatever array, crosses once for each node."""
    agents = [pool.add(slots=1), pool.add(slots=1)]
    x = np.arange(400_000.0)
    futures = [pool.submit(lambda a, i: float(a.sum()) + i, x.copy(), i) for i in range(20)]
    assert [future.result(30) for future in futures] == [float(x.sum()) + i for i in range(20)]
    assert [agent.blobs_sent for agent in agents] == [1, 1]


def test_a_version_of_the_code_goes_to_a_node_once_and_an_old_one_still_may(pool: MemoryPool) -> None:
    agents = [pool.add(slots=1)]
    bundles = {digest(memoryview(text)): text for text in (b"first", b"edit")}
    old = CodeVersion(1, b"manifest", list(bundles)[:1], dict(list(bundles.items())[:1]))
    new = CodeVersion(2, b"manifest", list(bundles), bundles)

    def run(code: CodeVersion, count: int = 8) -> None:
        options = TaskOptions(group=TaskGroup(code=code))
        assert [future.result(30) for future in [pool.submit(abs, -i, options=options) for i in range(count)]] == [
            *range(count)
        ]

    run(old)
    run(new)
    run(old)
    assert (agents[0].codes, agents[0].blobs_sent) == ([1, 2], 2)
    agents.append(pool.add(slots=1))
    eventually(lambda: run(new) or agents[1].codes == [2])
    eventually(lambda: run(old) or sorted(agents[1].codes) == [1, 2])
    assert [agent.blobs_sent for agent in agents] == [2, 2]


@pytest.mark.skipif(not CAN_SHARE, reason="no files in memory here")
@pytest.mark.parametrize("blind", [False, True])
def test_nodes_on_this_machine_open_large_buffers(blind: bool) -> None:
    """None is sent to those that can; the others get the bytes."""
    pool = MemoryPool(shares=True)
    try:
        agents = [pool.add(blind=blind) for _ in range(2)]
        array = np.arange(1_000_000.0)
        futures = [pool.submit(np.sum, array, options=TaskOptions(large=1 << 20)) for _ in range(20)]
        assert {float(future.result(30)) for future in futures} == {array.sum()}
        assert [(agent.shares, agent.blobs_sent) for agent in agents] == [(int(not blind), 1)] * 2
    finally:
        pool.close()


def test_a_machine_elsewhere_has_no_business_with_files_here(pool: MemoryPool, tmp_path: Path) -> None:
    """A result that names a file of this machine counts as none, and the file stays."""
    agent = pool.add(holding=True)
    file = tmp_path / "mine"
    file.write_bytes(b"x" * 100)
    future = pool.submit(double, 1)
    eventually(lambda: agent.held)
    task = next(iter(agent.held))
    agent.held.clear()

    def lie() -> None:
        agent.say(messages.Done(task, 0.0, {0: os.fsencode(file)}), [pickle.dumps(1)])
        agent.flush()

    pool.do(lie)
    eventually(lambda: agent.held)  # it is tried again
    pool.do(agent.release)
    assert future.result(30) == 2
    assert file.exists()


@pytest.fixture
def few_files() -> Iterator[Callable[[], None]]:
    """Leaves this process no further open file."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def no_more() -> None:
        lowest = os.open(os.devnull, os.O_RDONLY)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))

    yield no_more
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def result(parent: Path) -> Path:
    """A file as a slot leaves it."""
    folder = parent / f"skyward-store-{os.getuid()}-abc"
    folder.mkdir()
    file = folder / "result-1-0"
    file.write_bytes(b"x" * 100)
    return file


@pytest.mark.skipif(not CAN_SHARE, reason="no files in memory here")
def test_a_file_that_is_no_result_is_neither_read_nor_removed(tmp_path: Path) -> None:
    """Not of a node on this machine either."""
    pool = MemoryPool(shares=True, attempts=1)
    try:
        agent = pool.add(holding=True)
        file = tmp_path / "document"
        file.write_bytes(b"precious")
        future = pool.submit(double, 1)
        eventually(lambda: agent.held)
        (task,) = agent.held
        pool.do(lambda: agent.say(messages.Done(task, 0.0, {0: os.fsencode(file)}), [pickle.dumps(1)]) or agent.flush())
        with pytest.raises(WorkerCrashed, match="not a result of a slot"):
            future.result(30)
        assert file.read_bytes() == b"precious"
    finally:
        pool.close()


def test_a_result_that_can_not_be_opened_is_an_error_and_not_run_again(
    few_files: Callable[[], None], tmp_path: Path
) -> None:
    pool = MemoryPool(shares=True)
    try:
        agent = pool.add(holding=True)
        file = result(tmp_path)
        future = pool.submit(double, 1)
        eventually(lambda: agent.held)
        task = next(iter(agent.held))

        def answer() -> None:
            few_files()
            agent.say(messages.Done(task, 0.0, {0: os.fsencode(file)}), [pickle.dumps(1)])
            agent.flush()

        pool.do(answer)
        with pytest.raises(PayloadError, match=r"(?s)result of task 1.*open files.*ulimit -n"):
            future.result(30)
        assert not file.exists()
    finally:
        pool.close()


def test_a_file_of_a_node_that_is_given_up_is_removed(tmp_path: Path) -> None:
    pool = MemoryPool(shares=True)
    try:
        agent = pool.add(holding=True)
        file = result(tmp_path)
        future = pool.submit(double, 1)
        eventually(lambda: agent.held)

        def answer() -> None:
            pool.dispatcher.runner.node_down("m0", "it is given up")
            agent.say(messages.Done(1, 0.0, {0: os.fsencode(file)}), [pickle.dumps(1)])
            agent.flush()

        pool.do(answer)
        eventually(lambda: not file.exists())
        future.cancel()
    finally:
        pool.close()


@pytest.mark.slow
def test_what_a_node_holds_ahead_goes_to_an_idle_one(pool: MemoryPool) -> None:
    """Its tasks run elsewhere though it never goes on."""
    stuck = pool.add(slots=1)
    for _ in range(30):  # short ones, so that it is given tasks ahead
        pool.submit(double, 1).result(30)
    stuck.holding = True
    futures = [pool.submit(double, i) for i in range(10)]
    eventually(lambda: len(stuck.held) > 1)
    pool.add(slots=1)
    eventually(lambda: sum(future.done() for future in futures) == 9)
    pool.do(stuck.release)
    assert [future.result(30) for future in futures] == [2 * i for i in range(10)]


def test_a_calls_limit_holds(pool: MemoryPool) -> None:
    """A call with limit 2 has two tasks out even where eight slots are free."""
    agent = pool.add(slots=8, holding=True)
    options = TaskOptions(group=TaskGroup(limit=2))
    futures = [pool.submit(double, i, options=options) for i in range(6)]
    most = 0
    for _ in range(3):
        eventually(lambda: len(agent.held) == 2)
        most = max(most, len(agent.held))
        for task in list(agent.held):
            pool.do(agent.answer, task)
        pool.do(agent.flush)
    assert [future.result(30) for future in futures] == [0, 2, 4, 6, 8, 10]
    assert most == 2


def test_a_line_that_comes_in_pieces_is_printed_whole(pool: MemoryPool) -> None:
    printed: list[Printed] = []
    pool.events.subscribe(lambda event: printed.append(event) if isinstance(event, Printed) else None)
    agent = pool.add()
    text = "ä" * 20_001 + "\n"
    data = text.encode()

    def say() -> None:
        agent.say(messages.Output(1, more=True), [data[:32_767]])  # which cuts a character in two
        agent.say(messages.Output(2), [b"other\n"])
        agent.say(messages.Output(1), [data[32_767:]])
        agent.flush()

    pool.do(say)
    eventually(lambda: len(printed) == 2)
    assert [(it.stream, it.text) for it in printed] == [(2, "other\n"), (1, text)]


def test_every_command_and_message_has_a_handler() -> None:
    assert set(TaskRunner._COMMANDS) == set(get_args(Command))
    of_sessions = {messages.Ping, messages.Pong, messages.Ack, messages.Ready, messages.Gpus}
    assert {*TaskRunner._MESSAGES, *ABOUT_BLOBS, messages.Reply} == TALK[Role.AGENT] - of_sessions
