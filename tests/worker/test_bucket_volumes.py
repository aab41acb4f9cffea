"""A bucket's folder, copied by a real rclone from a real S3 server."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from skyward.core.protocol.buckets import Bucket, BucketKeys
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
