"""Streams from a slot to a listening socket of the owner's process."""

from __future__ import annotations

import multiprocessing.connection
import os
import select
import socket
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

import pytest

from skyward.core.protocol.messages import StreamClose, StreamData, StreamOpen
from tests.worker.helpers import Owner

PLACE = "/no-such-folder-here/listener"
"""A path that does not exist for slots; the owner maps it to a listener."""


class Bridged:
    """The owner's end of the bridge: `PLACE` leads to the given path."""

    def __init__(self, node: Owner, path: str, wanted: str = PLACE) -> None:
        self.node = node
        self.path = path
        self.wanted = wanted
        self.socks: dict[int, socket.socket] = {}
        self.opened = 0

    def step(self) -> bool:
        for received in self.node.streams:
            self.hear(received.message, received.buffers)
        self.node.streams.clear()
        while ready := select.select(list(self.socks.values()), [], [], 0)[0]:
            for stream, sock in list(self.socks.items()):
                if sock in ready:
                    data = sock.recv(32 * 1024)
                    self.node.send(StreamData(stream) if data else StreamClose(stream, None), [data] if data else [])
                    if not data:
                        self.socks.pop(stream).close()
        return False

    def hear(self, message: Any, buffers: list[bytearray]) -> None:
        if isinstance(message, StreamOpen):
            self.opened += 1
            if message.address != self.wanted:
                self.node.send(StreamClose(message.stream, "nothing there"))
                return
            sock = self.socks[message.stream] = socket.socket(socket.AF_UNIX)
            sock.connect(self.path)
            self.node.send(StreamData(message.stream), [b""])
        elif isinstance(message, StreamClose):
            if message.stream in self.socks:
                self.socks.pop(message.stream).close()
        else:
            self.socks[message.stream].sendall(buffers[0])

    def result(self, task: int) -> Any:
        self.node.until(lambda: self.step() or task in self.node.answers, "answer")
        return self.node.result(task)


def test_a_listener_of_the_owner_is_reached(node: Owner, tmp_path: Path) -> None:
    path = str(tmp_path / "listener")

    def talk(address: str) -> Any:
        import multiprocessing

        with Client(address, authkey=multiprocessing.current_process().authkey) as connection:
            connection.send({"pid": os.getpid()})
            large = connection.recv()
            connection.send(bytes(large))
            return len(large)

    import threading

    got = []
    with Listener(path, authkey=b"key") as listener:

        def serve() -> None:
            with listener.accept() as connection:
                got.append(connection.recv())
                connection.send(bytes(3_000_000))
                got.append(len(connection.recv()))

        thread = threading.Thread(target=serve)
        thread.start()
        bridged = Bridged(node, path)
        assert bridged.result(node.submit(talk, PLACE, authkey=b"key")) == 3_000_000
        node.until(lambda: bridged.step() or not thread.is_alive(), "the rest of the stream")
    assert got[1] == 3_000_000
    assert set(got[0]) == {"pid"}


def test_a_manager_of_the_owner_is_used(node: Owner) -> None:
    from multiprocessing.managers import BaseManager, NamespaceProxy
    from types import SimpleNamespace

    class Manager(BaseManager):
        pass

    Manager.register("Namespace", SimpleNamespace, NamespaceProxy)
    manager = Manager(authkey=b"key")
    manager.start()
    try:
        address = str(manager.address)

        def use() -> int:
            from multiprocessing.managers import BaseManager as Base

            class Remote(Base):
                pass

            Remote.register("Namespace", None, NamespaceProxy)
            remote = Remote(address=PLACE, authkey=b"key")
            remote.connect()
            return int(remote.address == PLACE)

        bridged = Bridged(node, address)
        assert bridged.result(node.submit(use)) == 1
        assert bridged.opened >= 1
    finally:
        manager.shutdown()


def test_where_nobody_listens_the_connection_is_refused(node: Owner) -> None:
    bridged = Bridged(node, "")
    with pytest.raises(ConnectionRefusedError, match="/not/known"):
        bridged.result(node.submit(Client, "/not/known"))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError, match=r"127\.0\.0\.1"):
            bridged.result(node.submit(Client, unused.getsockname()))
    assert bridged.opened == 2


def test_what_exists_on_the_node_needs_no_bridge(node: Owner, tmp_path: Path) -> None:
    path = str(tmp_path / "here")
    with Listener(path) as listener:
        task = node.submit(lambda: Client(path).send("direct"))
        with listener.accept() as connection:
            assert connection.recv() == "direct"
        node.result(task)
    assert not node.streams


def test_streams_do_not_fill_memory(node: Owner) -> None:
    """The owner accepts nothing, so the task must block in sending."""

    def pour() -> None:
        connection = Client(PLACE)
        for _ in range(64):
            connection.send_bytes(bytes(1024 * 1024))

    task = node.submit(pour)
    node.acks = False
    node.until(lambda: node.streams, "StreamOpen")
    opened = node.streams.pop(0).message
    assert isinstance(opened, StreamOpen)
    node.send(StreamData(opened.stream), [b""])
    node.until(lambda: sum(len(r.buffers[0]) for r in node.streams) > 8 * 1024 * 1024, "8 MiB")
    assert node.call(pow, 2, 5) == 32
    assert task not in node.answers
    assert sum(len(r.buffers[0]) for r in node.streams) < 12 * 1024 * 1024
    assert all(len(r.buffers[0]) <= 32 * 1024 for r in node.streams)


def test_this_process_is_not_patched() -> None:
    assert multiprocessing.connection.SocketClient.__module__ == "multiprocessing.connection"  # type: ignore[attr-defined]
