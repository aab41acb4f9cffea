"""Sockets at paths of any length."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from skyward.core.system.socket_paths import LONGEST, socket_path


def deep(folder: Path, length: int) -> Path:
    """A folder below this one whose path has so many characters."""
    while (missing := length - len(str(folder))) > 0:
        folder /= "d" * max(1, min(missing - 1, 100))
        folder.mkdir()
    return folder


@pytest.mark.parametrize("length", [0, 90, 200, 1000])
def test_a_path_of_any_length_can_be_bound_and_connected(tmp_path: Path, length: int) -> None:
    path = str(deep(tmp_path, length) / "agent.sock")
    files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        with socket_path(path) as name:
            assert (name == path) is (len(path) <= LONGEST)
            listener.bind(name)
        listener.listen()
        assert Path(path).is_socket(), "it is where it was wanted"
        with socket_path(path) as name:
            client.connect(name)
        with listener.accept()[0] as accepted:
            client.sendall(b"here")
            assert accepted.recv(4) == b"here"
    assert len(os.listdir("/proc/self/fd")) == files, "no folder stays open"  # noqa: PTH208


def test_what_can_not_be_named_is_refused_with_advice(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"set TMPDIR to a folder with a shorter path"),
        socket_path(f"{tmp_path}/{'n' * 120}"),
    ):
        pass


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    missing = f"{tmp_path}/{'d' * 120}/agent.sock"
    with pytest.raises(FileNotFoundError, match="d" * 120), socket_path(missing):
        pass
