"""A bucket's folder, copied by a real rclone from a real S3 server."""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from skyward.core.protocol.buckets import Bucket, BucketKeys
from skyward.worker import rclone
from skyward.worker.bucket_volumes import BucketVolumes
from tests.s3_servers import KEYS, needs_rclone, rclone_s3

pytestmark = [pytest.mark.slow, needs_rclone]


def test_it_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    served = tmp_path / "served"
    (served / "bucket" / "data" / "deep").mkdir(parents=True)
    (served / "bucket" / "data" / "deep" / "file").write_bytes(b"123")
    target = tmp_path / "target" / "data"
    keys = BucketKeys("keys", KEYS["access_key"], KEYS["secret_key"])
    warned: list[str] = []
    volumes = BucketVolumes(str(tmp_path / "own"), warned.append)
    with rclone_s3(served) as server:
        settings = {"provider": "Other", "region": "us-east-1", "endpoint": server.url}
        bucket = Bucket("s3://bucket/data/", "bucket/data", settings, keys, 1, 3)
        try:
            with pytest.raises(OSError, match="GB are free") as caught:
                volumes.bring(1, replace(bucket, size=1 << 60), str(target))
            assert caught.value.errno == errno.ENOSPC
            wrong = replace(bucket, keys=replace(keys, secret_key="wrong"))
            with pytest.raises(OSError, match=r"403|SignatureDoesNotMatch|Forbidden"):
                volumes.bring(2, wrong, str(target))
            assert os.listdir(target.parent) == []  # noqa: PTH208
            assert warned
            assert all(text.startswith("s3://bucket/data/ could not be copied here: ") for text in warned)
            assert all(text.endswith("; it is tried again") for text in warned)
            volumes.bring(3, bucket, str(target))
            assert (target / "deep" / "file").read_bytes() == b"123"
            assert [path.stat().st_mode & 0o777 for path in (target, target / "deep" / "file")] == [0o555, 0o444]
            with pytest.raises(FileExistsError):
                volumes.bring(4, bucket, str(target))
        finally:
            volumes.close()


def test_new_keys_may_come_before_the_server_that_they_are_for(tmp_path: Path) -> None:
    (tmp_path / "served" / "bucket" / "data").mkdir(parents=True)
    (tmp_path / "served" / "bucket" / "data" / "file").write_bytes(b"123")
    volumes = BucketVolumes(str(tmp_path / "own"), lambda _: None)
    with rclone_s3(tmp_path / "served") as server:
        settings = {"provider": "Other", "region": "us-east-1", "endpoint": server.url}
        old = BucketKeys("keys", KEYS["access_key"], "expired")
        try:
            volumes.renew(1, BucketKeys("keys", KEYS["access_key"], KEYS["secret_key"]))
            volumes.bring(1, Bucket("s3://bucket/data/", "bucket/data", settings, old, 1, 3), str(tmp_path / "target"))
        finally:
            volumes.close()
    assert (tmp_path / "target" / "file").read_bytes() == b"123"


def test_a_store_that_does_not_answer_is_said_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes connections, and says nothing."""
    monkeypatch.setattr(rclone, "_STILL", 1.0)
    monkeypatch.setattr(rclone, "_WARN_AFTER", 0.3)
    monkeypatch.setattr(rclone, "_ASK", 0.1)
    folder = tmp_path / "served" / "bucket" / "data"
    folder.mkdir(parents=True)
    (folder / "file").write_bytes(b"123")
    said: list[str] = []
    with rclone_s3(tmp_path / "served") as server:

        def warn(text: str) -> None:
            said.append(text)
            if text.endswith("it is tried again"):
                os.kill(server.process.pid, signal.SIGCONT)

        volumes = BucketVolumes(str(tmp_path / "own"), warn)
        settings = {"provider": "Other", "region": "us-east-1", "endpoint": server.url}
        keys = BucketKeys("keys", KEYS["access_key"], KEYS["secret_key"])
        bucket = Bucket("s3://bucket/data/", "bucket/data", settings, keys, 1, 3)
        try:
            os.kill(server.process.pid, signal.SIGSTOP)
            volumes.bring(1, bucket, str(tmp_path / "target"))
        finally:
            volumes.close()
            os.kill(server.process.pid, signal.SIGCONT)
        assert (tmp_path / "target" / "file").read_bytes() == b"123"
    assert said == [
        "s3://bucket/data/: no data has moved for 0 s (limit: 1 s)",
        "s3://bucket/data/ could not be copied here: no data has moved for 1 s; it is tried again",
    ]
