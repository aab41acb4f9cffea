"""What tasks can do to a slot, and what is reported to the owner."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skyward.core.errors import PayloadError
from skyward.core.payload import exceptions
from skyward.core.protocol.messages import Done, Failure
from tests.worker.helpers import Owner, alive, owner, wait_for


def test_a_task_returns(both: Owner) -> None:
    assert both.call(pow, 2, 5) == 32


@pytest.mark.slow
def test_a_thousand_small_tasks(both: Owner) -> None:
    tasks = [both.submit(divmod, n, 7) for n in range(1000)]
    assert [both.result(task) for task in tasks] == [divmod(n, 7) for n in range(1000)]


def test_slots_run_at_a_time_and_in_their_mode(both: Owner) -> None:
    def meet() -> tuple[int, bool]:
        time.sleep(0.05)
        return os.getpid(), threading.current_thread() is threading.main_thread()

    tasks = [both.submit(meet) for _ in range(2)]
    pids, main = zip(*(both.result(task) for task in tasks), strict=True)
    assert len(set(pids)) == (2 if both.isolated else 1)
    assert set(main) == {both.isolated}
    assert both.pid not in pids


def test_an_exception_keeps_type_attributes_and_cause(both: Owner) -> None:
    def fails() -> None:
        try:
            {}["x"]
        except KeyError as error:
            problem = ValueError("wrong", 3)
            problem.extra = "more"  # type: ignore[attr-defined]
            raise problem from error

    task = both.submit(fails)
    with pytest.raises(ValueError, match="wrong") as caught:
        both.result(task)
    assert caught.value.args == ("wrong", 3)
    assert caught.value.extra == "more"  # type: ignore[attr-defined]
    assert isinstance(caught.value.__cause__, KeyError)
    remote = caught.value.__cause__.__cause__
    assert isinstance(remote, exceptions.RemoteTraceback)
    assert "in fails" in remote.text
    assert "skyward/worker" not in remote.text


@pytest.mark.slow
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, MemoryError, GeneratorExit])
def test_what_is_not_an_exception_fails_the_task_only(both: Owner, kind: type[BaseException]) -> None:
    def fails() -> None:
        raise kind("three")

    task = both.submit(fails)
    assert both.failed(task).reason == Failure.RAISED.value
    with pytest.raises(kind, match="three"):
        both.result(task)
    assert both.call(pow, 2, 2) == 4


@pytest.mark.slow
def test_recursion_without_end(both: Owner) -> None:
    def forever(n: int) -> int:
        return forever(n + 1) + 1

    with pytest.raises(RecursionError):
        both.call(forever, 0)
    assert both.call(pow, 2, 2) == 4


def die(how: str) -> None:
    if how == "exit":
        os._exit(3)
    elif how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "group":
        os.killpg(0, signal.SIGKILL)
    else:
        import ctypes

        ctypes.string_at(0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "words"),
    [("exit", "exit status 3"), ("kill", "killed by SIGKILL"), ("group", "killed by SIGKILL"), ("null", "SIGSEGV")],
)
def test_a_dead_slot_fails_its_task_and_is_replaced(both: Owner, how: str, words: str) -> None:
    failed = both.failed(both.submit(die, how))
    assert failed.reason == Failure.CRASHED.value
    assert words in failed.detail
    assert [both.call(pow, 2, n) for n in range(4)] == [1, 2, 4, 8]


@pytest.mark.slow
def test_only_the_task_of_the_dead_slot_is_touched(node: Owner) -> None:
    other = node.submit(time.sleep, 0.3)
    assert node.failed(node.submit(die, "exit")).reason == Failure.CRASHED.value
    assert isinstance(node.answer(other).message, Done)


@pytest.mark.slow
def test_a_shared_slot_that_dies_takes_all_its_tasks() -> None:
    with owner() as node:
        node.set_up(isolated=False)
        long = node.submit(time.sleep, 60, isolated=False)
        node.submit(die, "exit", isolated=False)
        assert node.failed(long).reason == Failure.SHARED_CRASH.value
        assert node.failed(2).reason == Failure.SHARED_CRASH.value
        assert node.call(pow, 2, 2, isolated=False) == 4


@pytest.mark.slow
def test_binary_garbage_on_stdout(both: Owner) -> None:
    garbage = bytes(range(256)) * 50

    def talk() -> int:
        os.write(1, garbage)
        print("text \udcff")
        print("error", file=sys.stderr)
        return os.write(2, garbage[::-1])

    assert both.call(talk) == len(garbage)
    assert both.output[1] == garbage + b"text \\udcff\n"
    assert both.output[2] == b"error\n" + garbage[::-1]


@pytest.mark.slow
def test_output_comes_before_the_result(both: Owner) -> None:
    both.call(os.write, 1, b"no newline")
    kinds = [type(received.message).__name__ for received in both.order]
    assert kinds[-2:] == ["Output", "Done"]
    assert both.output[1] == b"no newline"


@pytest.mark.slow
def test_more_output_than_a_pipe_holds(node: Owner) -> None:
    def talk() -> None:
        for n in range(20_000):
            print(f"line {n:06}")

    node.call(talk)
    assert node.output[1].splitlines() == [b"line %06d" % n for n in range(20_000)]


def test_output_is_held_back_while_nobody_takes_it(node: Owner) -> None:
    def talk() -> None:
        for _ in range(10 * 1024):
            sys.stdout.write("x" * 1023 + "\n")

    node.acks = False
    task = node.submit(talk)
    node.until(lambda: len(node.output[1]) > 4 * 1024 * 1024, "4 MiB of output")
    other = node.submit(pow, 2, 5)  # the other slot works on
    assert node.result(other) == 32
    assert task not in node.answers
    assert len(node.output[1]) < 6 * 1024 * 1024
    node.acks = True
    from skyward.core.protocol.messages import Ack

    node.wire.send(Ack(node.inbox.received))
    node.flush()
    node.answer(task)
    assert len(node.output[1]) == 10 * 1024 * 1024


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fd", "file", "replaced", "other"])
def test_a_task_that_spoils_stdout(both: Owner, how: str) -> None:
    def spoil() -> None:
        if how == "fd":
            os.close(1)
        elif how == "file":
            sys.stdout.close()
        elif how == "replaced":
            sys.stdout = None
        else:
            os.dup2(os.open("/dev/null", os.O_WRONLY), 1)

    both.call(spoil)
    both.call(print, "as before")
    assert both.output[1] == b"as before\n"


def test_closing_every_file_kills_only_the_slot(both: Owner) -> None:
    failed = both.failed(both.submit(os.closerange, 0, 4096))
    assert failed.reason == Failure.CRASHED.value
    assert both.call(pow, 2, 2) == 4


def test_a_fork_that_returns_does_not_answer_twice(both: Owner) -> None:
    def forks() -> int:
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
        return pid

    def forks_and_fails() -> int:
        pid = os.fork()
        if not pid:
            raise ValueError("in the child")
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert both.call(forks) > 0
    assert both.call(forks_and_fails) == 1
    assert both.call(pow, 2, 2) == 4


def test_a_task_may_use_multiprocessing(node: Owner) -> None:
    def pool() -> list[int]:
        import multiprocessing

        with multiprocessing.get_context("fork").Pool(2) as workers:
            return workers.map(abs, range(-5, 0))

    assert node.call(pool) == [5, 4, 3, 2, 1]


def authkey() -> bytes:
    import multiprocessing

    return bytes(multiprocessing.current_process().authkey)


@pytest.mark.slow
def test_the_owners_key_comes_with_calls_that_need_it(node: Owner) -> None:
    def spawned() -> tuple[bytes, bytes]:
        import multiprocessing

        with multiprocessing.get_context("fork").Pool(1) as pool:
            return authkey(), pool.apply(authkey)

    others = [node.submit(authkey) for _ in range(6)]  # on both slots
    assert authkey() not in {node.result(task) for task in others}
    assert node.result(node.submit(spawned, authkey=b"a key")) == (b"a key", b"a key")


def test_a_slot_is_a_clean_process(node: Owner) -> None:
    def inspect() -> dict[str, Any]:
        import multiprocessing

        return {
            "stdin": sys.stdin.read(),
            "group": os.getpgrp() == os.getpid(),
            "fds": [fd for fd in range(3, 100) if Path(f"/proc/self/fd/{fd}").exists()],
            "sigint": signal.getsignal(signal.SIGINT),
            "sigterm": signal.getsignal(signal.SIGTERM),
            "daemon": multiprocessing.current_process().daemon,
            "node": os.environ["SKYWARD_NODE"],
        }

    seen = node.call(inspect)
    assert seen == {
        "stdin": "", "fds": [], "group": True, "sigint": signal.default_int_handler, "sigterm": signal.SIG_DFL,
        "daemon": False, "node": "n0",
    }  # fmt: skip


def test_slots_have_random_numbers_of_their_own() -> None:
    def numbers() -> tuple[int, float, float]:
        import random

        import numpy.random

        time.sleep(0.1)
        return os.getpid(), random.random(), numpy.random.random()

    with owner() as node:
        node.set_up(preload=["numpy.random", "random", "no_such_module"])
        tasks = [node.submit(numbers) for _ in range(2)]
        first, second = (node.result(task) for task in tasks)
    assert not set(first) & set(second)


@pytest.mark.slow
def test_a_hundred_megabytes_come_back(node: Owner) -> None:
    assert node.call(lambda: np.arange(12_500_000)).sum() == 12_500_000 * 12_499_999 // 2
    assert node.call(lambda: bytes(100_000_000)) == bytes(100_000_000)


def test_a_result_that_cannot_be_pickled(both: Owner) -> None:
    task = both.submit(lambda: {"a": [1, threading.Lock()]})
    with pytest.raises(PayloadError, match=r"result\['a'\]\[1\].*lock"):
        both.result(task)
    assert both.failed(task).reason == Failure.RAISED.value
    assert both.call(pow, 2, 2) == 4


class Unloadable:
    def __init__(self, error: type[BaseException], *args: Any) -> None:
        self.call = error, args

    def __reduce__(self) -> Any:
        return fail, self.call


def fail(error: type[BaseException], args: Any) -> None:
    raise error(*args)


@pytest.mark.slow
def test_a_call_that_cannot_be_loaded(both: Owner) -> None:
    task = both.submit(pow, Unloadable(RuntimeError, "no"))
    assert both.failed(task).reason == Failure.UNLOADABLE.value
    with pytest.raises(PayloadError, match=r"node n0.*RuntimeError: no") as caught:
        both.result(task)
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.slow
def test_a_module_that_is_missing(both: Owner) -> None:
    class Missing:
        def __reduce__(self) -> Any:
            return __import__, ("no_such_module.sub",)

    class Part(Missing):
        def __reduce__(self) -> Any:
            return importlib.import_module, ("json.no_such_part",)

    for call, reason, missing in (
        ((pow, Missing()), Failure.UNLOADABLE, "no_such_module"),
        ((pow, Part()), Failure.UNLOADABLE, "json.no_such_part"),
        ((__import__, "no_such_module.sub"), Failure.RAISED, "no_such_module"),
        ((wrapped,), Failure.RAISED, "no_such_module"),
        ((int, "x"), Failure.RAISED, ""),
        ((exec, "raise ModuleNotFoundError"), Failure.RAISED, ""),
    ):
        failed = both.failed(both.submit(*call))
        assert (failed.reason, failed.missing) == (reason.value, missing)


def wrapped() -> None:
    """As libraries do with optional modules."""
    try:
        import no_such_module
    except ImportError as error:
        raise ImportError("install no_such_module") from error
    no_such_module.use()


def limits() -> tuple[str | None, str | None]:
    return os.environ.get("OMP_NUM_THREADS"), os.environ.get("MKL_NUM_THREADS")


def blas_threads() -> set[int]:
    import threadpoolctl

    return {pool["num_threads"] for pool in threadpoolctl.threadpool_info()}


@pytest.mark.slow
def test_threads_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    with owner() as node:
        node.set_up(threads=2, env={"MKL_NUM_THREADS": "7"}, preload=["numpy"])
        assert node.call(limits) == ("2", "7")
        assert node.call(limits, threads=1) == ("1", "1")
        assert node.call(blas_threads, threads=1) == {1}
        assert node.call(limits) == ("2", "7")
        assert node.call(blas_threads) == {min(2, os.cpu_count() or 1)}


@pytest.mark.slow
def test_by_default_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with owner() as node:
        node.set_up(concurrency=64)
        assert node.call(limits)[0] == "1"


def test_settings_reach_tasks(tmp_path: Any) -> None:
    (tmp_path / "just_here.py").write_text("VALUE = 5\n")

    def inspect() -> Any:
        import just_here  # type: ignore[import-not-found]

        return just_here.VALUE, str(Path.cwd()), os.environ["MINE"], os.environ.get("PYTHONPATH")

    with owner() as node:
        node.set_up(path=[str(tmp_path)], cwd=str(tmp_path), env={"MINE": "yes"})
        assert node.call(inspect) == (5, str(tmp_path), "yes", os.environ.get("PYTHONPATH"))


@pytest.mark.slow
def test_around_is_entered_and_left(tmp_path: Any) -> None:
    (tmp_path / "wrap.py").write_text(
        "import contextlib, os, atexit\n"
        "@contextlib.contextmanager\n"
        "def life():\n"
        "    atexit.register(open, os.environ['MARK'] + '.atexit', 'w')\n"
        "    os.environ['INSIDE'] = 'yes'\n"
        "    yield\n"
        "    open(os.environ['MARK'], 'w').close()\n"
        "def bad():\n"
        "    raise ValueError('not today')\n"
    )
    mark = tmp_path / "mark"
    with owner() as node:
        node.set_up(path=[str(tmp_path)], env={"MARK": str(mark)}, around=["wrap:life"])
        assert node.call(os.getenv, "INSIDE") == "yes"
    assert mark.exists()
    assert (tmp_path / "mark.atexit").exists()
    with owner() as node:
        node.set_up(path=[str(tmp_path)], around=["wrap:bad"])
        failed = node.failed(node.submit(pow, 2, 2))
        assert failed.reason == Failure.REFUSED.value
        assert "not today" in failed.detail


def test_what_a_dead_slot_has_started_ends_too(node: Owner) -> None:
    def start() -> None:
        child = subprocess.Popen(["sleep", "60"])
        print(child.pid, flush=True)
        os._exit(1)

    assert node.failed(node.submit(start)).detail == "exit status 1"
    pid = int(node.output[1])
    wait_for(lambda: not alive(pid), "end of the grandchild")


def test_seconds_are_those_of_the_function(node: Owner) -> None:
    message = node.answer(node.submit(time.sleep, 0.2)).message
    assert isinstance(message, Done)
    assert 0.19 < message.seconds < 10


def test_functions_of_a_notebook_have_the_file_that_their_code_names(node: Owner) -> None:
    """joblib's caches of two notebooks, whose cells are in no file, must not share a folder."""
    cell: dict[str, Any] = {"__name__": "__main__"}
    exec(compile("def f(): pass", "/tmp/ipykernel_7/123.py", "exec"), cell)

    def name(function: Any) -> Any:
        import inspect

        return inspect.getsourcefile(function)

    assert node.call(name, cell["f"]) == "/tmp/ipykernel_7/123.py"
