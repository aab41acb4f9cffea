"""A listening socket passes on connections, and pauses when open files run out."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from pathlib import Path

import pytest

from skyward.worker import listening_socket
from skyward.worker.listening_socket import ListeningSocket


class Counting(socket.socket):
    """A listener that counts how often it was asked for a connection."""

    asked = 0

    def accept(self) -> tuple[socket.socket, object]:
        self.asked += 1
        return super().accept()


def test_without_files_callers_wait_and_the_loop_rests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening_socket, "_PAUSE", 0.05)
    listener = Counting(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def knock() -> None:
        loop, came = asyncio.get_running_loop(), asyncio.Event()
        inside: list[socket.socket] = []

        def take(sock: socket.socket) -> None:
            inside.append(sock)
            came.set()

        it = ListeningSocket(loop, listener, take)
        with socket.socket(socket.AF_UNIX) as caller:
            caller.setblocking(False)
            lowest = os.open(os.devnull, os.O_RDONLY)
            os.close(lowest)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
            try:
                await loop.sock_connect(caller, str(tmp_path / "s"))
                await asyncio.sleep(0.2)
                assert not inside
                assert 1 <= listener.asked < 10
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            await asyncio.wait_for(came.wait(), 10)
            inside[0].send(b"welcome")
            assert caller.recv(7) == b"welcome"
            inside[0].close()
        it.close()
        it.close()
        assert listener.fileno() < 0

    asyncio.run(knock())
