"""Agents on this machine, one and several."""

from __future__ import annotations

import os
import signal
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from skyward.core.errors import ProvisioningError
from skyward.providers.local_agents import Process, greet, start
from tests.worker.helpers import alive, wait_for


@pytest.fixture
def errors() -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile() as file:
        yield file


def begun(count: int, errors: IO[bytes]) -> list[Process]:
    agents = list(start(count, errors))
    for agent in agents:
        path = Path(greet(agent, os.urandom(32), 30.0, errors))
        assert path.is_socket()
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700  # or anybody here could keep the owner out
    return agents


@pytest.mark.parametrize("count", [1, 3])
def test_they_end_when_their_lifelines_are_cut(count: int, errors: IO[bytes]) -> None:
    agents = begun(count, errors)
    assert len({agent.pid for agent in agents}) == count
    for number, agent in enumerate(agents):
        assert [other.is_alive for other in agents[number:]] == [True] * (count - number)  # each for itself
        agent.let_go()
        agent.end(10.0)
        assert not alive(agent.pid)


@pytest.mark.parametrize("victim", [0, 1])
def test_one_that_is_killed_takes_no_other_along(victim: int, errors: IO[bytes]) -> None:
    agents = begun(2, errors)
    os.kill(agents[victim].pid, signal.SIGKILL)
    wait_for(lambda: not agents[victim].is_alive, "its end")
    assert agents[1 - victim].is_alive
    for agent in agents:
        agent.let_go()
        agent.end(10.0)


def test_those_that_do_not_end_are_ended(errors: IO[bytes]) -> None:
    agents = begun(2, errors)
    for agent in agents:
        os.kill(agent.pid, signal.SIGSTOP)
    for agent in agents:
        agent.let_go()
        agent.end(0.01)
        assert not alive(agent.pid)


def test_all_are_killed_at_once(errors: IO[bytes]) -> None:
    agents = begun(2, errors)
    for agent in agents:
        agent.kill()
    wait_for(lambda: not any(alive(agent.pid) for agent in agents), "the end of both")


@pytest.mark.parametrize("count", [1, 2])
def test_what_is_said_when_they_can_not_start(
    count: int, errors: IO[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "msgpack.py").write_text("raise RuntimeError('it is broken')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    agents = start(count, errors)
    with pytest.raises(ProvisioningError, match="it is broken"):
        greet(agents[-1], b"", 30.0, errors)
    for agent in agents:
        agent.kill()
