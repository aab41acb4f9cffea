"""A real mount by a real rclone: it is mounted again if that dies, and ends however its owner ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from skyward.core.protocol.buckets import Bucket, BucketKeys
from skyward.worker import bucket_mount, mounts, rclone, scratch
from skyward.worker.bucket_volumes import BucketVolumes
from tests.processes import descendants, rclones
from tests.s3_servers import KEYS, S3Server, needs_rclone, rclone_s3
from tests.worker.helpers import ROOT, wait_for

pytestmark = [
    pytest.mark.slow,
    needs_rclone,
    pytest.mark.skipif(mounts.hindrance() is not None, reason=f"can't mount here: {mounts.hindrance()}"),
]

HOLDER = """
import sys, time
from skyward.core.protocol.buckets import Bucket
from skyward.worker.bucket_volumes import BucketVolumes
BucketVolumes(sys.argv[1], print).mount(1, Bucket.unpack(bytes.fromhex(sys.argv[3])), sys.argv[2])
print("mounted", flush=True)
time.sleep(1000)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[S3Server]:
    (tmp_path / "served" / "bucket" / "data" / "deep").mkdir(parents=True)
    (tmp_path / "served" / "bucket" / "data" / "deep" / "file").write_bytes(b"123")
    with rclone_s3(tmp_path / "served") as server:
        yield server


def bucket(server: S3Server, secret: str = KEYS["secret_key"]) -> Bucket:
    settings = {"provider": "Other", "region": "us-east-1", "endpoint": server.url}
    keys = BucketKeys("keys", KEYS["access_key"], secret)
    return Bucket("s3://bucket/data/", "bucket/data", settings, keys, 1, 3)


def reads(place: Path) -> bool:
    try:
        return (place / "deep" / "file").read_bytes() == b"123"
    except OSError:
        return False


def test_it_is_read_only_and_mounted_again_when_its_server_dies(server: S3Server, tmp_path: Path) -> None:
    place = tmp_path / "deep" / "place with spaces"
    said = threading.Event()
    volumes = BucketVolumes(str(tmp_path / "own"), lambda _: said.set())
    try:
        volumes.mount(1, bucket(server), str(place))
        assert mounts.mounted_below(tmp_path) == [str(place)]
        assert (place / "deep" / "file").read_bytes() == b"123"
        with pytest.raises(OSError, match="Read-only"):
            (place / "new").touch()
        for pid in rclones(os.getpid()):
            os.kill(pid, signal.SIGKILL)
        assert said.wait(30)
        wait_for(lambda: reads(place), "it is mounted again")
        file = (place / "deep" / "file").open("rb")
    finally:
        volumes.close()
    assert mounts.mounted_below(tmp_path) == []
    with contextlib.suppress(OSError):  # its server is gone
        file.close()


def test_one_that_cant_be_read_leaves_nothing(server: S3Server, tmp_path: Path) -> None:
    place = tmp_path / "place"
    volumes = BucketVolumes(str(tmp_path / "own"), print)
    try:
        with pytest.raises(OSError, match=r"Input/output|403"):
            volumes.mount(1, bucket(server, "wrong"), str(place))
        assert not place.exists()
        volumes.bring(2, bucket(server), str(place))  # copied instead
    finally:
        volumes.close()


def test_a_frozen_server_is_replaced(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what reads there would wait for ever."""
    monkeypatch.setattr(rclone, "_ANSWER", 1.0)
    place = tmp_path / "place"
    said = threading.Event()
    volumes = BucketVolumes(str(tmp_path / "own"), lambda _: said.set())
    try:
        volumes.mount(1, bucket(server), str(place))
        (frozen,) = rclones(os.getpid())
        os.kill(frozen, signal.SIGSTOP)
        assert said.wait(60)
        wait_for(lambda: reads(place), "it is mounted again")
        assert rclones(os.getpid()) != [frozen]
    finally:
        volumes.close()


def test_a_store_that_does_not_answer_is_said(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is waited for, which ends."""
    monkeypatch.setattr(bucket_mount, "_WARN_AFTER", 0.3)
    monkeypatch.setattr(bucket_mount, "_LIST", 1.0)
    place = tmp_path / "place"
    said: list[str] = []
    volumes = BucketVolumes(str(tmp_path / "own"), said.append)
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(OSError, match="the store has not listed the folder within 1 s"):
            volumes.mount(1, bucket(server), str(place))
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
        volumes.close()
    assert said == ["s3://bucket/data/: the store has not listed the folder within 0 s (limit: 1 s)"]
    assert not place.exists()


@pytest.mark.parametrize("all_of_it", [False, True], ids=["its owner", "all of it"])
def test_nothing_stays_mounted_when_it_is_killed(server: S3Server, tmp_path: Path, all_of_it: bool) -> None:
    place = tmp_path / "base" / "place"
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "base" / "own"), str(place), bucket(server).pack().hex()]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"mounted\n"
        everything = [*descendants(process.pid), process.pid] if all_of_it else [process.pid]
        for pid in everything:
            os.kill(pid, signal.SIGKILL)
    if all_of_it:
        scratch.remove(tmp_path / "base")  # as the next agent does
        assert not (tmp_path / "base").exists()
    wait_for(lambda: mounts.mounted_below(tmp_path) == [], "nothing is mounted")
    assert (tmp_path / "served" / "bucket" / "data" / "deep" / "file").read_bytes() == b"123"
