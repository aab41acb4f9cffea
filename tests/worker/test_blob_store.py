"""Blobs on a node."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from skyward.core.blobs.snapshots import digest
from skyward.core.payload.shared_file import SharedFile
from skyward.worker import blob_store as module
from skyward.worker.blob_store import Corrupt, Store


def put(store: Store, name: bytes, data: bytes) -> str | None:
    """Return a whole blob."""
    store.add(name, len(data), 0, data)
    return store.problem


def test_a_blob_is_a_private_file(tmp_path: Path) -> None:
    store = Store([str(tmp_path)])
    assert put(store, b"d", b"content") is None
    path = store.find(b"d")
    assert isinstance(path, str)
    assert Path(path).read_bytes() == b"content"
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    assert stat.S_IMODE(Path(path).parent.stat().st_mode) == 0o700
    assert b"d" in store
    assert b"e" not in store
    store.close()
    assert list(tmp_path.iterdir()) == []


def test_a_blob_grows_from_parts_in_any_order_and_is_written_once(tmp_path: Path) -> None:
    store = Store([str(tmp_path)])
    data = os.urandom(1000)
    assert not store.add(b"d", 1000, 600, data[600:])
    assert store.holds(b"d", 600)
    assert (store.have(b"d"), store.read(b"d", 0, 1000)) == (0, b"")
    assert not store.add(b"d", 1000, 0, data[:400])
    assert not store.holds(b"d", 0)
    assert not store.add(b"d", 1000, 100, data[100:500])  # some of it a second time
    assert (store.have(b"d"), store.read(b"d", 300, 1000)) == (500, data[300:500])
    assert b"d" not in store
    assert store.add(b"d", 1000, 500, data[500:600])
    assert not store.holds(b"d", 600)
    assert Path(str(store.find(b"d"))).read_bytes() == data == store.read(b"d", 0, 2000)
    assert not store.add(b"d", 1000, 0, data[:400])
    assert store.add(b"d", 7, 0, b"another")  # its sender waits to hear that it is here
    assert Path(str(store.find(b"d"))).read_bytes() == data
    store.close()


@pytest.mark.parametrize("first", ["forget", "blob"])
def test_a_blob_that_is_sent_again_stays_whichever_comes_first(tmp_path: Path, first: str) -> None:
    """The owner forgets it in message 5 and sends it again in 6 and 7; a stripe may be quicker than the main stream."""
    store = Store([str(tmp_path)])
    data = os.urandom(1000)
    store.add(b"d", 1000, 0, data, number=1)
    if first == "forget":
        store.forget([b"d"], 5)
    whole = [store.add(b"d", 1000, 0, data[:400], number=6), store.add(b"d", 1000, 400, data[400:], number=7)]
    if first == "blob":
        store.forget([b"d"], 5)
    assert whole == [False, True]
    assert Path(str(store.find(b"d"))).read_bytes() == data
    store.forget([b"d"], 8)
    assert b"d" not in store
    store.close()


def test_what_peers_sent_is_compared_with_its_digest(tmp_path: Path) -> None:
    """That includes the part that the owner had sent before; after a mismatch only the owner's bytes are used."""
    store = Store([str(tmp_path)])
    data = os.urandom(1000)
    name = digest(memoryview(data))
    store.add(name, 1000, 0, data[:400])
    assert store.add(name, 1000, 400, data[400:], peer=True)
    store.forget([name])
    store.add(name, 1000, 0, b"x" + data[1:400])
    with pytest.raises(Corrupt):
        store.add(name, 1000, 400, data[400:], peer=True)
    assert name not in store
    assert store.have(name) == 0
    assert len(list(next(tmp_path.iterdir()).iterdir())) == 1  # the lock
    assert store.add(name, 1000, 0, data)
    store.close()


def test_a_blob_in_use_stays_until_it_is_free(tmp_path: Path) -> None:
    store = Store([str(tmp_path)])
    store.use([b"d", b"d"])
    put(store, b"d", b"content")
    path = Path(str(store.find(b"d")))
    store.forget([b"d"])
    store.free([b"d"])
    assert path.exists()
    store.free([b"d"])
    assert not path.exists()
    assert b"d" not in store
    put(store, b"e", b"content")
    store.forget([b"e", b"never seen"])
    assert b"e" not in store
    store.close()


def test_a_blob_that_is_named_again_after_it_was_forgotten_stays(tmp_path: Path) -> None:
    store = Store([str(tmp_path)])
    store.use([b"d"])
    put(store, b"d", b"content")
    store.forget([b"d"])
    put(store, b"d", b"content")
    store.free([b"d"])
    assert b"d" in store
    store.close()


def test_where_no_file_can_be_written_the_bytes_stay_in_memory(tmp_path: Path) -> None:
    store = Store([str(tmp_path / "missing"), "/proc"])
    problem = put(store, b"d", b"content")
    assert problem is not None
    assert "missing" in problem
    assert store.find(b"d") == b"content"
    store.forget([b"d"])
    assert b"d" not in store
    store.close()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = Store([str(tmp_path)], pwrite=full)
    assert "No space left" in str(put(store, b"d", b"content"))
    folder = next(tmp_path.glob("skyward-store-*"))
    assert [file.name for file in folder.iterdir()] == ["lock"]  # no half-written file
    store.close()


def test_shared_memory_that_is_nearly_full_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MARGIN", 2**60)
    store = Store(["/dev/shm"])
    assert "no room" in str(put(store, b"d", b"content"))
    store.close()


def test_stores_of_killed_agents_are_swept_and_living_ones_are_not(tmp_path: Path) -> None:
    living = Store([str(tmp_path)])
    put(living, b"d", b"content")
    dead = tmp_path / f"skyward-store-{os.getuid()}-dead"
    dead.mkdir()
    (dead / "lock").touch()
    (dead / "6464").touch()
    young = tmp_path / f"skyward-store-{os.getuid()}-young"  # another agent is just making it
    young.mkdir()
    other = Store([str(tmp_path)])
    put(other, b"d", b"content")
    assert not dead.exists()
    assert young.exists()
    assert Path(str(living.find(b"d"))).exists()
    living.close()
    other.close()


def test_a_place_that_becomes_full_is_left_with_what_is_there(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.mkdir()
    large.mkdir()

    def limited(fd: int, data: memoryview, offset: int) -> int:
        if "small" in str(Path(f"/proc/self/fd/{fd}").readlink()) and offset >= 400:
            raise OSError(errno.ENOSPC, "No space left on device")
        return os.pwrite(fd, data, offset)

    store = Store([str(small), str(large)], pwrite=limited)
    data = os.urandom(1000)
    for start in range(0, 1000, 200):
        store.add(b"d", 1000, start, data[start : start + 200])
    assert str(store.find(b"d")).startswith(str(large))
    assert Path(str(store.find(b"d"))).read_bytes() == data
    assert store.problem is None
    store.close()
    assert list(small.iterdir()) == list(large.iterdir()) == []


def test_a_blob_that_is_forgotten_while_it_grows_goes_at_once(tmp_path: Path) -> None:
    store = Store([str(tmp_path)])
    store.add(b"d", 1000, 0, b"x" * 500)
    store.forget([b"d"])
    assert b"d" not in store
    assert store.have(b"d") == 0
    store.close()


def test_a_file_of_the_owner_takes_the_place_of_what_a_peer_has_sent_in_part(tmp_path: Path) -> None:
    store = Store([str(tmp_path)])
    store.add(b"d", 1000, 0, b"x" * 500, peer=True)
    file = SharedFile(memoryview(b"y" * 1000))
    store.adopt(b"d", file.path, file.inode, 1000)
    assert store.read(b"d", 0, 1000) == b"y" * 1000
    assert not list(tmp_path.glob("*/*.part"))
    assert not store.add(b"d", 1000, 500, b"x" * 400, peer=True)  # the rest was on its way
    assert store.read(b"d", 0, 1000) == b"y" * 1000
    store.close()
