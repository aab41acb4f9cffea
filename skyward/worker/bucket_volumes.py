"""The buckets of a pool on this node: mounted or copied here before tasks run, and what tasks write copied there."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from skyward.core.protocol.buckets import Bucket, BucketKeys
from skyward.worker import scratch
from skyward.worker.bucket_mount import BucketMount
from skyward.worker.bucket_writer import PATIENCE, BucketWriter
from skyward.worker.mounts import hindrance, unmount
from skyward.worker.rclone import Rclone, RcloneError

__all__ = ["BucketVolumes"]

_MARGIN = 64 * 2**20  # bytes of the disk to leave free for others
_ROUNDS = 3  # attempts at a copy; rclone itself retries each request


class BucketVolumes:
    """Mounts or copies folders of buckets on this node. Methods block, and may be called from any thread.

    Parameters
    ----------
    folder
        Where the servers keep their files.
    warn
        Called from any thread with warnings for the user.
    patience
        How long to keep retrying writes, in seconds.
    """

    def __init__(self, folder: str, warn: Callable[[str], object], patience: float = PATIENCE) -> None:
        self._folder = folder
        self._warn = warn
        self._patience = patience
        self._writers: dict[int, BucketWriter] = {}
        self._mounts: dict[int, BucketMount] = {}
        self._servers: dict[int, Rclone] = {}
        self._renewed: dict[int, BucketKeys] = {}  # came before the servers that they are for
        self._lock = threading.Lock()  # guards these two
        self._closed = False

    def __repr__(self) -> str:
        return f"<BucketVolumes {list(self._servers.values())}>"

    def mount(self, number: int, bucket: Bucket, target: str) -> None:
        """Mount a bucket's folder here, read-only.

        Parameters
        ----------
        number
            Names it in `renew`.
        bucket
            What to mount.
        target
            The folder to make.

        Raises
        ------
        OSError
            That is not possible; nothing is left of it.
        """
        _check_place(target)
        if (problem := hindrance()) is not None:
            raise OSError(problem)
        server = self._serve(number, bucket, target)
        Path(target).mkdir(parents=True)
        try:
            self._mounts[number] = BucketMount(bucket.url, server, target, self._warn)
        except OSError:
            self._servers.pop(number).close()
            unmount(target)
            Path(target).rmdir()
            raise

    def bring(self, number: int, bucket: Bucket, target: str, *, writable: bool = False) -> None:
        """Copy a bucket's folder here; it appears once it is whole.

        Parameters
        ----------
        number
            Names it in `renew`.
        bucket
            What to copy.
        target
            The folder to make.
        writable
            Whether tasks may write there, for `save`.

        Raises
        ------
        OSError
            That is not possible; nothing is left of it.
        """
        _check_place(target)
        parent, name = os.path.split(target)
        Path(parent).mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(parent).free) < bucket.size + _MARGIN:
            raise OSError(
                errno.ENOSPC,
                f"{bucket.url} has {bucket.size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free",
                parent,
            )
        server = self._serve(number, bucket, target)
        new = f"{parent}/.skyward-{number}-{name}"
        try:
            if bucket.files:
                self._copy(server, bucket.url, new)
            else:
                Path(new).mkdir()
            if not writable:
                _protect(new)
            Path(new).rename(target)
        finally:
            scratch.remove(new)
        if writable:
            copies = f"{self._folder}/{number}/copies"
            Path(copies).mkdir()
            self._writers[number] = BucketWriter(bucket.url, server, target, copies, self._warn, self._patience)

    def save(self, groups: frozenset[int] | None) -> str | None:
        """Save what was written before now to the buckets; returns what can't be saved, and why.

        Parameters
        ----------
        groups
            See `UnsavedFiles.find`.
        """
        problems = [writer.save(groups) for writer in list(self._writers.values())]
        return "; ".join(problem for problem in problems if problem is not None) or None

    def _copy(self, server: Rclone, url: str, target: str) -> None:
        Path(target).mkdir()
        values = {"srcFs": server.source, "dstFs": target, "_config": {"UseServerModTime": True}}
        for left in reversed(range(_ROUNDS)):
            server.start()
            try:
                server.copy("sync/copy", values, lambda text: self._warn(f"{url}: {text}"), lambda: self._closed)
            except RcloneError as error:
                if not left or self._closed:
                    raise
                self._warn(f"{url} could not be copied here: {error}; it is tried again")
            else:
                return

    def renew(self, number: int, keys: BucketKeys) -> None:
        """Use new keys from now on, or from when the bucket is mounted or copied, which takes a while."""
        with self._lock:
            server = self._servers.get(number)
            if server is None:
                self._renewed[number] = keys
        if server is not None:
            server.renew(keys)

    def _serve(self, number: int, bucket: Bucket, target: str) -> Rclone:
        server = Rclone(f"{self._folder}/{number}", bucket, target)
        with self._lock:
            self._servers[number] = server
            keys = self._renewed.pop(number, None)
        if keys is not None:
            server.renew(keys)
        return server

    def close(self) -> None:
        """End all servers."""
        self._closed = True
        for writer in list(self._writers.values()):
            writer.close()
        for mount in list(self._mounts.values()):
            mount.close()
        for server in list(self._servers.values()):
            server.close()


def _check_place(target: str) -> None:
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "it exists already", target)


def _protect(folder: str) -> None:
    """Keep tasks from writing, by permissions."""
    for here, _, names in os.walk(folder, topdown=False):
        for name in names:
            Path(here, name).chmod(0o444)
        Path(here).chmod(0o555)
