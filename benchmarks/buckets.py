"""What a bucket costs in a pool, beside plain rclone: ``python -m benchmarks.buckets [MB]``.

A gigabyte in files of 64 MB passes a real S3 server, rclone's own, on this machine: read by tasks through a mount,
copied by a node before tasks run, and written by tasks. Then small files, and what it costs tasks that write nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import skyward as sky
from skyward.worker.mounts import hindrance
from skyward.worker.rclone import find_rclone

__all__ = ["main"]

_FILE = 64  # MB
_PIECE = os.urandom(1 << 20)
_SMALL = 500
_KEYS = "testing", "testing-secret"


def read(path: str) -> int:
    """Read a file."""
    with Path(path).open("rb", buffering=0) as file:
        return sum(map(len, iter(lambda: file.read(1 << 20), b"")))


def write(path: str, size: int) -> None:
    """Write a file of so many MB."""
    with Path(path).open("wb") as file:
        file.writelines(_PIECE for _ in range(size))


def note(path: str) -> None:
    """Write a small file."""
    Path(path).write_text(path)


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder by S3; yields the address."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    address = f"127.0.0.1:{port}"
    command = [find_rclone(), "serve", "s3", "--addr", address, "--auth-key", ",".join(_KEYS), "--config", ""]
    with subprocess.Popen([*command, str(folder)], stderr=subprocess.DEVNULL) as process:
        try:
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.05)
            yield f"http://{address}"
        finally:
            process.kill()


def rclone(url: str, *arguments: str) -> None:
    """Run plain rclone."""
    store = f":s3,provider=Other,endpoint='{url}',access_key_id={_KEYS[0]},secret_access_key={_KEYS[1]}:"
    plain = [argument.replace("store:", store) for argument in arguments]
    subprocess.run([find_rclone(), "--config", "", *plain], check=True)


def pool(url: str, place: str, prefix: str, *, read_only: bool = True) -> sky.Compute:
    """Make a pool with a folder of the bucket."""
    volume = sky.S3Volume(
        place, "bucket", prefix, read_only=read_only, endpoint=url, access_key=_KEYS[0], secret_key=_KEYS[1]
    )
    return sky.Compute(worker=sky.Worker(concurrency=2), volume=volume, console=False)


def reading(url: str, folder: Path, count: int) -> None:
    """Large files from the bucket."""
    plain = seconds(lambda: rclone(url, "copy", "store:bucket/in", f"{folder}/copy"))
    print(f"read    rclone copy          {plain:6.1f} s")
    shutil.rmtree(folder / "copy")
    paths = [f"in/{number}" for number in range(count)]
    opened = pool(url, "in", "in")
    with contextlib.ExitStack() as stack:
        started = seconds(lambda: stack.enter_context(opened))
        for turn in ("first", "again"):
            taken = seconds(lambda: list(opened.map(read, paths)))
            print(
                f"read    {'copied' if hindrance() else 'mounted'}, {turn}       {taken:6.1f} s (start {started:.1f} s)"
            )


def writing(url: str, folder: Path, count: int) -> None:
    """Large files to the bucket."""
    (folder / "source").mkdir()
    local = seconds(lambda: [write(f"{folder}/source/{number}", _FILE) for number in range(count)])
    plain = seconds(lambda: rclone(url, "copy", f"{folder}/source", "store:bucket/plain"))
    print(f"write   to disk, rclone copy {local:6.1f} s + {plain:.1f} s")
    with pool(url, "out", "out", read_only=False) as opened:
        names = [f"out/{number}" for number in range(count)]
        taken = seconds(lambda: list(opened.map(write, names, [_FILE] * count)))
        print(f"write   by tasks             {taken:6.1f} s")


def small(url: str) -> None:
    """Small files, and tasks that write nothing beside many files."""
    with pool(url, "out", "small", read_only=False) as opened:
        taken = seconds(lambda: list(opened.map(note, [f"out/{number}" for number in range(_SMALL)])))
        print(f"write   {_SMALL} small files     {1e3 * taken / _SMALL:6.2f} ms each")
        one = seconds(lambda: opened.submit(note, "out/one").result())
        print(f"write   one alone            {1e3 * one:6.1f} ms")
        taken = seconds(lambda: list(opened.map(abs, range(2000))))
        print(f"tasks   writing nothing      {1e3 * taken / 2000:6.2f} ms each, beside {_SMALL} files")
    with sky.Compute(worker=sky.Worker(concurrency=2), console=False) as opened:
        taken = seconds(lambda: list(opened.map(abs, range(2000))))
        print(f"tasks   without a bucket     {1e3 * taken / 2000:6.2f} ms each")


def main(megabytes: int = 1024) -> None:
    """Print the figures."""
    count = max(megabytes // _FILE, 1)
    with tempfile.TemporaryDirectory(prefix="buckets-") as name:
        folder = Path(name)
        served = folder / "served" / "bucket"
        (served / "in").mkdir(parents=True)
        for number in range(count):
            write(f"{served}/in/{number}", _FILE)
        with serving(served.parent) as url:
            reading(url, folder, count)
            writing(url, folder, count)
            small(url)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
