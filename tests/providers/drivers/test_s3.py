"""Policies of keys for nodes; tests/providers/test_s3.py asks real servers."""

from __future__ import annotations

import json

from skyward.providers.drivers.s3 import policy


def test_the_policy_allows_one_folder_only() -> None:
    readable = json.loads(policy("bucket", "a/", "us-east-1", writable=False))["Statement"]
    assert readable[0]["Condition"] == {"StringLike": {"s3:prefix": ["a/*"]}}
    assert (readable[1]["Action"], readable[1]["Resource"]) == (["s3:GetObject"], "arn:aws:s3:::bucket/a/*")
    writable = json.loads(policy("bucket", "", "cn-north-1", writable=True))["Statement"]
    assert "Condition" not in writable[0]
    assert "s3:PutObject" in writable[1]["Action"]
    assert writable[1]["Resource"] == "arn:aws-cn:s3:::bucket/*"
