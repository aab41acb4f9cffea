"""What tasks write is in the bucket when that is reported, with a real rclone and a real S3 server."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from skyward.core.protocol.buckets import Bucket, BucketKeys
from skyward.worker import rclone
from skyward.worker.bucket_volumes import BucketVolumes
from tests.processes import descendants, rclones
from tests.s3_servers import KEYS, S3Server, needs_rclone, rclone_s3

pytestmark = [pytest.mark.slow, needs_rclone]

OTHERS = frozenset({1})
GOOD = BucketKeys("keys", KEYS["access_key"], KEYS["secret_key"])


class Node:
    """A node with a folder of a bucket that tasks can write to."""

    def __init__(self, tmp_path: Path, server: S3Server, patience: float) -> None:
        self.served = tmp_path / "served" / "bucket" / "data"
        self.target = tmp_path / "target"
        self.server = server
        self.said: list[str] = []
        self.warned = threading.Event()
        self.volumes = BucketVolumes(str(tmp_path / "own"), self._warn, patience)
        settings = {"provider": "Other", "region": "us-east-1", "endpoint": server.url}
        bucket = Bucket("s3://bucket/data/", "bucket/data", settings, GOOD, 1, 3)
        self.volumes.bring(1, bucket, str(self.target), writable=True)

    def _warn(self, text: str) -> None:
        self.said.append(text)
        self.warned.set()

    def saved(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.served)): path.read_bytes() for path in self.served.rglob("*") if path.is_file()
        }


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Callable[[float], Node]]:
    (tmp_path / "served" / "bucket" / "data").mkdir(parents=True)
    (tmp_path / "served" / "bucket" / "data" / "file").write_bytes(b"123")
    made: list[Node] = []
    with rclone_s3(tmp_path / "served") as server:

        def make(patience: float = 60.0) -> Node:
            made.append(Node(tmp_path, server, patience))
            return made[0]

        yield make
        made[0].volumes.close()


def test_files_are_added_and_replaced_and_never_removed(node: Callable[..., Node]) -> None:
    it = node()
    assert it.volumes.save(OTHERS) is None
    (it.target / "deep" / "er").mkdir(parents=True)
    (it.target / "deep" / "er" / "new ? %41 #").write_bytes(b"1")
    for number in range(20):
        (it.target / f"part-{number}").write_bytes(b"%d" % number)
    (it.target / "empty").touch()
    (it.target / "file").unlink()
    assert it.volumes.save(OTHERS) is None
    parts = {f"part-{number}": b"%d" % number for number in range(20)}
    assert it.saved() == {"file": b"123", "deep/er/new ? %41 #": b"1", "empty": b"", **parts}
    (it.target / "part-3").write_bytes(b"9")
    os.utime(it.target / "part-3", (1, 1))
    (it.target / "file").symlink_to("part-3")
    assert it.volumes.save(OTHERS) is None
    assert (it.saved()["part-3"], it.saved()["file"]) == (b"9", b"9")
    assert it.said == []


def test_a_store_and_an_rclone_that_are_gone_for_a_while(node: Callable[..., Node]) -> None:
    it = node()
    (it.target / "new").write_bytes(b"1")
    for pid in descendants(os.getpid()):
        if b"rcd" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    it.server.stop()
    results: list[str | None] = []
    saving = threading.Thread(target=lambda: results.append(it.volumes.save(OTHERS)))
    saving.start()
    assert it.warned.wait(60)
    assert "s3://bucket/data/new: " in it.said[0]
    it.server.start()
    saving.join(60)
    assert results == [None]
    assert it.saved()["new"] == b"1"


def test_what_cant_be_saved_is_said_again_and_again(node: Callable[..., Node]) -> None:
    """Nothing is lost for having been reported: later it is saved after all."""
    it = node(0.0)
    (it.target / "new").write_bytes(b"1")
    it.server.stop()
    for _ in range(2):
        problem = it.volumes.save(OTHERS)
        assert problem is not None
        assert problem.startswith("s3://bucket/data/new: ")
    it.server.start()
    assert it.volumes.save(OTHERS) is None
    assert it.saved()["new"] == b"1"


def test_an_upload_that_does_not_go_on_fails(node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of holding its task for ever; and that it stands still is said before."""
    monkeypatch.setattr(rclone, "_STILL", 4.0)  # on a full machine, rclone may not run for a second
    monkeypatch.setattr(rclone, "_WARN_AFTER", 0.3)
    monkeypatch.setattr(rclone, "_ASK", 0.1)
    it = node(0.0)
    (it.target / "new").write_bytes(b"1")
    with stopped(it.server.process.pid):
        problem = it.volumes.save(OTHERS)
    assert problem == "s3://bucket/data/new: no data has moved for 4 s"
    assert re.match(r"s3://bucket/data/new: no data has moved for \d s \(limit: 4 s\)", it.said[0])
    assert it.volumes.save(OTHERS) is None
    assert it.saved()["new"] == b"1"


def test_an_rclone_that_hangs_is_replaced(node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rclone, "_ANSWER", 0.5)
    it = node()
    (it.target / "new").write_bytes(b"1")
    (hung,) = rclones(os.getpid())
    with stopped(hung):
        assert it.volumes.save(OTHERS) is None
        assert it.saved()["new"] == b"1"


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
