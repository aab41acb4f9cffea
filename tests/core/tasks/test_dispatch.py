"""The dispatcher settles every future once, whatever nodes do, and never lets one waiter hold up another."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import pickle
import resource
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from skyward.core.blobs.distributor import ABOUT_BLOBS
from skyward.core.errors import NodeLost, PayloadError, PoolNotActive, TaskTimeout, WorkerCrashed
from skyward.core.events import Note, Printed
from skyward.core.payload.exceptions import RemoteTraceback
from skyward.core.payload.shared_file import CAN_SHARE
from skyward.core.protocol import messages
from skyward.core.protocol.states import TALK, Role
from skyward.core.tasks.delivery import TOGETHER
from skyward.core.tasks.jobs import TaskGroup, TaskOptions
from skyward.core.tasks.runner import TaskRunner
from skyward.core.tasks.schedule_events import Command
from tests.core.memory_agent import QUICK, MemoryPool, eventually


@pytest.fixture
def pool() -> Iterator[MemoryPool]:
    pool = MemoryPool()
    yield pool
    pool.close()


def double(x: int) -> int:
    return 2 * x


class Odd(Exception):
    """An exception whose signature does not match its args."""

    def __init__(self, code: int, *, hint: str) -> None:
        super().__init__(f"code {code}")
        self.code, self.hint = code, hint


def fail() -> None:
    try:
        {}["missing"]
    except KeyError as cause:
        raise Odd(7, hint="look there") from cause


def test_results_come_back(pool: MemoryPool) -> None:
    """Each future gets its own result and the time it took."""
    pool.add()
    futures = [pool.submit(double, i) for i in range(500)]
    assert [future.result(5) for future in futures] == [2 * i for i in range(500)]
    assert all(future.seconds is not None for future in futures)


def test_tasks_wait_for_the_first_node(pool: MemoryPool) -> None:
    """What is submitted before any node is up runs when one comes."""
    future = pool.submit(double, 4)
    pool.add()
    assert future.result(5) == 8


def test_an_exception_keeps_type_attributes_and_cause(pool: MemoryPool) -> None:
    """A task's own exception comes back whole, with the remote traceback at the end of its causes."""
    pool.add()
    with pytest.raises(Odd) as caught:
        pool.submit(fail).result(5)
    error = caught.value
    assert (error.code, error.hint, error.args) == (7, "look there", ("code 7",))
    assert isinstance(error.__cause__, KeyError)
    assert isinstance(error.__cause__.__cause__, RemoteTraceback)
    assert "in fail" in str(error.__cause__.__cause__)


def test_an_argument_that_does_not_pickle_is_named_and_harms_nobody(pool: MemoryPool) -> None:
    """The error says where the culprit sits; submit itself does not raise, and the pool goes on."""
    pool.add()
    future = pool.submit(double, {"model": [threading.Lock()]})
    with pytest.raises(PayloadError, match=r"the call\[1\]\[0\]\['model'\]\[0\] \(a _thread.lock\)") as caught:
        future.result(5)
    assert isinstance(caught.value, pickle.PicklingError)
    assert pool.submit(double, 1).result(5) == 2


class Unloadable:
    def __reduce__(self) -> tuple[object, tuple[int]]:
        return _only_there, (os.getpid(),)


def _only_there(_pid: int) -> object:
    raise RuntimeError("not in this process")


def test_a_result_that_does_not_load_here_is_an_error_of_that_task_only(pool: MemoryPool) -> None:
    """A result whose unpickling raises fails its own future."""
    pool.add()
    with pytest.raises(PayloadError, match="can't be loaded here"):
        pool.submit(Unloadable).result(5)
    assert pool.submit(double, 1).result(5) == 2


class _Unspeakable(Exception):
    """Its repr can't be had, and not with a plain exception."""

    def __repr__(self) -> str:
        raise SystemExit(3)


class _Hostile:
    def __reduce__(self) -> tuple[object, tuple[int]]:
        return _refuses_to_load, (os.getpid(),)


def _refuses_to_load(_pid: int) -> object:
    raise _Unspeakable


def test_an_answer_of_any_kind_settles_its_task(pool: MemoryPool) -> None:
    """One that can't be read, whatever happens on the way, is an error of that task; the next one of its call comes."""
    agent = pool.add(slots=3, holding=True)
    futures = [pool.submit(double, number) for number in range(3)]
    eventually(lambda: len(agent.held) == 3)
    pool.do(agent.say, messages.Failed(1, 0.1, messages.Failure.RAISED.value, ""), [b"garbage"])
    pool.do(agent.say, messages.Done(2, 0.1), [pickle.dumps(_Hostile())])
    pool.do(agent.release)
    for future in futures[:2]:
        with pytest.raises(PayloadError, match=r"the answer of double on m0 can't be read: (Unpickl|SystemExit)"):
            future.result(5)
    assert futures[2].result(5) == 4


def test_a_waiting_task_is_cancelled_and_never_runs(pool: MemoryPool) -> None:
    """Cancel before the run: the future is cancelled, the node never hears of it."""
    agent = pool.add(slots=1, holding=True)
    first, second = pool.submit(double, 1), pool.submit(double, 2)
    eventually(lambda: len(agent.held) == 1)
    assert second.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        second.result(5)
    pool.do(agent.answer, 1)
    pool.do(agent.flush)
    assert first.result(5) == 2
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
    assert pool.submit(double, 3).result(5) == 6


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
    assert first.result(5) == 2
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
    assert futures[0].result(5) == 0


def test_a_crash_is_tried_again_then_named(pool: MemoryPool) -> None:
    """A task that kills its process twice fails with what happened, where and which."""
    agent = pool.add(holding=True)
    future = pool.submit(double, 1)
    for _ in range(2):
        eventually(lambda: 1 in agent.held)
        pool.do(agent.crash, 1)
    with pytest.raises(WorkerCrashed, match=r"double \(task 1\) on m0 died: killed by SIGKILL"):
        future.result(5)


def test_attempts_of_one_turns_it_off(pool: MemoryPool) -> None:
    """With attempts=1 a crash is final."""
    agent = pool.add(holding=True)
    future = pool.submit(double, 1, options=TaskOptions(attempts=1))
    eventually(lambda: 1 in agent.held)
    pool.do(agent.crash, 1)
    with pytest.raises(WorkerCrashed):
        future.result(5)


def test_a_node_that_can_not_begin_a_task_costs_it_nothing(pool: MemoryPool) -> None:
    """It runs elsewhere, though it may be tried but once; when nobody can begin it, the node's word is in the error."""
    bad, good = pool.add(slots=1, refuses=True), pool.add(slots=1, holding=True)
    once = TaskOptions(attempts=1)
    futures = [pool.submit(double, number, options=once) for number in range(2)]
    eventually(lambda: len(good.held) == 1)
    pool.do(good.release)
    assert [future.result(5) for future in futures] == [0, 2]
    assert not bad.ran
    good.refuses = True
    with pytest.raises(WorkerCrashed, match=r"no node can start double \(task 3\); m\d reports: no room"):
        pool.submit(double, 1, options=once).result(5)


def test_a_node_where_nothing_goes_well_is_taken_out(pool: MemoryPool) -> None:
    """Its own word says why; who waits gets results of another."""
    pool.add(slots=1, refuses=True)
    pool.add(slots=1)
    assert [pool.submit(double, number).result(5) for number in range(12)] == [2 * number for number in range(12)]
    eventually(lambda: pool.ends)
    assert pool.ends == ["taken out, since 5 tasks in a row failed there; the last: no room"]


def test_a_task_that_no_link_takes_is_an_error_of_that_task_only(pool: MemoryPool) -> None:
    """Found out when it is sent, and what is to be done besides is done."""
    pool.add(slots=1)
    pool.submit(double, 1).result(5)
    futures = [pool.submit(double, 1, options=TaskOptions(threads=2**70)), pool.submit(double, 4)]
    with pytest.raises(PayloadError, match=r"double \(task 2\) can't be sent to m0: Integer"):
        futures[0].result(5)
    assert futures[1].result(5) == 8


def test_a_lost_nodes_tasks_run_elsewhere(pool: MemoryPool) -> None:
    """When a node goes for good, what it had runs on another."""
    agent = pool.add(slots=1, holding=True)
    future = pool.submit(double, 1)
    eventually(lambda: agent.held)
    agent.dead = True
    pool.add(slots=1)
    pool.do(agent.cut)
    assert future.result(5) == 2
    assert pool.ends == ["the agent is gone"]


def test_without_hope_tasks_fail(pool: MemoryPool) -> None:
    """When no node is left and none will come, what waits fails with the reason."""
    future = pool.submit(double, 1)
    pool.do(pool.dispatcher.runner.hopeless, "all machines burnt")
    with pytest.raises(NodeLost, match="all machines burnt"):
        future.result(5)
    with pytest.raises(NodeLost):
        pool.submit(double, 1).result(5)


def test_a_broken_link_loses_and_doubles_nothing(pool: MemoryPool) -> None:
    """Cutting the link again and again in mid-run changes no result, and no task runs twice."""
    agent = pool.add()
    futures = []
    for i in range(300):
        futures.append(pool.submit(double, i))
        if i % 30 == 0:
            pool.do(agent.cut)
    assert [future.result(10) for future in futures] == [2 * i for i in range(300)]
    assert sorted(agent.ran) == list(range(1, 301))
    assert agent.links > 1


def test_a_silent_node_is_noticed(pool: MemoryPool) -> None:
    """A node that says nothing, not even to the heartbeat, loses its link and then its tasks."""
    agent = pool.add(slots=1, holding=True)
    future = pool.submit(double, 1)
    eventually(lambda: agent.held)
    agent.mute = True
    pool.add(slots=1)
    assert future.result(10) == 2


def test_large_buffers_go_to_a_node_once(pool: MemoryPool) -> None:
    """The same content, in whatever array, crosses once for each node."""
    agents = [pool.add(slots=1), pool.add(slots=1)]
    x = np.arange(400_000.0)
    futures = [pool.submit(lambda a, i: float(a.sum()) + i, x.copy(), i) for i in range(20)]
    assert [future.result(5) for future in futures] == [float(x.sum()) + i for i in range(20)]
    assert [agent.blobs_sent for agent in agents] == [1, 1]


@pytest.mark.parametrize("count", [10_000, 400_000])
def test_an_array_that_is_changed_after_submit_changes_no_result(pool: MemoryPool, count: int) -> None:
    """Tasks see their arguments as they were, also those that use the same content later."""
    agent = pool.add(slots=1, holding=True)
    x = np.zeros(count)
    futures = [pool.submit(lambda a: float(a.sum()), x) for _ in range(2)]
    x[:] = 1
    ones = pool.submit(lambda a: float(a.sum()), x)
    x[:] = 0
    futures.append(pool.submit(lambda a: float(a.sum()), x))
    eventually(lambda: agent.held)
    pool.do(agent.release)
    assert [future.result(5) for future in futures] == [0.0, 0.0, 0.0]
    assert ones.result(5) == count
    eventually(lambda: "<Snapshots 0" in repr(pool.dispatcher._snapshots))


@pytest.mark.skipif(not CAN_SHARE, reason="no files in memory here")
@pytest.mark.parametrize("blind", [False, True])
def test_nodes_on_this_machine_open_large_buffers(blind: bool) -> None:
    """None is sent to those that can; the others get the bytes."""
    pool = MemoryPool(shares=True)
    try:
        agents = [pool.add(blind=blind) for _ in range(2)]
        array = np.arange(1_000_000.0)
        futures = [pool.submit(np.sum, array, options=TaskOptions(large=1 << 20)) for _ in range(20)]
        assert {float(future.result(10)) for future in futures} == {array.sum()}
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
    assert future.result(5) == 2
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
            future.result(5)
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
            future.result(5)
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


def test_what_a_node_holds_ahead_goes_to_an_idle_one(pool: MemoryPool) -> None:
    """Its tasks run elsewhere though it never goes on."""
    stuck = pool.add(slots=1)
    for _ in range(30):  # short ones, so that it is given tasks ahead
        pool.submit(double, 1).result(5)
    stuck.holding = True
    futures = [pool.submit(double, i) for i in range(10)]
    eventually(lambda: len(stuck.held) > 1)
    pool.add(slots=1)
    eventually(lambda: sum(future.done() for future in futures) == 9)
    pool.do(stuck.release)
    assert [future.result(5) for future in futures] == [2 * i for i in range(10)]


def test_a_slow_callback_of_one_call_does_not_hold_up_another(pool: MemoryPool) -> None:
    """Callbacks of one call run in a lane of their own."""
    pool.add()
    stuck, released = threading.Event(), threading.Event()
    slow = pool.submit(double, 1, options=TaskOptions(group=TaskGroup()))
    slow.add_done_callback(lambda _: (stuck.set(), released.wait(10)))
    assert stuck.wait(5)
    assert pool.submit(double, 2, options=TaskOptions(group=TaskGroup())).result(5) == 4
    released.set()


def test_callbacks_of_one_call_come_one_at_a_time(pool: MemoryPool) -> None:
    """joblib relies on it."""
    pool.add()
    busy = threading.Lock()
    overlaps, done = [], []

    def callback(_: object) -> None:
        overlaps.append(not busy.acquire(blocking=False))
        done.append(1)
        busy.release()

    options = TaskOptions(group=TaskGroup())
    for i in range(200):
        pool.submit(double, i, options=options).add_done_callback(callback)
    eventually(lambda: len(done) == 200)
    assert not any(overlaps)


def test_errors_that_come_together_are_met_in_order(pool: MemoryPool) -> None:
    """Whichever of them is heard of first; none waits for a task that goes on."""
    agent = pool.add(slots=5, holding=True)
    met: list[int] = []
    futures = [pool.submit(divmod, number, number % 2) for number in range(5)]  # every other one fails
    for number, future in enumerate(futures):
        future.add_done_callback(lambda _, number=number: met.append(number))
    eventually(lambda: len(agent.held) == 5)
    pool.do(lambda: [agent.answer(task) for task in (5, 3, 2)])
    pool.do(agent.flush)
    eventually(lambda: len(met) == 3)
    assert met == [1, 2, 4]
    pool.do(agent.release)
    assert [type(future.exception(5)) for future in futures] == [ZeroDivisionError, type(None)] * 2 + [
        ZeroDivisionError
    ]


def test_an_error_does_not_wait_for_a_task_that_runs_for_long(pool: MemoryPool) -> None:
    """Nor longer than for the answer that was expected before."""
    kept = pool.dispatcher._completion._errors._kept
    agent = pool.add(slots=4, holding=True)
    first, second, third = [pool.submit(divmod, 1, 0) for _ in range(3)]
    eventually(lambda: len(agent.held) == 3)

    def answer(task: int) -> None:
        agent.answer(task)
        agent.flush()

    pool.do(answer, 3)
    eventually(lambda: kept)
    pool.do(answer, 2)
    pool.do(agent.begin, 1)
    assert third.exception(5) is not None
    assert second.done()
    eventually(lambda: 0 < pool.dispatcher.runner.jobs[1].began < time.monotonic() - TOGETHER)
    fourth = pool.submit(divmod, 1, 0)
    eventually(lambda: 4 in agent.held)
    pool.do(answer, 4)
    eventually(lambda: 4 not in pool.dispatcher.runner.jobs)
    assert not kept
    assert fourth.exception(5) is not None
    assert not first.done()
    pool.do(agent.release)
    assert first.exception(5) is not None


def test_an_error_that_is_kept_back_is_not_lost_at_the_end(pool: MemoryPool) -> None:
    agent = pool.add(slots=2, holding=True)
    futures = [pool.submit(divmod, 1, 0) for _ in range(2)]
    eventually(lambda: len(agent.held) == 2)

    def answer() -> None:
        agent.answer(2)
        agent.flush()

    pool.do(answer)
    eventually(lambda: 2 not in pool.dispatcher.runner.jobs)
    pool.close()
    assert futures[0].cancelled()
    assert isinstance(futures[1].exception(5), ZeroDivisionError)


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
    assert [future.result(5) for future in futures] == [0, 2, 4, 6, 8, 10]
    assert most == 2


def test_a_time_limit_names_task_and_node(pool: MemoryPool) -> None:
    """A timeout that the node reports becomes TaskTimeout."""
    agent = pool.add(holding=True)
    future = pool.submit(double, 1, options=TaskOptions(timeout=2.5, count=2))
    eventually(lambda: agent.held)
    assert agent.held[1][0].timeout == 5.0
    pool.do(agent.crash, 1, messages.Failure.TIMEOUT, "")
    with pytest.raises(TaskTimeout, match=r"double \(task 1\) on m0 was stopped after 5 s"):
        future.result(5)


def test_a_closed_pool_says_so(pool: MemoryPool) -> None:
    """After close, submit raises and nothing hangs."""
    waiting = pool.submit(double, 1)
    pool.close()
    assert waiting.cancelled()
    with pytest.raises(PoolNotActive):
        pool.submit(double, 1)


class _Slow:
    """Takes its time to be pickled."""

    def __init__(self) -> None:
        self.began, self.may_end = threading.Event(), threading.Event()

    def __reduce__(self) -> tuple[type[int], tuple[()]]:
        self.began.set()
        assert self.may_end.wait(10)
        return int, ()


@pytest.mark.parametrize("late", ["before the loop ends", "after the end"])
def test_a_call_that_is_pickled_while_the_pool_is_closed_does_not_hang(pool: MemoryPool, late: str) -> None:
    """Its future is cancelled, whenever it comes."""
    pool.add()
    slow = _Slow()
    with concurrent.futures.ThreadPoolExecutor() as threads:
        submitting = threads.submit(pool.submit, double, slow)
        assert slow.began.wait(10)
        if late == "after the end":
            pool.close()
            slow.may_end.set()
            future = submitting.result(10)
        else:
            pool.dispatcher.shut("closed")
            pool.do(pool.dispatcher.cancel_all)
            pool.do(pool.dispatcher.runner.node_down, "m0", "given back")
            slow.may_end.set()
            future = submitting.result(10)
            pool.close()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(5)


def test_more_arrays_than_a_message_has_buffers(pool: MemoryPool) -> None:
    """Those beyond the limit travel in the pickle."""
    pool.add()
    array = np.zeros(16 * 1024, np.uint8)
    assert pool.submit(len, [array[:] for _ in range(66_000)]).result(120) == 66_000


def _submit_in_child(pool: MemoryPool, answers: object) -> None:
    try:
        pool.submit(double, 1)
    except PoolNotActive as error:
        answers.put(str(error))  # type: ignore[attr-defined]


def test_use_after_fork_raises(pool: MemoryPool) -> None:
    """A forked child gets an error, it does not hang."""
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_submit_in_child, args=(pool, answers))
    child.start()
    assert "fork" in answers.get(timeout=10)
    child.join(10)


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
    assert (lost.result(5), kept.result(5)) == (2, 4)
    assert len(agent.ran) == 2
    (note,) = notes
    assert "m0 has lost double" in note


def test_a_task_that_is_lost_again_and_again_fails(pool: MemoryPool) -> None:
    pool.add(forgetful=True)
    with pytest.raises(WorkerCrashed, match="the node lost it"):
        pool.submit(double, 1).result(5)


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


def test_a_loop_that_was_held_up_does_not_blame_its_nodes(pool: MemoryPool) -> None:
    """A thread that unpickles gigabytes may hold Python's lock for longer than a node may be silent."""
    agent = pool.add()
    assert pool.submit(double, 1).result(5) == 2
    for _ in range(3):
        pool.do(time.sleep, 2 * QUICK.silence)  # what is slow is the subject
        assert pool.submit(double, 2).result(5) == 4
    heard = agent.inbox.received
    pool.submit(double, 3).result(5)
    eventually(lambda: agent.inbox.received > heard)
    assert agent.links == 1


def test_a_node_that_does_not_say_what_it_has_is_lost() -> None:
    """It answers every heartbeat, keeps its task and never answers for it."""
    pool = MemoryPool(attempts=1)
    pool.add(forgetful=True, reticent=True)
    with pytest.raises(NodeLost, match="asked which of its tasks it has"):
        pool.submit(double, 1).result(20)
    pool.close()


def test_every_command_and_message_has_a_handler() -> None:
    assert set(TaskRunner._COMMANDS) == set(get_args(Command))
    of_sessions = {messages.Ping, messages.Pong, messages.Ack, messages.Ready}
    assert {*TaskRunner._MESSAGES, *ABOUT_BLOBS} == TALK[Role.WORKER] - of_sessions
