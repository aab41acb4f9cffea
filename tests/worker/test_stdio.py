"""Connecting to an agent through a command's input and output."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from skyward.core.system import launch


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    path = str(tmp_path / "agent.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.settimeout(10)
        yield path, listener


def start(path: str) -> subprocess.Popen[bytes]:
    command = [*launch.command("skyward.worker.stdio", str(Path(__file__).parents[2])), path]
    env = {**os.environ, "SKYWARD_READY": "it stands"}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)


def test_bytes_go_both_ways_and_the_agents_end_is_the_end(agent):
    path, listener = agent
    data = os.urandom(3_000_000)
    with start(path) as relay:
        assert relay.stdin is not None
        assert relay.stdout is not None
        taken, _ = listener.accept()
        assert relay.stdout.readline() == b"it stands\n"
        feeding = threading.Thread(target=lambda: (relay.stdin.write(data), relay.stdin.flush()))
        feeding.start()
        with taken:
            got = bytearray()
            while len(got) < len(data):
                got += taken.recv(1 << 20)
            feeding.join()
            answering = threading.Thread(target=taken.sendall, args=(bytes(got),))
            answering.start()
            back = relay.stdout.read(len(data))
            answering.join()
        assert back == data == bytes(got)
        assert relay.stdout.read() == b""
        assert relay.wait(30) == 0


def test_the_owners_end_is_the_end_of_the_connection(agent):
    path, listener = agent
    with start(path) as relay:
        taken, _ = listener.accept()
        taken.settimeout(10)
        with taken:
            relay.stdin.close()
            assert taken.recv(1) == b""
        assert relay.wait(30) == 0


def test_an_agent_that_is_not_there_is_reported(tmp_path):
    with start(str(tmp_path / "nobody")) as relay:
        assert relay.stdout.read() == b""
        assert b"nobody: No such file or directory" in relay.stderr.read()
        assert relay.wait(30) == 1
