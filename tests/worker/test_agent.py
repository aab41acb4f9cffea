"""The agent as a whole: cancel, timeout, links that break, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skyward.core.blobs.snapshots import digest
from skyward.core.nodes.certificates import Authority
from skyward.core.payload import pickling
from skyward.core.protocol.messages import (
    Blob,
    Cancel,
    Done,
    Failure,
    Fetch,
    Forget,
    Hello,
    Listening,
    Peers,
    Ping,
    Pong,
    Reached,
    Run,
    StreamClose,
    Welcome,
)
from skyward.core.protocol.wire import VERSION, Role, Wire
from skyward.worker import agent, slot_pool
from skyward.worker.agent_socket import listen
from tests.processes import alive, descendants
from tests.worker.helpers import ROOT, SECRET, Owner, owner, wait_for


def test_facts(node: Owner) -> None:
    assert node.facts["pid"] == node.pid
    assert node.facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert node.facts["cores"] == len(os.sched_getaffinity(0))
    assert node.facts["memory"] > 2**28
    assert node.facts["hostname"] == socket.gethostname()


def test_the_agent_loads_nothing_heavy() -> None:
    code = "import sys, skyward.worker.agent; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split()
    assert not {"numpy", "cloudpickle", "joblib", "multiprocessing", "rich"} & set(loaded)


def test_cancel_of_a_waiting_task(both: Owner) -> None:
    long = [both.submit(time.sleep, 60) for _ in range(2)]
    waiting = both.submit(pow, 2, 5)
    both.send(Cancel(waiting))
    assert both.failed(waiting).reason == Failure.CANCELLED.value
    for task in long:
        both.send(Cancel(task))
        assert both.failed(task).reason == Failure.CANCELLED.value
    assert both.call(pow, 2, 5) == 32


def test_cancel_of_a_running_task_ends_what_it_started(both: Owner) -> None:
    def start() -> None:
        child = subprocess.Popen(["sleep", "60"])
        print(child.pid, os.getpid(), flush=True)
        child.wait()

    task = both.submit(start)
    both.until(lambda: both.output[1].endswith(b"\n"), "the pids")
    pids = [int(word) for word in both.output[1].split()]
    both.send(Cancel(task))
    assert both.failed(task).reason == Failure.CANCELLED.value
    wait_for(lambda: not any(map(alive, pids)), "end of the task's processes")
    assert both.call(pow, 2, 5) == 32


def test_cancel_in_a_shared_slot_lets_the_others_finish() -> None:
    with owner() as node:
        node.set_up(isolated=False)
        node.isolated = False
        other = node.submit(lambda: (time.sleep(0.5), os.getpid())[1])
        endless = node.submit(time.sleep, 60)
        node.send(Cancel(endless))
        assert node.failed(endless).reason == Failure.CANCELLED.value
        fresh = node.call(os.getpid)
        old = node.result(other)
        assert fresh != old
        wait_for(lambda: not alive(old), "end of the retired process")


def test_a_cancel_that_arrives_before_its_task(node: Owner) -> None:
    node.send(Cancel(1))
    assert node.failed(node.submit(pow, 2, 2)).reason == Failure.CANCELLED.value


def test_a_task_that_runs_too_long(both: Owner) -> None:
    late = both.submit(time.sleep, 60, timeout=0.2)
    failed = both.failed(late)
    assert failed.reason == Failure.TIMEOUT.value
    assert "0.2 s" in failed.detail
    assert 0.15 < failed.seconds < 30
    assert both.call(pow, 2, 5, timeout=30.0) == 32


@pytest.mark.slow
def test_the_limit_counts_from_the_start(node: Owner) -> None:
    tasks = [node.submit(time.sleep, 0.3, timeout=2.0) for _ in range(16)]  # the last waits for longer than its limit
    assert all(isinstance(node.answer(task).message, Done) for task in tasks)


@pytest.mark.slow
def test_a_lost_link_loses_and_doubles_nothing(both: Owner) -> None:
    both.acks = False  # so that the agent must keep everything
    tasks = [both.submit(lambda n: (time.sleep(0.001), n)[1], n) for n in range(300)]
    for _ in range(3):
        both.until(lambda: len(both.answers) > 20, "some answers")
        both.cut()
        both.connect()
    both.acks = True
    assert [both.result(task) for task in tasks] == list(range(300))
    assert both.call(pow, 2, 5) == 32


@pytest.mark.slow
def test_a_large_result_survives_a_lost_link(node: Owner) -> None:
    task = node.submit(lambda: bytes(30_000_000))
    node.until(lambda: node.wire._coming, "the beginning of the result")
    node.cut()
    node.connect()
    assert len(node.result(task)) == 30_000_000


def test_the_task_continues_while_nobody_is_connected(node: Owner, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    task = node.submit(lambda: (time.sleep(0.3), mark.write_text("x"), 7)[2])
    node.cut()
    wait_for(mark.exists, "the task's mark")
    node.connect()
    assert node.result(task) == 7


def test_a_new_connection_replaces_a_half_dead_one(node: Owner) -> None:
    old = node.sock
    node.connect()
    assert old is not None
    while old.recv(65536):
        pass
    assert node.call(pow, 2, 5) == 32


def test_another_session_is_refused(node: Owner) -> None:
    with node.open() as sock:
        wire = Wire(Role.OWNER, secret=node.secret, nonce=b"n")
        wire.hello("another", 0)
        sock.sendall(b"".join(wire.data_to_send()))
        sock.settimeout(10)
        assert sock.recv(100) == b""
    assert node.call(pow, 2, 5) == 32


def test_a_wrong_secret_is_refused(node: Owner) -> None:
    with node.open() as sock:
        sock.settimeout(10)
        wire = Wire(Role.OWNER, secret=node.secret, nonce=b"n")
        wire.hello(node.session, 0)
        sock.sendall(b"".join(wire.data_to_send()))
        wire.receive_data(sock.recv(65536))
        wire._secret = b"a guess"
        wire.prove()
        sock.sendall(b"".join(wire.data_to_send()))
        assert sock.recv(100) == b""
    assert node.call(pow, 2, 5) == 32


def test_an_acknowledgement_of_what_was_never_sent_is_refused(node: Owner) -> None:
    with node.open() as sock:
        sock.settimeout(10)
        wire = Wire(Role.OWNER, secret=node.secret, nonce=b"n")
        wire.send(Hello(VERSION, node.session, b"n", 10**6))
        sock.sendall(b"".join(wire.data_to_send()))
        wire.receive_data(sock.recv(65536))
        wire.prove()
        sock.sendall(b"".join(wire.data_to_send()))
        assert sock.recv(100) == b""
    node.connect()
    assert node.call(pow, 2, 5) == 32


def test_what_the_agent_can_not_handle_breaks_the_link_and_is_reported_in_the_next_greeting(node: Owner) -> None:
    """It was not handled, so it is repeated; what arrived before it is done."""
    assert node.call(pow, 2, 3) == 8
    for attempt in range(2):
        with pytest.raises(ConnectionError):
            if attempt:
                node.connect()
            else:
                node.send(Blob(b"d", 5, 0), [])
            node.until(lambda: False, "the end of the link")
        node.cut()
    with node.open() as sock:
        wire = Wire(Role.OWNER, secret=SECRET, nonce=os.urandom(16))
        wire.hello(node.session, node.inbox.received)
        sock.sendall(b"".join(wire.data_to_send()))
        (welcome,) = wire.receive_data(sock.recv(10_000))
    assert isinstance(welcome.message, Welcome)
    assert welcome.message.facts["fault"].startswith("ValueError: not enough values to unpack")
    assert welcome.message.received == node.outbox.last - 1


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", bytes(100), b"\xff" * 5000, b""])
def test_garbage_does_not_hurt(node: Owner, garbage: bytes) -> None:
    with node.open() as sock:
        sock.sendall(garbage)
        sock.shutdown(socket.SHUT_WR)
        sock.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(100) == b""
    assert node.call(pow, 2, 5) == 32


@pytest.mark.slow
def test_heartbeats_pass_large_results(node: Owner) -> None:
    task = node.submit(lambda: bytes(200_000_000))
    node.until(lambda: node.wire._coming, "the beginning of the result")
    node.wire.send(Ping(1.5))
    node.flush()
    node.until(lambda: any(isinstance(received.message, Pong) for received in node.order), "Pong")
    assert task not in node.answers
    assert len(node.result(task)) == 200_000_000


def test_a_blob_is_mapped(node: Owner) -> None:
    def inspect(array: Any) -> tuple[str, bool, bool, float]:
        base = array
        while not isinstance(base, np.memmap):
            base = base.base
        if array.flags.writeable:
            array[0] = 5
        return type(base).__name__, array.flags.writeable, Path(base.filename).exists(), float(array.sum())

    data = np.ones(300_000)
    assert node.call(inspect, data, large=1 << 20, mode="r") == ("memmap", False, True, 300_000.0)
    assert node.call(inspect, data, large=1 << 20, mode="c") == ("memmap", True, True, 300_004.0)
    node.send(Forget([b"digest-1-0", b"digest-2-0"]))


def test_a_task_waits_for_its_blob_and_delays_nobody() -> None:
    from skyward.core.payload import pickling
    from skyward.core.protocol.messages import Blob, Run

    with owner() as node:
        node.set_up(concurrency=1)
        head, buffers = pickling.dumps((np.sum, (np.ones(300_000),), {}), large=1 << 20)
        node._last = 1
        node.send(Run(1, True, None, None, {0: b"later"}), [head])
        assert node.call(pow, 2, 5) == 32
        node.send(Blob(b"later", len(buffers[0]), 0), [buffers[0]])
        assert node.result(1) == 300_000


@pytest.mark.slow
def test_parts_in_any_order_become_the_array_though_their_buffers_are_used_again(node: Owner) -> None:
    from skyward.core.payload import pickling
    from skyward.core.protocol.messages import Blob, Run

    part, random = 1 << 20, np.random.default_rng(0)
    for turn in range(6):
        array = random.random(8 * part // 8)
        head, (data, *_) = pickling.dumps((np.sort, (array,), {}), large=1 << 20)
        name, parts = b"parts-%d" % turn, list(range(0, len(data), part))
        random.shuffle(parts)
        for start in parts:
            node.send(Blob(name, len(data), start), [data[start : start + part]])
        node._last += 1
        node.send(Run(node._last, True, None, None, {0: name}), [head])
        assert np.array_equal(node.result(node._last), np.sort(array))


def test_small_buffers_are_writable(node: Owner) -> None:
    def change(array: Any) -> float:
        array += 1
        return float(array.sum())

    assert node.call(change, np.zeros(5000)) == 5000


# --- the end --------------------------------------------------------------------------------------------------------


def busy(**start: Any) -> Owner:
    """Return a node whose slots run, one of them with a child."""
    node = Owner(**start).set_up()

    def start_child() -> None:
        print(subprocess.Popen(["sleep", "60"]).pid, flush=True)
        time.sleep(60)

    node.submit(start_child)
    node.submit(time.sleep, 60)
    node.until(lambda: node.output[1].endswith(b"\n"), "the child's pid")
    return node


def below(node: Owner) -> set[int]:
    pids = {node.pid, int(node.output[1])} | descendants(node.pid)
    assert len(pids) == 5  # agent, fork server, two slots, sleep
    return pids


def test_bye_ends_everything() -> None:
    node = busy()
    pids = below(node)
    began = time.monotonic()
    node.end()
    assert not any(map(alive, pids))
    assert time.monotonic() - began < 30  # of the 60 s that its tasks would take


def test_the_lifeline_ends_everything() -> None:
    node = busy()
    pids = below(node)
    assert node.process.stdin is not None
    node.process.stdin.close()
    wait_for(lambda: not any(map(alive, pids)), "end of all processes", 5)
    node.end()


def test_sigterm_ends_everything() -> None:
    node = busy()
    pids = below(node)
    os.kill(node.pid, signal.SIGTERM)
    wait_for(lambda: not any(map(alive, pids)), "end of all processes", 5)
    node.end()


def test_kill_9_of_the_agent_ends_everything() -> None:
    node = busy()
    node.send(Blob(b"left behind?", 100_000, 0), [bytes(100_000)])
    store = wait_for(lambda: list(Path("/dev/shm").glob(f"skyward-store-*/{b'left behind?'.hex()}")), "the blob")
    pids = below(node)
    os.kill(node.pid, signal.SIGKILL)
    wait_for(lambda: not any(map(alive, pids)), "end of all processes", 5)
    wait_for(lambda: not store[0].parent.exists(), "removal of the blobs", 5)
    node.end()


@pytest.mark.slow
def test_slots_take_as_many_open_files_as_are_counted() -> None:
    """Otherwise the number of slots that fit would be wrong where open files are limited."""
    counts = []
    for concurrency in (2, 6):
        with owner() as node:
            node.set_up(concurrency=concurrency)
            tasks = [node.submit(time.sleep, 0.05) for _ in range(concurrency)]
            for task in tasks:
                node.result(task)
            counts.append(len(os.listdir(f"/proc/{node.pid}/fd")))  # noqa: PTH208
    assert counts[1] - counts[0] == 4 * slot_pool._FILES_PER_SLOT
    assert counts[0] <= slot_pool._files(2) - 4, "with room for a slot that is being made"


@pytest.mark.slow
def test_what_a_young_agent_left_is_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    killed = Owner()
    (folder,) = tmp_path.glob("skyward-agent-*")
    os.kill(killed.pid, signal.SIGKILL)  # it has no fork server yet that knows of its folder
    wait_for(lambda: not alive(killed.pid), "the agent's end")
    killed.end()
    assert folder.exists()
    store = tmp_path / f"skyward-store-{os.getuid()}-dead"
    store.mkdir()
    (store / "lock").touch()
    with owner() as living:
        wait_for(lambda: not store.exists(), "the end of a dead agent's store")
        wait_for(lambda: not folder.exists(), "the end of its folder")
        assert len(list(tmp_path.glob("skyward-agent-*"))) == 1
        assert living.set_up().call(pow, 2, 5) == 32
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["bye", "killed"])
def test_folders_that_were_made_for_an_agent_end_with_it(tmp_path: Path, how: str) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    run.mkdir(mode=0o700)
    other.mkdir()
    (other / "pid").touch()
    node = Owner(listen=f"unix:{run}/agent.sock", lifeline=False, scratch=[str(run), str(other)]).set_up()
    assert (run / "agent.log").exists()
    if how == "killed":
        os.kill(node.pid, signal.SIGKILL)
    else:
        node.end()
    wait_for(lambda: not list(tmp_path.iterdir()), "the end of both folders")
    if how == "killed":
        node.end()


def test_ctrl_c_is_left_to_the_driver(node: Owner) -> None:
    for pid in {node.pid} | descendants(node.pid):
        os.kill(pid, signal.SIGINT)
    assert node.call(pow, 2, 5) == 32


@pytest.mark.slow
def test_an_agent_that_nobody_connects_to_ends() -> None:
    node = Owner(orphan_timeout=0.3)
    wait_for(lambda: not alive(node.pid), "end of the agent", 5)
    node.end()
    node = Owner().set_up(orphan_timeout=0.3)
    time.sleep(0.5)  # longer than it would wait; but its owner is there
    assert node.call(pow, 2, 5) == 32
    pids = {node.pid} | descendants(node.pid)
    node.cut()
    wait_for(lambda: not any(map(alive, pids)), "end of all processes", 5)
    node.end()


def test_an_agent_on_a_unix_socket_outlives_the_session_that_started_it(tmp_path: Path) -> None:
    path = tmp_path / "run" / "agent.sock"
    node = Owner(listen=f"unix:{path}", lifeline=False)
    assert node.line == {"listening": str(path), "pid": node.pid}
    assert node.process.stdout is not None
    assert node.process.wait(30) == 0
    assert node.process.stdout.read() == b""  # nobody holds the pipe
    assert node.process.pid != node.pid
    assert os.getsid(node.pid) == node.pid
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE((path.parent / "agent.log").stat().st_mode) == 0o600
    assert node.set_up().call(pow, 2, 5) == 32
    node.cut()
    assert node.connect().call(pow, 2, 5) == 32
    node.end()
    assert sorted(file.name for file in path.parent.iterdir()) == ["agent.log"]
    assert "the owner's connection has ended" in (path.parent / "agent.log").read_text()


@pytest.mark.slow
def test_temporary_files_may_lie_far_down_in_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far = tmp_path / ("f" * 150)
    far.mkdir()
    monkeypatch.setenv("TMPDIR", str(far))  # as batch systems do for each job

    def ask() -> str:
        from multiprocessing.connection import Client

        try:
            Client("/no-such-folder-here/listener")
        except ConnectionRefusedError as error:
            return str(error)
        return "somebody listens"

    with owner() as node:
        node.set_up()
        task = node.submit(ask)
        opened = node.until(lambda: node.streams, "the slot's question")[0].message
        node.send(StreamClose(opened.stream, "nothing there"))
        assert "nobody listens at /no-such-folder-here/listener" in node.result(task)
    assert not list(far.iterdir())


@pytest.mark.slow
def test_files_are_removed(node: Owner) -> None:
    node.call(np.sum, np.ones(300_000), large=1 << 20)
    stores = Path("/dev/shm").glob("skyward-store-*")
    mine = [folder for folder in stores if any(file.name == b"digest-1-0".hex() for file in folder.iterdir())]
    assert mine
    assert all(stat.S_IMODE(folder.stat().st_mode) == 0o700 for folder in mine)
    node.end()
    assert not any(folder.exists() for folder in mine)


def test_an_agent_that_was_never_greeted_does_not_wait_for_as_long_as_an_orphan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who has it started greets it at once; one whose owner has thought better of it would be in the way."""
    monkeypatch.setattr(agent, "_FIRST_GREETING", 0.05)

    async def main() -> str:
        listener, _, folder = listen("unix")
        alone = agent.Agent(asyncio.get_running_loop(), agent.Start("unix", SECRET, False, 600.0), listener, folder)
        try:
            return await asyncio.wait_for(alone.stopped, 20)
        finally:
            await alone.end()
            shutil.rmtree(folder)

    assert asyncio.run(main()) == "no owner was heard for 0.05 s"


def test_connections_do_not_keep_the_agent_alive() -> None:
    node = Owner(orphan_timeout=0.3)
    with node.open() as sock:
        wait_for(lambda: not alive(node.pid), "end of the agent", 5)
        select.select([sock], [], [], 5)
    node.end()


def ports(pid: int) -> int:
    """Return the number of TCP ports that a process listens on."""
    sockets = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()}  # noqa: PTH115
    tables = "".join(Path(f"/proc/net/{name}").read_text() for name in ("tcp", "tcp6"))
    lines = map(str.split, tables.splitlines())
    return sum(line[3] == "0A" and f"socket:[{line[9]}]" in sockets for line in lines)


@pytest.mark.slow
def test_nodes_with_an_identity_listen_to_each_other_and_others_do_not(tmp_path: Path) -> None:
    """Two real agents: one has a blob from its owner, the other gets it from there and runs a task on it."""
    authority, array = Authority("pool"), np.arange(500_000.0)
    data = array.tobytes()
    name = digest(memoryview(data))
    identities = [
        {"authority": authority.certificate, "certificate": authority.issue(name), "host": "127.0.0.1"}
        for name in ("n1", "n2")
    ]
    with contextlib.ExitStack() as stack:
        path = f"unix:{tmp_path}/alone/a.sock"
        alone = stack.enter_context(owner(listen=path)).set_up()
        one, two = (
            stack.enter_context(owner(listen=f"unix:{tmp_path}/{name}/a.sock")).set_up(node=name, identity=identity)
            for name, identity in zip(("n1", "n2"), identities, strict=True)
        )
        assert [ports(node.pid) for node in (alone, one, two)] == [0, 1, 1]
        (listening,) = (received.message for received in one.order if isinstance(received.message, Listening))
        two.send(Peers({"n1": [listening.port, "127.0.0.1"]}))
        two.until(lambda: any(received.message == Reached(["n1"]) for received in two.order), "Reached")
        two.send(Fetch(name, len(data), "n1"))
        one.send(Blob(name, len(data), 0), [data])
        head, buffers = pickling.dumps((np.sum, (array,), {}), "call")
        two.send(Run(1, True, None, None, {0: name}), [head, *buffers[1:]])
        assert two.result(1) == array.sum()
