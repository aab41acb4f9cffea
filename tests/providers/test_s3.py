"""Checks of a bucket before anything is bought, against real servers; and keys for nodes."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from skyward.core.errors import AuthFailed, CloudError, ConfigError
from skyward.core.protocol.buckets import BucketKeys
from skyward.core.volumes import S3Volume
from skyward.providers.s3 import S3Store, rclone_provider
from skyward.worker.rclone import find_rclone
from tests.s3_servers import KEYS, S3Server, moto_s3, needs_rclone, rclone_s3

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with moto_s3() as server:
        server.put("my-bucket", {"datasets/a": b"12345", "datasets/deep/b": b"1234567", "other": b"1"})
        yield server


@pytest.fixture(autouse=True)
def account(server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The driver's own account, at moto's AWS."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the-drivers-own")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-drivers-secret")


def test_what_is_there_and_keys_of_its_own() -> None:
    """The driver's keys are not among those for nodes."""
    found = S3Store(S3Volume("/data", "my-bucket", "datasets")).check()
    assert (found.url, found.folder, found.files, found.size) == (
        "s3://my-bucket/datasets/", "my-bucket/datasets", 2, 12,
    )  # fmt: skip
    assert found.keys.kind == "keys"
    assert found.keys.session_token
    assert 3000 < found.keys.left(time.time()) <= 3600
    assert "the-drivers" not in repr(found.pack())
    assert found.keys.secret_key not in repr(found)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"bucket": "nope"}, ConfigError, "there is no bucket 'nope'"),
        ({"prefix": "wrong/"}, ConfigError, "s3://my-bucket/wrong/ is empty"),
        ({"region": "eu-west-1"}, ConfigError, "is in us-east-1, not in eu-west-1: write region='us-east-1'"),
        ({"endpoint": "http://127.0.0.1:1"}, CloudError, "127.0.0.1:1"),
    ],
)
def test_what_is_wrong_is_said_before(changes: dict[str, str], error: type[Exception], said: str) -> None:
    arguments = {"path": "/data", "bucket": "my-bucket", "prefix": "datasets/", **changes}
    if "endpoint" in changes:
        arguments |= KEYS
    with pytest.raises(error, match=said):
        S3Store(S3Volume(**arguments)).check()


def test_without_a_way_to_make_keys_it_says_what_to_pass(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = S3Volume("/data", "my-bucket", "datasets/", endpoint=server.url)
    with pytest.raises(ConfigError, match="pass access_key= and secret_key="):
        S3Store(volume).check()
    monkeypatch.setenv("AWS_SESSION_TOKEN", "temporary")
    with pytest.raises(AuthFailed, match=r"are temporary.*role="):
        S3Store(S3Volume("/data", "my-bucket", "datasets/")).check()
    role = S3Volume("/data", "my-bucket", "datasets/", role="arn:aws:iam::123456789012:role/reader")
    assert S3Store(role).check().keys.expires
    monkeypatch.delenv("AWS_SESSION_TOKEN")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(AuthFailed, match="aws configure"):
        S3Store(S3Volume("/data", "my-bucket", "datasets/")).check()


def test_keys_that_are_handed_over_are_used_as_they_are(server: S3Server) -> None:
    volume = S3Volume("/data", "my-bucket", "datasets/", endpoint=server.url, **KEYS)
    found = S3Store(volume).check()
    assert found.keys == BucketKeys("keys", KEYS["access_key"], KEYS["secret_key"])
    assert found.settings == {"provider": "Other", "region": "us-east-1", "endpoint": server.url}
    assert KEYS["secret_key"] not in repr(volume)


@needs_rclone
def test_a_store_that_checks_signatures(tmp_path: Path) -> None:
    (tmp_path / "bucket" / "data").mkdir(parents=True)
    (tmp_path / "bucket" / "data" / "file").write_bytes(b"123")
    with rclone_s3(tmp_path) as server:
        found = S3Store(S3Volume("/data", "bucket", "data", endpoint=server.url, **KEYS)).check()
        assert (found.files, found.size) == (1, 3)
        wrong = {**KEYS, "secret_key": "wrong"}
        with pytest.raises(AuthFailed, match=r"s3://bucket/data/: (the credentials are not accepted|access denied)"):
            S3Store(S3Volume("/data", "bucket", "data", endpoint=server.url, **wrong)).check()


@needs_rclone
def test_rclone_knows_the_stores_by_these_names() -> None:
    listed = subprocess.run([find_rclone(), "config", "providers"], check=True, capture_output=True, timeout=60).stdout
    (s3,) = (backend for backend in json.loads(listed) if backend["Name"] == "s3")
    (provider,) = (option for option in s3["Options"] if option["Name"] == "provider")
    known = {each["Value"] for each in provider["Examples"]}
    endpoints = (None, "https://storage.googleapis.com", "https://storage.googleapis.com.example.org")
    assert [rclone_provider(endpoint) for endpoint in endpoints] == ["AWS", "GCS", "Other"]
    assert {"AWS", "GCS", "Other"} <= known
