"""What a node is told of a bucket."""

from __future__ import annotations

import math

import msgpack
import pytest

from skyward.core.protocol.buckets import Bucket, BucketKeys

KEYS = BucketKeys("keys", "access", "hidden", "token", 5000.0)


def test_it_arrives_as_it_was_and_shows_no_secrets() -> None:
    bucket = Bucket("s3://b/p/", "b/p", {"region": "r"}, KEYS, 3, 4)
    assert Bucket.unpack(bucket.pack()) == bucket
    assert BucketKeys.unpack(KEYS.pack()) == KEYS
    assert "hidden" not in repr(bucket)
    assert bucket.with_keys(BucketKeys("none")).keys.kind == "none"


def test_keys_end() -> None:
    assert KEYS.left(4000.0) == 1000.0
    assert BucketKeys("none").left(4000.0) == math.inf


@pytest.mark.parametrize("data", [msgpack.packb({"url": "u"}), msgpack.packb({"keys": {"more": 1}}), b"\xc1"])
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a bucket"):
        Bucket.unpack(data)
