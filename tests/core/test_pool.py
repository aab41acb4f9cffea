"""Pools on this machine: what a user meets, with real agents and real processes."""

from __future__ import annotations

import concurrent.futures
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import skyward as sky
from skyward.core.events import PoolDraining
from tests.lab.wait import eventually


@pytest.fixture(scope="module")
def pool() -> Iterator[sky.Compute]:
    with sky.Compute(nodes=2, concurrency=2, console=False) as pool:
        yield pool


def where() -> str:
    return os.environ["SKYWARD_NODE"]


def test_slots_and_names(pool: sky.Compute) -> None:
    """total_slots is nodes x concurrency."""
    assert pool.total_slots == 4
    assert len(pool.node_names) == 2
    assert "2 nodes" in repr(pool)


@pytest.mark.slow
@pytest.mark.parametrize(("executor", "processes"), [("auto", 2), ("process", 2), ("thread", 1)])
def test_slots_are_processes_and_threads_on_request(executor: Any, processes: int, tmp_path: Path) -> None:
    """For submit, map and the operators alike: two tasks that run at a time share nothing unless they are to."""
    meet = sky.compute(_meet)
    with sky.Compute(worker=sky.Worker(concurrency=2, executor=executor), console=False) as pool:
        ways = [
            lambda folder: [pool.submit(_meet, folder, me).result for me in (0, 1)],
            lambda folder: [lambda found=found: found for found in pool.map(_meet, [folder] * 2, (0, 1))],
            lambda folder: [(meet(folder, me) > pool).result for me in (0, 1)],
            lambda folder: [lambda found=found: found for found in (meet(folder, 0) & meet(folder, 1)) >> pool],
        ]
        for number, way in enumerate(ways):
            folder = tmp_path / str(number)
            folder.mkdir()
            assert len({result() for result in way(folder)}) == processes


def _meet(folder: Path, me: int) -> int:
    """The process of a task that runs at the same time as its other."""
    (folder / str(me)).touch()
    eventually((folder / str(1 - me)).exists, 30)
    return os.getpid()


def test_tasks_see_the_drivers_modules_and_folder(pool: sky.Compute) -> None:
    """Local nodes have the driver's sys.path and working directory."""
    assert pool.submit(os.getcwd).result() == os.getcwd()
    assert pool.submit(eval, "__import__('tests.core.test_pool').__name__").result() == "tests"


@pytest.mark.slow
def test_image_env_reaches_tasks() -> None:
    """Image(env=...) is the tasks' environment."""
    with sky.Compute(image=sky.Image(env={"COLOUR": "blue"}), console=False) as pool:
        assert pool.submit(os.getenv, "COLOUR").result() == "blue"


def test_a_pool_is_used_between_enter_and_exit_only() -> None:
    """Not before, not twice, not after."""
    pool = sky.Compute(console=False)
    with pytest.raises(sky.PoolNotActive, match="Backend not configured: use the pool as a context manager"):
        pool.submit(abs, 1)
    with pytest.raises(sky.PoolNotActive):
        _ = pool.total_slots
    with pool:
        with pytest.raises(sky.PoolNotActive, match="already used"):
            pool.start()
        assert pool.submit(abs, -1).result() == 1
    with pytest.raises(sky.PoolNotActive, match="closed"):
        pool.submit(abs, 1)
    with pytest.raises(sky.PoolNotActive):
        pool.start()
    pool.close()


def _wait_for(file: Path) -> bool:
    while not file.exists():
        time.sleep(0.01)
    return True


@pytest.mark.slow
def test_a_pool_that_finishes_its_tasks_says_so(tmp_path: Path) -> None:
    """It accepts none, and can be asked how it is until it has ended."""
    pool = sky.Compute(console=False)
    drains = threading.Event()
    pool.events.subscribe(lambda _: drains.set(), [PoolDraining])
    pool.start()
    future = pool.submit(_wait_for, tmp_path / "go")
    closing = threading.Thread(target=pool.close)
    closing.start()
    try:
        assert drains.wait(60)
        assert [node.state for node in pool.status().nodes] == ["draining"]
        assert "1 of 1 nodes draining" in repr(pool)
        with pytest.raises(sky.PoolNotActive):
            pool.submit(abs, 1)
    finally:
        (tmp_path / "go").touch()
        closing.join()
    assert future.result() is True
    assert repr(pool).endswith(": closed>")
    with pytest.raises(sky.PoolNotActive):
        pool.status()


def test_start_and_close_for_notebooks() -> None:
    """Without a with-block."""
    pool = sky.Compute(console=False).start()
    assert pool.submit(abs, -3).result() == 3
    pool.close()
    assert not pool.is_active


# --- bad tasks ------------------------------------------------------------------------------------------------------


def _exit_hard() -> None:
    os._exit(7)


def _segfault() -> None:
    import ctypes

    ctypes.string_at(0)


def _kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _recurse() -> int:
    return 1 + _recurse()


def _close_stdout() -> str:
    os.close(1)
    return "closed"


def _binary() -> str:
    os.write(1, bytes(range(256)) * 100)
    return "printed"


def _fork() -> str:
    child = os.fork()
    if child == 0:
        return "child"
    os.waitpid(child, 0)
    return "parent"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "text"),
    [(_exit_hard, "exit"), (_segfault, "SIGSEGV"), (_kill_self, "SIGKILL")],
    ids=["os._exit", "segfault", "kill -9"],
)
@pytest.mark.parametrize("executor", ["thread", "process"])
def test_a_task_that_kills_its_worker_fails_alone(task: Any, text: str, executor: str) -> None:
    """WorkerCrashed names how, where and which; other tasks of the pool are not touched."""
    with sky.Compute(worker=sky.Worker(concurrency=2, executor=executor), console=False) as pool:
        others = [pool.submit(_slow_double, i) for i in range(6)]
        bad = pool.submit(task)
        with pytest.raises(sky.WorkerCrashed, match=text) as caught:
            bad.result(30)
        assert "node-1" in str(caught.value)
        assert task.__name__ in str(caught.value)
        assert [future.result(30) for future in others] == [0, 2, 4, 6, 8, 10]
        assert pool.submit(abs, -1).result(30) == 1


def _slow_double(x: int) -> int:
    time.sleep(0.1)
    return 2 * x


@pytest.mark.slow
def test_strange_tasks_end_in_a_result_or_their_own_error(pool: sky.Compute, capfd: pytest.CaptureFixture[str]) -> None:
    """sys.exit, endless recursion, a closed fd 1, binary output, a fork: each is that task's affair alone."""
    with pytest.raises(SystemExit) as caught:
        pool.submit(sys.exit, 3).result(30)
    assert caught.value.code == 3
    with pytest.raises(RecursionError):
        pool.submit(_recurse).result(30)
    assert pool.submit(_close_stdout).result(30) == "closed"
    assert pool.submit(_binary).result(30) == "printed"
    assert pool.submit(_fork).result(30) == "parent"
    assert list(pool.map(abs, range(-20, 0))) == list(range(20, 0, -1))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_result_of_two_gigabytes_arrives(pool: sky.Compute) -> None:
    """It is not refused and not cut."""
    result = pool.submit(_gigabytes, 2).result(550)  # seconds, where nothing else runs here
    assert len(result) == 2 * 2**30
    assert result[-1] == 7


def _gigabytes(count: int) -> bytearray:
    data = bytearray(count * 2**30)
    data[-1] = 7
    return data


@pytest.mark.slow
def test_output_is_marked_with_its_node(capsys: pytest.CaptureFixture[str]) -> None:
    """What a task prints reaches the user's terminal, each line marked, on the stream it was meant for."""
    with sky.Compute(console=False) as pool:
        pool.submit(print, "one\ntwo").result()
        pool.submit(print, "uh-oh", file=None).result()
        pool.submit(_complain).result()
    out, err = capsys.readouterr()
    assert "[node-1] one\n[node-1] two\n" in out
    assert "[node-1] to the errors\n" in err


def _complain() -> None:
    print("to the errors", file=sys.stderr)


@pytest.mark.slow
def test_a_time_limit_stops_the_task() -> None:
    """Compute(timeout=...) ends a task that runs too long; the slot serves the next."""
    with sky.Compute(timeout=0.5, console=False) as pool:
        with pytest.raises(sky.TaskTimeout, match=r"sleep \(task 1\) on node-1"):
            pool.submit(time.sleep, 60).result(30)
        assert pool.submit(abs, -1).result(30) == 1


@pytest.mark.slow
def test_a_result_that_does_not_pickle_is_named(pool: sky.Compute) -> None:
    """The error says where the culprit sits in the result."""
    with pytest.raises(sky.PayloadError, match=r"result.*lock"):
        pool.submit(_lock).result(30)


def _lock() -> Any:
    return {"model": [threading.Lock()]}


def _agents_of(pool: sky.Compute) -> list[int]:
    (provider,) = pool.providers
    return [int(machine.id.rpartition("-")[2]) for machine in provider.machines(pool.name)]


@pytest.mark.slow
def test_a_killed_agent_loses_nothing() -> None:
    """kill -9 of a node in mid-run: its tasks run again elsewhere, and the node is replaced."""
    with sky.Compute(nodes=2, worker=sky.Worker(concurrency=2, executor="process"), console=False) as pool:
        futures = [pool.submit(_slow_double, i) for i in range(40)]
        futures[2].result(30)
        os.kill(_agents_of(pool)[0], signal.SIGKILL)
        assert [future.result(30) for future in futures] == [2 * i for i in range(40)]
        eventually(lambda: pool.total_slots == 4, 20)


@pytest.mark.slow
def test_a_forgotten_pool_is_closed_when_it_is_collected() -> None:
    """Garbage collection ends in an orderly close too."""
    pool = sky.Compute(console=False).start()
    (agent,) = _agents_of(pool)
    del pool
    gc.collect()
    eventually(lambda: not Path(f"/proc/{agent}").exists())


@pytest.mark.slow
def test_two_pools_from_two_threads() -> None:
    """Pools do not disturb each other."""

    def use(name: str) -> set[str]:
        with sky.Compute(concurrency=2, image=sky.Image(env={"POOL": name}), console=False) as pool:
            return set(pool.map(os.getenv, ["POOL"] * 20))

    with concurrent.futures.ThreadPoolExecutor() as threads:
        assert list(threads.map(use, ["a", "b"])) == [{"a"}, {"b"}]
