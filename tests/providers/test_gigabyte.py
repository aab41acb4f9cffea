"""A gigabyte from a bucket and to one, on each kind of machine, beside plain rclone there.

It is run by hand, for the figures: ``SKYWARD_GIGABYTE=1 pytest -s tests/providers/test_gigabyte.py``.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import skyward as sky
from tests.lab import Lab
from tests.lab.clouds import Machines
from tests.lab.fixtures import LabHosts
from tests.providers.rentals import RENTALS
from tests.remote import *  # noqa: F403  fixtures
from tests.s3_servers import KEYS, needs_rclone, rclone_s3

pytestmark = [
    pytest.mark.clouds,
    pytest.mark.lab,
    pytest.mark.slow,
    needs_rclone,
    pytest.mark.skipif("SKYWARD_GIGABYTE" not in os.environ, reason="takes minutes; SKYWARD_GIGABYTE=1 runs it"),
]

FILES, SIZE = 16, 64 << 20


def make_tasks() -> tuple[Callable[..., Any], ...]:
    """They travel by value, as those of a script do; nodes have no module `tests`."""

    def read(path: str) -> str:
        digest = hashlib.blake2b(digest_size=8)
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            while piece := file.read(1 << 20):
                digest.update(piece)
        return digest.hexdigest()

    def write(path: str) -> str:
        digest = hashlib.blake2b(digest_size=8)
        piece = os.urandom(1 << 20)
        with open(path, "wb") as file:  # noqa: PTH123
            for _ in range(64):
                file.write(piece)
                digest.update(piece)
        return digest.hexdigest()

    def plain(url: str, keys: dict[str, str], source: str, target: str) -> float:
        import shutil
        import subprocess
        import sys

        path = os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"]))
        rclone = shutil.which("rclone", path=path) or "rclone"
        secrets = f"access_key_id={keys['access_key']},secret_access_key={keys['secret_key']}"
        store = f":s3,provider=Other,endpoint='{url}',{secrets}:"
        names = [name.replace("store:", store) for name in (source, target)]
        began = time.monotonic()
        subprocess.run([rclone, "--config", "", "copy", *names], check=True)
        return time.monotonic() - began

    return read, write, plain


read, write, plain = make_tasks()


@contextmanager
def arguments(kind: str, lab: Lab, index: str, hosts: LabHosts, reach: Any) -> Iterator[dict[str, Any]]:
    if kind == "ssh":
        yield reach(hosts(1))
        return
    rental = next(rental for rental in RENTALS if rental.name == kind)
    with rental.make_cloud(Machines(lab, fuse=kind != "vastai")) as cloud:
        yield {"provider": rental.provider(cloud), "image": sky.Image(index=index), "console": False}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["ssh", "aws", "verda", "vastai"])
def test_a_gigabyte(
    kind: str, lab: Lab, index: str, lab_hosts: LabHosts, reach: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKYWARD_STATE", str(tmp_path / "state"))
    folder = tmp_path / "served" / "bucket" / "in"
    folder.mkdir(parents=True)
    (folder.parent / "out").mkdir()
    wanted = [write(f"{folder}/{number}") for number in range(FILES)]
    with (
        rclone_s3(tmp_path / "served", lab.gateway) as server,
        arguments(kind, lab, index, lab_hosts, reach) as where,
    ):
        options: dict[str, Any] = {"endpoint": server.url, **KEYS}
        read_only = sky.S3Volume("in", "bucket", "in", **options)
        writable = sky.S3Volume("out", "bucket", "out", read_only=False, **options)
        seconds: dict[str, float] = {}

        @contextmanager
        def timed(what: str) -> Iterator[None]:
            began = time.monotonic()
            yield
            seconds[what] = time.monotonic() - began

        with sky.Compute(**where, concurrency=2) as pool, timed("first task"):  # the machine, its packages
            pool.submit(abs, -1).result()
        pool = sky.Compute(**where, concurrency=2, volume=[read_only, writable])
        with timed("start"):
            pool.__enter__()
        try:
            mounted = "fuse.rclone" in pool.submit(lambda: Path("/proc/mounts").read_text()).result()
            with timed("read"):
                assert list(pool.map(read, [f"in/{number}" for number in range(FILES)])) == wanted
            with timed("write"):
                written = list(pool.map(write, [f"out/{number}" for number in range(FILES)]))
            assert [read(f"{folder.parent}/out/{number}") for number in range(FILES)] == written
            seconds["rclone reads"] = pool.submit(plain, server.url, KEYS, "store:bucket/in", "/var/tmp/plain").result()
            seconds["rclone writes"] = pool.submit(
                plain, server.url, KEYS, "/var/tmp/plain", "store:bucket/plain"
            ).result()
        finally:
            pool.__exit__(None, None, None)
    way = "mounted" if mounted else "copied"
    print(f"\n{kind}, {way}: " + ", ".join(f"{what} {taken:.1f} s" for what, taken in seconds.items()))
