"""What skyward's processes do about themselves."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import textwrap
import time
from typing import Any

import pytest

from skyward.core.whoami import current_worker
from tests.processes import comm, descendants
from tests.worker.helpers import ROOT, Owner, owner, wait_for


def test_processes_have_names() -> None:
    with owner() as node:
        node.set_up(concurrency=2)
        assert comm(node.call(os.getpid)) == "skyward-slot"
        assert comm(node.pid) == "skyward-agent"
        assert sorted(map(comm, descendants(node.pid))) == ["skyward-forks", "skyward-slot", "skyward-slot"]


def who() -> tuple[Any, ...]:
    process = multiprocessing.current_process()
    time.sleep(0.2)  # so that the other slot gets the other task
    return process.name, process._identity, os.environ.get("SKYWARD_SLOT"), current_worker(), sys.argv


def everybody(node: Owner) -> set[tuple[Any, ...]]:
    tasks = [node.submit(who) for _ in range(2)]
    return {(*rest, tuple(argv)) for *rest, argv in map(node.result, tasks)}


@pytest.mark.slow
def test_tasks_can_tell_slots_apart() -> None:
    with owner() as node:
        node.set_up(concurrency=2, argv=["script.py", "--fast"])
        first, second = (
            (f"n0/slot-{number}", (number,), f"{number}", ("n0", number), ("script.py", "--fast")) for number in (1, 2)
        )
        assert everybody(node) == {first, second}
        crash = node.submit(lambda: os._exit(3) if current_worker() == ("n0", 1) else os._exit(4))
        assert node.failed(crash).reason == "crashed"
        wait_for(lambda: everybody(node) == {first, second}, "a successor with the same number")
        child = [sys.executable, "-c", "import skyward; print(*skyward.current_worker())"]
        task = node.submit(lambda: (*current_worker(), subprocess.check_output(child, text=True).split()))
        *here, there = node.result(task)
        assert there == [str(part) for part in here]


@pytest.mark.slow
def test_tasks_that_are_threads_have_numbers_too() -> None:
    with owner() as node:
        node.set_up(concurrency=2, isolated=False, argv=[])
        node.isolated = False
        assert {seen[3] for seen in everybody(node)} == {("n0", 1), ("n0", 2)}
        assert {seen[:3] for seen in everybody(node)} == {("n0", (), None)}


@pytest.mark.slow
def test_forks_with_input_and_output_of_their_own() -> None:
    code = """
        import os, signal, sys
        from skyward.worker.process import multiply, reap

        pids = multiply(sys.argv[1:])
        assert len(pids) in (0, 2)
        if pids:
            signal.signal(signal.SIGCHLD, lambda *_: reap(pids))
        word = os.read(0, 100)
        os.write(1, word.upper())
    """
    pipes = [(*os.pipe(), *os.pipe()) for _ in range(2)]
    pairs = [f"{read},{write}" for read, _, _, write in pipes]
    first = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *pairs],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT,
        pass_fds=[fd for read, _, _, write in pipes for fd in (read, write)],
    )  # fmt: skip
    wait_for(lambda: len(descendants(first.pid)) == 2, "two forks")
    for number, (read, source, target, write) in enumerate(pipes):
        os.close(read)
        os.close(write)
        os.write(source, b"fork %d" % number)
        assert os.read(target, 100) == b"FORK %d" % number
        assert os.read(target, 100) == b""  # nobody else has it
        os.close(source)
        os.close(target)
    wait_for(lambda: not descendants(first.pid), "that none stays a zombie")
    assert first.communicate(b"first", timeout=10)[0] == b"FIRST"
    assert first.returncode == 0
