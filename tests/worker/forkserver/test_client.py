"""Fork servers that hang: they are detected, killed with everything they started, and replaced."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import skyward as sky
from skyward.core.protocol.messages import Failure
from skyward.core.spec import Endpoint, Machine, Order
from skyward.providers.local_agents import greet
from skyward.worker.forkserver.client import ForkServerClient
from skyward.worker.forkserver.launch import started
from skyward.worker.forkserver.restarts import Ended
from tests.processes import alive, comm, descendants
from tests.worker.helpers import ROOT, Owner, began, owner, wait_for

LIMITS = [1.2, 60.0]
INSTALLED = "import site\nsite.getsitepackages = lambda: [{!r}]\n"  # a folder that counts as such


def fork_servers(pid: int) -> list[int]:
    """Return the first fork server below a process, and its heirs, in no order."""
    return [found for found in descendants(pid) if comm(found) == "skyward-forks"]


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    stat = Path(f"/proc/{pid}/stat")
    wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "its stop")


def begun(node: Owner, task: int) -> int:
    node.until(lambda: began(node, task), "its beginning")
    return task


@contextmanager
def nothing_left(node: Owner) -> Iterator[None]:
    """Check that everything below an agent now ends within the block, or soon after."""
    pids = descendants(node.pid)
    yield
    wait_for(lambda: not any(map(alive, pids)), "the end of all that there was")


def heirless() -> tuple[int, list[str]]:
    return os.getppid(), [name for name in ("many",) if name in sys.modules]


def load() -> None:
    import many  # type: ignore[import-not-found]  # noqa: F401


@pytest.fixture
def many(tmp_path: Path) -> dict[str, Any]:
    """Return a Setup with which slots get an heir, for a package `many` that has enough modules."""
    (tmp_path / "many").mkdir()
    parts = [f"part_{number}" for number in range(25)]
    for part in parts:
        (tmp_path / "many" / f"{part}.py").touch()
    (tmp_path / "many" / "__init__.py").write_text(f"from . import {', '.join(parts)}\n")
    (tmp_path / "ahead.py").write_text(INSTALLED.format(str(tmp_path)))
    return {"concurrency": 1, "path": [str(tmp_path), str(ROOT)], "preload": ["ahead"]}


def heir_of(node: Owner) -> int:
    """Let slots die until one comes from an heir; returns that one."""
    node.call(load)

    def killed() -> int:
        assert node.failed(node.submit(os._exit, 5)).reason == Failure.CRASHED.value
        parent, names = node.call(heirless)
        return parent if names else 0

    return int(wait_for(killed, "a slot of an heir"))


@pytest.mark.slow
def test_one_that_hangs_is_replaced_and_reported() -> None:
    with owner(limits=LIMITS) as node:
        node.set_up()
        sleeper = begun(node, node.submit(time.sleep, 60))
        (server,) = fork_servers(node.pid)
        with nothing_left(node):
            stop(server)
            dead = node.submit(os._exit, 1)
            later = [node.submit(pow, 2, n) for n in range(6)]
            assert [node.result(task) for task in later] == [2**n for n in range(6)]
        for task in (dead, sleeper):
            assert node.failed(task).reason == Failure.CRASHED.value
            assert "the fork server did not answer for 1.2 s, and was killed" in node.failed(task).detail
        printed = node.output[2].decode()
        assert (
            printed
            == "skyward: on n0 the fork server did not answer for 1.2 s, and was killed; its workers are replaced\n"
        )
        assert server not in fork_servers(node.pid)


@pytest.mark.slow
def test_what_a_slot_has_started_ends_with_a_server_that_hangs() -> None:
    def starts() -> int:
        return subprocess.Popen(["sleep", "60"]).pid

    with owner(limits=LIMITS) as node:
        node.set_up()
        started = node.call(starts)
        stop(fork_servers(node.pid)[0])
        node.submit(os._exit, 1)
        node.submit(os._exit, 1)
        assert node.call(pow, 2, 5) == 32
        wait_for(lambda: not alive(started), "its end")


@pytest.mark.slow
def test_one_that_nothing_is_expected_of_may_sleep() -> None:
    with owner(limits=LIMITS) as node:
        node.set_up()
        pid = node.call(os.getpid)
        (server,) = fork_servers(node.pid)
        stop(server)
        end = time.monotonic() + 3 * LIMITS[0]
        while time.monotonic() < end:
            assert node.call(os.getpid) in descendants(server)
        assert alive(pid)
        os.kill(server, signal.SIGCONT)


@pytest.mark.slow
def test_a_machine_that_slept_has_no_hung_servers() -> None:
    limit = 4.0  # far from what passes below while nobody sleeps, on a busy machine too
    with owner(limits=[limit, 60.0]) as node:
        node.set_up()
        (server,) = fork_servers(node.pid)
        stop(server)
        died = node.submit(os._exit, 1)
        wait_for(lambda: len([pid for pid in descendants(server) if alive(pid)]) == 1, "the death of a slot")
        time.sleep(1.0 + limit / 4)  # the agent misses the slot after a second
        os.kill(node.pid, signal.SIGSTOP)
        time.sleep(1.5 * limit)
        for pid in (node.pid, server):  # the agent first
            os.kill(pid, signal.SIGCONT)
        assert node.failed(died).reason == Failure.CRASHED.value
        assert "fork server" not in node.failed(died).detail
        assert node.call(pow, 2, 5) == 32
        assert fork_servers(node.pid) == [server]


@pytest.mark.slow
def test_an_end_ends_those_that_hang(many: dict[str, Any]) -> None:
    with owner() as node:
        node.set_up(**many)
        heir_of(node)
        for server in fork_servers(node.pid):
            stop(server)


@pytest.mark.slow
@pytest.mark.parametrize("hung", [True, False])
def test_heirs_of_one_that_hangs_end_with_it(many: dict[str, Any], hung: bool) -> None:
    with owner(limits=LIMITS) as node:
        node.set_up(**many)
        heir = heir_of(node)
        with nothing_left(node):
            for server in fork_servers(node.pid):
                if hung or server != heir:
                    stop(server)
            node.submit(os._exit, 1)
            assert node.call(pow, 2, 5) == 32


@pytest.mark.slow
def test_an_heir_that_hangs_costs_no_task_but_those_that_it_ran(many: dict[str, Any]) -> None:
    with owner(limits=LIMITS) as node:
        node.set_up(**{**many, "concurrency": 3})
        heir = heir_of(node)
        (first,) = set(fork_servers(node.pid)) - {heir}
        stop(heir)
        dead = [node.submit(os._exit, 1) for _ in range(3)]
        later = [node.submit(pow, 2, n) for n in range(6)]
        assert [node.result(task) for task in later] == [2**n for n in range(6)]
        assert {node.failed(task).reason for task in dead} == {Failure.CRASHED.value}
        wait_for(lambda: not alive(heir), "the end of the heir")
        assert first in fork_servers(node.pid)
        assert not node.output[2]


@pytest.mark.slow
def test_slots_that_an_heir_that_hangs_was_to_make_are_made_by_another(many: dict[str, Any]) -> None:
    """Use so many slots that tasks would be refused if each death counted as a slot that can't start."""
    with owner(limits=LIMITS) as node:
        node.set_up(**{**many, "concurrency": 8})
        heir = heir_of(node)
        slots = [pid for pid in descendants(node.pid) if comm(pid) == "skyward-slot"]
        ours = [pid for pid in slots if pid in descendants(heir)]
        stop(heir)
        for pid in slots:
            if pid not in ours:
                os.kill(pid, signal.SIGKILL)
        tasks = [node.submit(pow, 2, n) for n in range(30)]
        assert [node.result(task) for task in tasks] == [2**n for n in range(30)]
        wait_for(lambda: not alive(heir), "the end of the heir")


def test_a_slot_that_does_not_lead_a_process_group_yet_is_killed_too() -> None:
    loop = asyncio.new_event_loop()
    config: dict[str, Any] = {"limits": LIMITS, "env": {}}
    client = ForkServerClient(loop, config, lambda *_: None, lambda _: None, None, 60.0, started)
    with subprocess.Popen(["sleep", "60"]) as slot:
        client.pids[1] = slot.pid
        client.kill_all()
        assert slot.wait(30) == -signal.SIGKILL
    loop.close()


def test_what_is_asked_of_one_that_could_not_be_started_leaves_no_file_open() -> None:
    def start(_: Mapping[str, str]) -> Any:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    loop = asyncio.new_event_loop()
    config: dict[str, Any] = {"limits": LIMITS, "env": {}}
    ended: asyncio.Future[Ended] = loop.create_future()
    client = ForkServerClient(loop, config, lambda *_: None, ended.set_result, None, 0.0, start)
    assert "can't be started" in loop.run_until_complete(ended).description
    fds = os.pipe()
    client.fork(1, False, fds)
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    loop.close()


@pytest.mark.slow
def test_a_slow_import_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(1.5)\n")
    with owner(limits=[0.3, 30.0]) as node:
        node.set_up(path=[str(tmp_path), str(ROOT)], preload=["slow"])
        assert node.ready is not None
        assert node.ready.slots == 2
        assert node.call(pow, 2, 5) == 32


@pytest.mark.slow
def test_a_replacement_that_hangs_in_an_import_gives_the_node_up(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    code = (
        f"import os, time\nprint('it hangs', flush=True)\nwhile os.path.exists({str(flag)!r}):\n    time.sleep(0.01)\n"
    )
    (tmp_path / "stuck.py").write_text(code)
    with owner(limits=[0.6, 1.8]) as node:
        node.set_up(path=[str(tmp_path), str(ROOT)], preload=["stuck"])
        assert node.call(pow, 2, 5) == 32
        flag.touch()
        node.ready = None
        os.kill(fork_servers(node.pid)[0], signal.SIGKILL)
        seen: set[int] = set()
        wait_for(lambda: seen.update(fork_servers(node.pid)) or node.poll() or node.ready, "the end of its patience")
        assert node.ready is not None
        assert len(seen) <= 2  # at most the one that was killed and the one that hangs
        assert node.ready.slots == 0
        assert "was not ready after 1.8 s, and was killed" in str(node.ready.error)
        assert "Image(preload=[...])" in str(node.ready.error)
        assert "it hangs" in str(node.ready.error)
        assert node.failed(node.submit(pow, 2, 5)).reason == Failure.REFUSED.value
        assert not fork_servers(node.pid)


class Impatient(sky.Local):
    """Nodes on this machine whose agents give up on a fork server sooner."""

    def _create(self, order: Order, started: Any) -> Sequence[Machine]:
        machines = []
        for process in started.processes:
            secret = os.urandom(32)
            address = greet(process, secret, order.orphan_timeout, started.errors, limits=LIMITS)
            id = f"local-{next(self._ids)}-{process.pid}"
            self._agents[id] = (order.tag, process)
            machines.append(Machine(id, Endpoint("tcp", "127.0.0.1"), "local", address, secret))
        return machines


def once(path: str, number: int) -> int:
    """Kill the worker when run for the first time."""
    if number % 10 == 0 and not Path(f"{path}/{number}").exists():
        Path(f"{path}/{number}").touch()
        os._exit(1)
    return number**2


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
def test_a_pool_continues(nodes: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with sky.Compute(provider=Impatient(), nodes=nodes, worker=sky.Worker(concurrency=2)) as pool:
        assert list(pool.map(pow, range(4), [2] * 4)) == [0, 1, 4, 9]
        before = fork_servers(os.getpid())
        assert len(before) == nodes
        for server in before:
            stop(server)
        assert list(pool.map(once, [str(tmp_path)] * 40, range(40), timeout=60)) == [n**2 for n in range(40)]
        wait_for(lambda: not any(map(alive, before)), "the end of the old")
    assert "its workers are replaced" in capfd.readouterr().err
    assert not fork_servers(os.getpid())
