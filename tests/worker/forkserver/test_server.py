"""The fork server: how it starts, what it survives, and what is reported when it does not."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from skyward.core.protocol.messages import Failure, Recall
from skyward.worker.forkserver.protocol import EXITED, FAILED, FILES, FORK_ISOLATED, KILL, REPORT, REQUEST
from skyward.worker.forkserver.server import ForkServer, gpu_device
from skyward.worker.slot import Settings, Slot
from tests.processes import alive, descendants
from tests.worker.helpers import PATIENCE, ROOT, Owner, began, owner, setup, wait_for


def fork_server(node: Owner) -> int:
    children = Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split()
    return int(children[-1]) if children else 0


@pytest.mark.slow
def test_slots_are_made_ahead() -> None:
    with owner() as node:
        node.set_up(concurrency=3)
        wait_for(lambda: len(descendants(fork_server(node))) == 3, "three slots")
    with owner() as node:
        node.set_up(concurrency=3, isolated=False)
        wait_for(lambda: len(descendants(fork_server(node))) == 1, "one shared slot")


@pytest.mark.slow
def test_modules_are_loaded_ahead() -> None:
    def loaded() -> bool:
        import sys

        return "sqlite3" in sys.modules

    with owner() as node:
        node.set_up(preload=["sqlite3", "no_such_module"])
        assert node.call(loaded)
    with owner() as node:
        node.set_up()
        assert not node.call(loaded)


def test_a_fork_server_that_cannot_start_reports_why() -> None:
    with owner() as node:
        node.set_up(cwd="/no/such/folder")
        assert node.ready is not None
        assert node.ready.slots == 0
        assert "/no/such/folder" in str(node.ready.error)
        assert node.failed(node.submit(pow, 2, 5)).reason == Failure.REFUSED.value


def test_a_module_that_kills_the_fork_server(tmp_path: Path) -> None:
    (tmp_path / "deadly.py").write_text("import os\nprint('last words', flush=True)\nos._exit(9)\n")
    with owner() as node:
        node.set_up(path=[str(tmp_path)], preload=["deadly"])
        assert node.ready is not None
        assert "status 9" in str(node.ready.error)
        assert "last words" in str(node.ready.error)


def test_bad_numbers_are_refused() -> None:
    with owner() as node:
        node.set_up(concurrency=0)
        assert node.ready is not None
        assert "concurrency" in str(node.ready.error)


@pytest.mark.slow
def test_a_killed_fork_server_is_replaced(node: Owner) -> None:
    running = node.submit(time.sleep, 60)
    node.until(lambda: began(node, running), "its beginning")
    pid = node.call(os.getpid)
    old = fork_server(node)
    os.kill(old, signal.SIGKILL)
    assert node.failed(running).reason == Failure.CRASHED.value
    assert "fork server" in node.failed(running).detail
    assert node.call(os.getpid) != pid
    assert fork_server(node) != old
    wait_for(lambda: not alive(pid), "end of the old slot")
    again = fork_server(node)
    os.kill(again, signal.SIGKILL)
    wait_for(lambda: not alive(again), "end of the second")
    node.until(lambda: fork_server(node) != again, "a third")
    assert node.call(pow, 2, 5) == 32


@pytest.mark.slow
def test_a_fork_server_that_is_killed_before_it_is_up_costs_no_task(node: Owner) -> None:
    """Its slots were never made: their tasks wait for those of the next fork server."""
    node.call(os.getpid)
    first = fork_server(node)
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: fork_server(node) not in (0, first), "the second")
    second = fork_server(node)
    tasks = [node.submit(pow, 2, n) for n in range(6)]
    os.kill(second, signal.SIGKILL)
    assert [node.result(task) for task in tasks] == [2**n for n in range(6)]
    assert fork_server(node) not in (0, first, second)


def test_more_tasks_than_slots_survive_a_fork_server_that_is_never_up(tmp_path: Path) -> None:
    """The slots that were asked for have hung up before they were made, and others are asked for: not for ever."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    (tmp_path / "waits.py").write_text(f"open({str(gate)!r}).read()\n")
    with owner() as node:
        node.connect()
        node.send(setup(path=[str(ROOT), str(tmp_path)], preload=["waits"]))
        tasks = [node.submit(pow, 2, n) for n in range(6)]
        node.send(Recall(0, 0.0))
        node.until(lambda: node.returned, "an answer that follows the tasks")
        with gate.open("w"):  # once the fork server waits there
            first = fork_server(node)
            os.kill(first, signal.SIGKILL)
            wait_for(lambda: not alive(first), "its end")
        wait_for(lambda: fork_server(node) not in (0, first), "the second")
        gate.write_text("")
        assert [node.result(task) for task in tasks] == [2**n for n in range(6)]


@pytest.mark.slow
def test_a_node_whose_fork_servers_do_not_live_reports_it_and_refuses_its_tasks(node: Owner) -> None:
    """They are restarted a few times, at growing intervals, and then the node gives up."""
    node.call(os.getpid)
    node.ready = None
    tasks: list[int] = []
    seen: set[int] = set()
    end = time.monotonic() + 3 * PATIENCE
    while node.ready is None:
        assert time.monotonic() < end
        server = fork_server(node)
        if server and server not in seen:
            os.kill(server, signal.SIGKILL)
            seen.add(server)
            if len(seen) == 3:
                tasks = [node.submit(pow, 2, n) for n in range(4)]
        node.poll()
    assert node.ready.slots == 0
    assert "status -9" in str(node.ready.error)
    assert len(seen) == 6
    assert {node.failed(task).reason for task in tasks} == {Failure.REFUSED.value}


def test_where_no_slot_can_be_made_the_task_is_refused() -> None:
    with owner() as node:
        node.set_up(isolated=False)
        assert node.call(pow, 2, 5, isolated=False) == 32
        used = len(list(Path(f"/proc/{node.pid}/fd").iterdir()))
        resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (used, 4096))
        failed = node.failed(node.submit(pow, 2, 5, isolated=True))
        assert failed.reason == Failure.REFUSED.value
        assert "can't make a slot" in failed.detail
        assert node.call(pow, 2, 5, isolated=False) == 32
        resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (1024, 4096))
        assert node.call(pow, 2, 5, isolated=True) == 32


def test_killed_slots_do_not_stay_as_zombies(node: Owner) -> None:
    for _ in range(5):
        node.failed(node.submit(os._exit, 1))
    wait_for(lambda: len(descendants(fork_server(node))) <= 2, "zombies gone")


@pytest.fixture
def full() -> Iterator[tuple[ForkServer, socket.socket]]:
    """A fork server whose only share of GPUs is taken, and the agent's end of its socket."""
    ours, theirs = socket.socketpair()
    unborn = Slot.__new__(Slot)  # as if made; its streams would be this process's
    unborn.settings = Settings("n", [], 1, gpus=[{"CUDA_VISIBLE_DEVICES": "GPU-0"}])
    server = ForkServer(theirs, unborn)
    assert server.seating.take(1) == 1
    ours.settimeout(20)
    with ours, theirs:
        request = [os.open(os.devnull, os.O_RDONLY) for _ in range(FILES)]
        socket.send_fds(ours, [REQUEST.pack(FORK_ISOLATED, 2)], request)
        for fd in request:
            os.close(fd)
        assert server.obey()
        assert not server.seating.has_place
        yield server, ours


def test_a_slot_whose_gpus_do_not_become_free_is_given_up(full: tuple[ForkServer, socket.socket]) -> None:
    server, agent = full
    patience = server.patience()
    assert patience is not None
    assert 0 < patience <= 60_000
    server._attend_waiting()
    assert server.seating.next is not None
    request = server.seating.withdraw(2)
    assert request is not None
    server.seating.wait(2, request, time.monotonic() - 60)
    server._attend_waiting()
    assert REPORT.unpack(agent.recv(REPORT.size)) == (FAILED, 2, errno.EBUSY)
    assert server.seating.next is None
    for fd in request[1]:
        with pytest.raises(OSError):
            os.fstat(fd)


def test_a_slot_that_is_killed_while_it_waits_for_gpus_has_ended(full: tuple[ForkServer, socket.socket]) -> None:
    server, agent = full
    agent.send(REQUEST.pack(KILL, 2))
    assert server.obey()
    assert REPORT.unpack(agent.recv(REPORT.size)) == (EXITED, 2, signal.SIGKILL)
    assert server.seating.next is None
    assert server.seating.seated == {1: 1}


def test_a_request_may_arrive_in_parts_of_which_the_first_brings_the_files(
    full: tuple[ForkServer, socket.socket],
) -> None:
    server, agent = full
    agent.send(REQUEST.pack(KILL, 2))
    assert server.obey()
    agent.recv(REPORT.size)
    request = REQUEST.pack(FORK_ISOLATED, 3)
    with Path(os.devnull).open("rb") as file:
        socket.send_fds(agent, [request[:2]], [file.fileno()] * FILES)
    for part in (request[2:4], request[4:] + REQUEST.pack(KILL, 3)):
        assert server.obey()
        assert server.seating.next is None, "it is not whole yet"
        agent.send(part)
    assert server.obey()
    assert server.seating.next is not None, "it waits for GPUs"
    assert server.obey()
    assert REPORT.unpack(agent.recv(REPORT.size)) == (EXITED, 3, signal.SIGKILL)
    agent.send(request[:2])
    assert server.obey()
    agent.shutdown(socket.SHUT_WR)
    assert not server.obey(), "the agent has ended"


def test_files_of_gpus_are_known() -> None:
    assert gpu_device(["pipe:[1]", "/dev/null", "/dev/nvidiactl"]) == "/dev/nvidiactl"
    assert gpu_device(["/dev/dri/renderD128", "/dev/kfd"]) == "/dev/dri/renderD128"
    assert gpu_device(["/dev/null", "/home/dev/nvidia0"]) is None
