"""Pools on this machine: what a user meets, with real agents and real processes."""

from __future__ import annotations

import concurrent.futures
import gc
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import skyward as sky
from tests.core.folder_cloud import FolderCloud
from tests.core.memory_agent import eventually


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


def test_image_env_reaches_tasks() -> None:
    """Image(env=...) is the tasks' environment."""
    with sky.Compute(image=sky.Image(env={"COLOUR": "blue"}), console=False) as pool:
        assert pool.submit(os.getenv, "COLOUR").result() == "blue"


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"provider": "narnia"}, ["narnia", "local", "ssh", "its own package"]),
        ({"provider": 7}, ["provider=7", "sky.Local()"]),
        ({"provider": sky.Local}, ["Local()"]),
        ({"provider": []}, ["provider=[]"]),
        ({"nodes": 0}, ["nodes=0", "1 or more"]),
        ({"nodes": -2}, ["nodes=-2"]),
        ({"nodes": "three"}, ["nodes='three'", "whole number"]),
        ({"nodes": 1.5}, ["nodes=1.5"]),
        ({"nodes": True}, ["nodes=True"]),
        ({"nodes": (3, 2)}, ["nodes=(2, 3)"]),
        ({"concurrency": 0}, ["concurrency=0"]),
        ({"concurrency": "many"}, ["concurrency='many'"]),
        ({"worker": 3}, ["worker=3", "sky.Worker"]),
        ({"memory": "lots"}, ["memory='lots'", "32GB"]),
        ({"memory": -1}, ["memory=-1"]),
        ({"vcpus": 0}, ["vcpus=0"]),
        ({"vcpus": 2, "cpu": 3}, ["vcpus=2", "cpu=3"]),
        ({"worker": sky.Worker(2), "concurrency": 2}, ["worker=", "concurrency=2", "only one"]),
        ({"allocation": "stolen"}, ["stolen", "always-spot"]),
        ({"timeout": -1}, ["timeout=-1"]),
        ({"timeout": "soon"}, ["timeout='soon'"]),
        ({"plugins": 5}, ["plugins=5"]),
        ({"plugins": [print]}, ["parentheses"]),
        ({"image": "ubuntu"}, ["image='ubuntu'", "sky.Image"]),
        ({"volume": [sky.S3Volume("/data", "bucket", "prefix/")]}, ["volumes are not supported yet"]),
    ],
    ids=str,
)
def test_a_wrong_argument_is_told_at_once(arguments: dict[str, Any], words: list[str]) -> None:
    """A ConfigError before anything starts; it is a ValueError too, and says what and where."""
    threads = threading.active_count()
    with pytest.raises(sky.ConfigError) as caught:
        sky.Compute(**arguments)
    assert isinstance(caught.value, ValueError)
    for word in words:
        assert word in str(caught.value)
    assert threading.active_count() == threads


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


def test_start_and_close_for_notebooks() -> None:
    """Without a with-block."""
    pool = sky.Compute(console=False).start()
    assert pool.submit(abs, -3).result() == 3
    pool.close()
    assert not pool.is_active


def test_the_block_waits_for_its_tasks_and_an_exception_does_not() -> None:
    """Leaving the block waits, as an executor does; leaving it by an exception gives the tasks up."""
    with sky.Compute(console=False) as pool:
        future = pool.submit(time.sleep, 0.3)
    assert future.result() is None
    began = time.monotonic()
    with pytest.raises(KeyError), sky.Compute(console=False) as pool:
        future = pool.submit(time.sleep, 60)
        raise KeyError("x")
    assert future.cancelled()
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("plugins", [[], [sky.plugins.joblib()]], ids=["plain", "joblib"])
def test_a_block_that_sent_no_task_says_so_at_its_end(plugins: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    """Nodes that were waited for, and perhaps paid, for nothing: with the way that is open to this pool."""
    with sky.Compute(plugins=plugins, console=False):
        pass
    (said,) = [record.message for record in caplog.records if "no task was sent" in record.message]
    assert said.startswith("no task was sent to the nodes of sky-")
    assert ("plugins=[" in said) is (not plugins)


def test_a_block_that_sent_tasks_or_failed_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """One task is enough; after an exception there are other worries."""
    with sky.Compute(console=False) as pool:
        pool.submit(abs, -1)
    with pytest.raises(KeyError), sky.Compute(console=False):
        raise KeyError
    assert not [record for record in caplog.records if "no task was sent" in record.message]


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


def test_a_time_limit_stops_the_task() -> None:
    """Compute(timeout=...) ends a task that runs too long; the slot serves the next."""
    with sky.Compute(timeout=0.5, console=False) as pool:
        with pytest.raises(sky.TaskTimeout, match=r"sleep \(task 1\) on node-1"):
            pool.submit(time.sleep, 60).result(30)
        assert pool.submit(abs, -1).result(30) == 1


def test_a_result_that_does_not_pickle_is_named(pool: sky.Compute) -> None:
    """The error says where the culprit sits in the result."""
    with pytest.raises(sky.PayloadError, match=r"result.*lock"):
        pool.submit(_lock).result(30)


def _lock() -> Any:
    return {"model": [threading.Lock()]}


def _agents_of(pool: sky.Compute) -> list[int]:
    (provider,) = pool.providers
    return [int(machine.id.rpartition("-")[2]) for machine in provider.machines(pool.name)]


def test_a_killed_agent_loses_nothing() -> None:
    """kill -9 of a node in mid-run: its tasks run again elsewhere, and the node is replaced."""
    with sky.Compute(nodes=2, worker=sky.Worker(concurrency=2, executor="process"), console=False) as pool:
        futures = [pool.submit(_slow_double, i) for i in range(40)]
        futures[2].result(30)
        os.kill(_agents_of(pool)[0], signal.SIGKILL)
        assert [future.result(30) for future in futures] == [2 * i for i in range(40)]
        eventually(lambda: pool.total_slots == 4, 20)


# --- the driver's end -----------------------------------------------------------------------------------------------


def _script(text: str, tmp_path: Path) -> subprocess.Popen[str]:
    path = tmp_path / "script.py"
    path.write_text("import os, signal, sys, time, threading\nimport skyward as sky\n" + textwrap.dedent(text))
    return subprocess.Popen(
        [sys.executable, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )


def _alive(session: int) -> list[str]:
    """Processes whose environment carries the script's mark."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes()
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if f"SKY_TEST_MARK={session}".encode() in environment.split(b"\0") and state != "Z":
            found.append(f"{entry.name}: {(entry / 'cmdline').read_bytes()!r}")
    return found


BLOCK = """
with sky.Compute(nodes=2, worker=sky.Worker(concurrency=2, executor="process"), console=False) as pool:
    futures = [pool.submit(time.sleep, 100) for _ in range(8)]
    print("running", flush=True)
    {what}
"""


@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT", "SIGINT twice", "SIGTERM", "exit", "abandoned"])
def test_however_the_driver_ends_nothing_is_left(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9, Ctrl-C once and twice, kill, sys.exit, a pool that nobody closed: no process stays."""
    mark = os.getpid() * 1000 + hash(how) % 1000
    monkeypatch.setenv("SKY_TEST_MARK", str(mark))
    what = "sys.exit(3)" if how == "exit" else "concurrent = [f.result() for f in futures]"
    text = BLOCK.format(what=what)
    if how == "abandoned":
        text = "pool = sky.Compute(console=False).start()\nprint('running')\n"
    script = _script(text, tmp_path)
    assert script.stdout is not None
    assert script.stdout.readline() == "running\n"
    if how.startswith("SIG"):
        script.send_signal(getattr(signal, how.split(maxsplit=1)[0]))
        if "twice" in how:
            script.send_signal(signal.SIGINT)
    _, errors = script.communicate(timeout=30)
    if how in ("exit", "abandoned"):
        assert script.returncode == (3 if how == "exit" else 0)
        assert "Traceback" not in errors
    eventually(lambda: not _alive(mark), 10)


WORK = """
    def work(path):
        while not os.path.exists(path + ".go"):
            time.sleep(0.01)
        open(path, "w").close()

    pool = sky.Compute(concurrency=2).start()
    futures = [pool.submit(work, {path!r} + str(number)) for number in range(3)]
"""


@pytest.mark.parametrize("end", ["", "del pool", "pool.shutdown(wait=False)", "sys.exit(0)"])
def test_a_program_that_ends_finishes_what_was_submitted(end: str, tmp_path: Path) -> None:
    """As executors of the standard library do, and it says what it waits for."""
    path = str(tmp_path / "done")
    script = _script(textwrap.dedent(WORK).format(path=path) + end, tmp_path)
    assert script.stderr is not None
    assert "has finished but waits for 3 tasks of sky-" in script.stderr.readline()
    for number in range(3):
        Path(f"{path}{number}.go").touch()
    script.communicate(timeout=30)
    assert script.returncode == 0
    assert all(Path(f"{path}{number}").exists() for number in range(3))


def test_ctrl_c_hurries_a_program_that_waits_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tasks of all its pools are given up."""
    mark = os.getpid() * 1000 + 997
    monkeypatch.setenv("SKY_TEST_MARK", str(mark))
    work = textwrap.dedent(WORK).format(path=str(tmp_path / "never"))
    script = _script(f"{work}other = sky.Compute(console=False).start()\nother.submit(time.sleep, 100)\n", tmp_path)
    assert script.stderr is not None
    assert "waits for" in script.stderr.readline()
    script.send_signal(signal.SIGINT)
    _, errors = script.communicate(timeout=30)
    # It depends on which was waited for first.
    assert re.search("warning: cancelled (3 unfinished tasks|1 unfinished task) of sky-", errors)
    assert "Traceback" not in errors
    eventually(lambda: not _alive(mark), 10)


def test_ctrl_c_is_answered_while_machines_are_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it does at the first, and at the second what a third would mean: these machines don't end by themselves."""
    monkeypatch.setenv("SKYWARD_STATE", str(tmp_path / "state"))
    cloud = FolderCloud(str(tmp_path / "cloud"))
    Path(cloud.folder).mkdir()
    sticky = Path(cloud.folder) / "sticky"
    sticky.touch()
    script = _script(
        f"""
        from tests.core.folder_cloud import FolderCloud
        with sky.Compute(provider=FolderCloud({cloud.folder!r})):
            pass
        """,
        tmp_path,
    )
    assert script.stderr is not None
    eventually((Path(cloud.folder) / "machines").exists, 30)
    script.send_signal(signal.SIGINT)
    lines = iter(script.stderr.readline, "")
    assert "terminating 1 machine(s) of sky-" in next(line for line in lines if "terminating" in line)
    script.send_signal(signal.SIGINT)
    told = next(line for line in lines if "second Ctrl-C" in line)
    assert told.rstrip().endswith("a second Ctrl-C leaves that to a background process; check with `skyward ls`")
    sticky.unlink()
    script.communicate(timeout=60)
    assert cloud.left() == []


def test_a_fork_of_the_driver_does_not_keep_nodes_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that outlives a killed driver holds no lifeline."""
    mark = os.getpid() * 1000 + 998
    monkeypatch.setenv("SKY_TEST_MARK", str(mark))
    script = _script(
        """
        pool = sky.Compute(console=False).start()
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
        print(child, flush=True)
        time.sleep(30)
        """,
        tmp_path,
    )
    assert script.stdout is not None
    child = int(script.stdout.readline())
    script.kill()
    try:
        eventually(lambda: not any("skyward.worker" in process for process in _alive(mark)), 10)
    finally:
        os.kill(child, signal.SIGKILL)
        script.communicate(timeout=10)


def test_ctrl_c_while_starting_gives_everything_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt before the nodes are ready ends as one after."""
    mark = os.getpid() * 1000 + 999
    monkeypatch.setenv("SKY_TEST_MARK", str(mark))
    for delay in (0.0, 0.02, 0.1, 0.2):
        script = _script(
            f"""
            threading.Timer({delay}, os.kill, (os.getpid(), signal.SIGINT)).start()
            with sky.Compute(nodes=2, concurrency=2, console=False) as pool:
                time.sleep(30)
            """,
            tmp_path,
        )
        _, errors = script.communicate(timeout=30)
        assert "KeyboardInterrupt" in errors
        assert "Traceback" in errors
        eventually(lambda: not _alive(mark), 10)


def test_a_forgotten_pool_is_closed_when_it_is_collected() -> None:
    """Garbage collection ends in an orderly close too."""
    pool = sky.Compute(console=False).start()
    (agent,) = _agents_of(pool)
    del pool
    gc.collect()
    eventually(lambda: not Path(f"/proc/{agent}").exists(), 10)


def test_two_pools_at_once_from_two_threads() -> None:
    """Pools do not disturb each other."""

    def use(name: str) -> set[str]:
        with sky.Compute(concurrency=2, image=sky.Image(env={"POOL": name}), console=False) as pool:
            return set(pool.map(os.getenv, ["POOL"] * 20))

    with concurrent.futures.ThreadPoolExecutor() as threads:
        assert list(threads.map(use, ["a", "b"])) == [{"a"}, {"b"}]
