"""How a fork server is started."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.processes import alive, descendants
from tests.worker.helpers import ROOT, Owner, owner, wait_for


def commands(node: Owner) -> list[str]:
    """The command lines of the agent's children: fork servers."""
    children = Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split()
    return [Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode() for child in children]


def flag_of_hashes() -> int:
    return sys.flags.hash_randomization


def test_it_is_a_fork_of_the_agent() -> None:
    with owner(program=True) as node:
        node.set_up()
        assert node.call(pow, 2, 5) == 32
        assert ["worker.agent" in command for command in commands(node)] == [True]


@pytest.mark.parametrize("lifeline", [True, False])
def test_one_that_was_not_used_ends_with_the_agent(lifeline: bool) -> None:
    with owner(lifeline=lifeline) as node:
        waiting = wait_for(lambda: descendants(node.pid), "a fork server")
        os.kill(node.pid, signal.SIGKILL)
        wait_for(lambda: not any(map(alive, waiting)), "its end")


@pytest.mark.slow
def test_variables_of_the_user_get_an_interpreter_of_their_own() -> None:
    with owner() as node:
        node.set_up()
        assert node.call(flag_of_hashes) == 1
    with owner() as node:
        node.set_up(env={"PYTHONHASHSEED": "0"})
        assert node.call(flag_of_hashes) == 0
        assert ["worker.forkserver" in command for command in commands(node)] == [True]  # and the fork has ended


def test_what_tasks_spawn_imports_nothing_of_ours() -> None:
    def spawned() -> list[str]:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            names: list[str] = pool.apply(eval, ("list(__import__('sys').modules)",))
        return [name for name in names if name.startswith("skyward")]

    with owner() as node:
        node.set_up()
        assert node.call(spawned) == []


def test_a_fork_answers_as_a_program_does() -> None:
    code = """
        import subprocess
        from skyward.worker.forkserver.launch import forked

        server = forked()
        try:
            server.process.wait(0.01)
        except subprocess.TimeoutExpired:
            assert server.process.poll() is None
        else:
            raise AssertionError("it has ended")
        assert not server.ends_within(0.01)
        server.control.close()
        assert server.ends_within(10)
        assert server.output.read() == b""
        assert server.process.wait(30) == server.process.poll() == 0
        server.kill()  # which it does not mind
        other = forked()
        other.kill()
        assert other.process.poll() == -9
        other.kill()
    """
    # Not here, where there are threads.
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=ROOT)
