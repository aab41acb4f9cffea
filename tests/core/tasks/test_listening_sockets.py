"""Which sockets of this process a node may reach."""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
import tempfile
from multiprocessing.connection import Listener
from multiprocessing.managers import SyncManager
from pathlib import Path

import pytest

from skyward.core.errors import LinkError
from skyward.core.payload import pickling
from skyward.core.tasks.listening_sockets import Listeners


def opened(listeners: Listeners, address: str) -> bool:
    try:
        asyncio.run(listeners.open(address))
    except LinkError:
        return False
    return True


@pytest.fixture
def listeners() -> Listeners:
    async def connect(address: str) -> object:
        return object()

    return Listeners(connect)  # type: ignore[arg-type]


def test_a_listener_of_this_process_is_reached_while_it_listens(listeners):
    with Listener(family="AF_UNIX", authkey=b"k") as listener:
        address = str(listener.address)
        assert opened(listeners, address)
    assert not opened(listeners, address)


def test_no_other_socket_is(listeners):
    folder = tempfile.mkdtemp(prefix="pymp-")
    with socket.socket(socket.AF_UNIX) as ours, socket.socket(socket.AF_UNIX) as bound:
        ours.bind(f"{folder}/x")
        assert not opened(listeners, f"{folder}/x")  # nobody listens
        ours.listen()
        assert opened(listeners, f"{folder}/x")
        bound.bind(f"{folder}/y")
    with tempfile.TemporaryDirectory(prefix="agent-") as other, socket.socket(socket.AF_UNIX) as agent:
        agent.bind(f"{other}/agent")
        agent.listen()
        assert not opened(listeners, f"{other}/agent")
        Path(folder, "link").symlink_to(f"{other}/agent")
        assert not opened(listeners, f"{folder}/link")
        assert not opened(listeners, f"{folder}/../{Path(other).name}/agent")
    for address in ("", "/", "127.0.0.1:22", "localhost:22", "/run/docker.sock"):
        assert not opened(listeners, address)


def test_a_manager_is_reached_once_a_proxy_was_sent(listeners):
    manager = SyncManager()
    manager.start()
    try:
        proxies: list[object] = []
        shared, address = manager.dict(), str(manager.address)
        pickling.dumps((len, ({"in": [shared]},), {}), on_proxy=proxies.append)
        assert proxies == [shared]
        assert not opened(listeners, address)
        assert listeners.sent(proxies) == bytes(multiprocessing.current_process().authkey)
        assert opened(listeners, address)
    finally:
        manager.shutdown()


def test_without_streams_nothing_is_reached():
    assert not opened(Listeners(), "/tmp/pymp-x/listener")
