"""Blobs on a node."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from skyward.worker import store as module
from skyward.worker.store import Store


def test_a_blob_is_a_private_file(tmp_path: Path) -> None:
    store = Store([str(tmp_path)])
    assert store.put(b"d", bytearray(b"content")) is None
    path = store.find(b"d")
    assert isinstance(path, str)
    assert Path(path).read_bytes() == b"content"
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    assert stat.S_IMODE(Path(path).parent.stat().st_mode) == 0o700
    assert b"d" in store
    assert b"e" not in store
    store.close()
    assert list(tmp_path.iterdir()) == []


def test_a_blob_is_written_once_and_in_steps(tmp_path: Path) -> None:
    store = Store([str(tmp_path)])
    data = bytearray(os.urandom(10 * 1024 * 1024))
    count = sum(1 for _ in store.write(b"d", data))
    assert count == 2
    assert Path(str(store.find(b"d"))).read_bytes() == data
    store.put(b"d", bytearray(b"another"))
    assert Path(str(store.find(b"d"))).read_bytes() == data
    store.close()


def test_a_blob_in_use_stays_until_it_is_free(tmp_path: Path) -> None:
    store = Store([str(tmp_path)])
    store.use([b"d", b"d"])
    store.put(b"d", bytearray(b"content"))
    path = Path(str(store.find(b"d")))
    store.forget([b"d"])
    store.free([b"d"])
    assert path.exists()
    store.free([b"d"])
    assert not path.exists()
    assert b"d" not in store
    store.put(b"e", bytearray(b"content"))
    store.forget([b"e", b"never seen"])
    assert b"e" not in store
    store.close()


def test_a_blob_that_is_named_again_after_it_was_forgotten_stays(tmp_path: Path) -> None:
    store = Store([str(tmp_path)])
    store.use([b"d"])
    store.put(b"d", bytearray(b"content"))
    store.forget([b"d"])
    store.put(b"d", bytearray(b"content"))
    store.free([b"d"])
    assert b"d" in store
    store.close()


def test_where_no_file_can_be_written_the_bytes_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store([str(tmp_path / "missing"), "/proc"])
    problem = store.put(b"d", bytearray(b"content"))
    assert problem is not None
    assert "missing" in problem
    assert store.find(b"d") == b"content"
    store.forget([b"d"])
    assert b"d" not in store
    store.close()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = Store([str(tmp_path)])
    monkeypatch.setattr(module.os, "write", full)
    assert "No space left" in str(store.put(b"d", bytearray(b"content")))
    monkeypatch.undo()
    folder = next(tmp_path.glob("skyward-store-*"))
    assert [file.name for file in folder.iterdir()] == ["lock"]  # no half-written file
    store.close()


def test_shared_memory_that_is_nearly_full_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MARGIN", 2**60)
    store = Store(["/dev/shm"])
    assert "no room" in str(store.put(b"d", bytearray(b"content")))
    store.close()


def test_stores_of_killed_agents_are_swept_and_living_ones_are_not(tmp_path: Path) -> None:
    living = Store([str(tmp_path)])
    living.put(b"d", bytearray(b"content"))
    dead = tmp_path / f"skyward-store-{os.getuid()}-dead"
    dead.mkdir()
    (dead / "lock").touch()
    (dead / "6464").touch()
    young = tmp_path / f"skyward-store-{os.getuid()}-young"  # another agent is just making it
    young.mkdir()
    other = Store([str(tmp_path)])
    other.put(b"d", bytearray(b"content"))
    assert not dead.exists()
    assert young.exists()
    assert Path(str(living.find(b"d"))).exists()
    living.close()
    other.close()


def test_a_blob_that_is_forgotten_while_it_is_written_goes_at_once(tmp_path: Path) -> None:
    store = Store([str(tmp_path)])
    steps = store.write(b"d", bytearray(10 * 1024 * 1024))
    next(steps)
    store.forget([b"d"])
    assert list(steps) == [None]
    assert b"d" not in store
    store.close()
