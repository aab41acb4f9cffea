"""What can be mounted on nodes, as users describe it: checked when constructed."""

from __future__ import annotations

import os
import posixpath
import re
from dataclasses import dataclass, field
from pathlib import Path

from skyward.core.errors import ConfigError

__all__ = ["LocalVolume", "S3Volume", "Volume"]

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://([^/]*)/?(.*)")
_AZURE = ("az", "azure", "abfs", "abfss", "wasb", "wasbs")
_ORDER = "the mount comes first, then what is mounted there"


def _mount_point(value: object, kind: str) -> str:
    """Parse where a volume is mounted: in the tasks' working directory, or an absolute path."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise ConfigError(f"{kind}: {value!r} is not a mount point: {_ORDER}")
    path = posixpath.normpath(value)
    if path in (".", "/", "//") or path.split("/", 1)[0] in ("..", "~") or path.startswith("~"):
        raise ConfigError(
            f"{kind}: {value!r} is not a possible mount point: name a folder in the tasks' working directory, such as "
            '"data", or an absolute path, such as "/data"'
        )
    return path


def _refuse_url(value: object) -> None:
    """Reject the URL of an object store, and say what to write instead.

    Raises
    ------
    ConfigError
        `value` is such a URL.
    """
    match = _URL.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return
    scheme, bucket, prefix = match.groups()
    call = f'S3Volume("data", {bucket or "bucket"!r}, {prefix!r}'
    if scheme in ("s3", "s3a", "s3n"):
        raise ConfigError(f"{value!r} is a URL; bucket and prefix are two arguments. Write sky.{call})")
    if scheme in ("gs", "gcs"):
        raise ConfigError(
            f"{value!r}: Google's buckets are reached through their S3-compatible interface, with an HMAC key of a "
            f'service account. Write sky.{call}, endpoint="https://storage.googleapis.com", access_key=..., '
            "secret_key=...)"
        )
    if scheme in _AZURE or ".blob.core.windows.net" in bucket:
        raise ConfigError(
            f"{value!r}: Azure's storage has no S3 interface and can't be mounted. Copy the data to a folder here and "
            'use sky.LocalVolume("data", "./data"), or let tasks fetch it (adlfs) with a SAS from Image(env_from=...)'
        )
    raise ConfigError(f"{value!r} is not a volume; use sky.LocalVolume or sky.S3Volume")


@dataclass(frozen=True, slots=True)
class Volume:
    """Storage mounted at `path` on every node. Base class: use `LocalVolume` or `S3Volume`.

    Raises
    ------
    ConfigError
        `path` is the URL of a store.
    """

    path: str

    def __post_init__(self) -> None:
        _refuse_url(self.path)


@dataclass(frozen=True, slots=True)
class LocalVolume(Volume):
    """A folder of this machine, copied to every node before tasks run there.

    Parameters
    ----------
    path
        Where tasks find it: ``"data"`` is in their working directory, ``"/data"`` must not exist on the nodes yet.
    source
        The folder. Links in it must not lead out of it.
    read_only
        Whether file permissions keep tasks from writing. If not, what they write stays on its node and is removed when
        the pool ends; see `Compute.download`.

    Raises
    ------
    ConfigError
        There is no such folder, or it can't be mounted there.
    """

    source: str | os.PathLike[str]
    read_only: bool = True

    def __post_init__(self) -> None:
        if not all(isinstance(value, (str, os.PathLike)) for value in (self.path, self.source)):
            raise ConfigError(f"LocalVolume: ({self.path!r}, {self.source!r}) are not two paths: {_ORDER}")
        source, mount = os.fspath(self.source), os.fspath(self.path)
        if not Path(source).is_dir():
            if Path(mount).is_dir():
                raise ConfigError(
                    f"LocalVolume({mount!r}, {source!r}): {source!r} is not a folder here, but {mount!r} is: {_ORDER}. "
                    f"Write LocalVolume({source!r}, {mount!r})"
                )
            raise ConfigError(f"LocalVolume: {source!r} is not a folder of this machine ({os.path.abspath(source)})")
        object.__setattr__(self, "path", _mount_point(mount, "LocalVolume"))
        object.__setattr__(self, "source", os.path.abspath(source))


@dataclass(frozen=True, slots=True)
class S3Volume(Volume):
    """Objects of an S3 bucket, as files at `path` on every node; the bytes go from the bucket to the nodes directly.

    Parameters
    ----------
    path
        Where tasks find them: ``"data"`` is in their working directory, ``"/data"`` must not exist on the nodes yet.
    bucket
        Name of the bucket.
    prefix
        Folder of the bucket to use, such as ``"datasets/"``; ``""`` for the whole bucket.
    read_only
        Whether tasks are kept from writing. If not, what they write is in the bucket by the time they are reported
        done; see docs/howto/files.md.
    region
        The bucket's region. Default: AWS is asked; for other stores ``"us-east-1"``, which most of them expect.
    endpoint
        URL of an S3-compatible store. Default: what botocore's settings say (``AWS_ENDPOINT_URL_S3``), or AWS.
    access_key, secret_key, session_token
        Keys to give to the nodes. Default: nodes get short-lived keys that are valid for this bucket and prefix only,
        derived from the driver's credentials (see docs/howto/files.md), which themselves never leave this machine.
    role
        ARN of a role that these short-lived keys are derived from, instead of the driver's user.
    instance_profile
        Whether nodes use the instance profiles of their own machines.
    anonymous
        Whether nodes use no credentials at all, for public buckets.

    Raises
    ------
    ConfigError
        An argument is wrong, or two of them contradict each other.
    """

    bucket: str
    prefix: str = ""
    read_only: bool = True
    region: str | None = None
    endpoint: str | None = None
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    role: str | None = None
    instance_profile: bool = False
    anonymous: bool = False

    def __post_init__(self) -> None:
        if not all(isinstance(value, str) for value in (self.path, self.bucket, self.prefix)):
            raise ConfigError(
                f"S3Volume: ({self.path!r}, {self.bucket!r}, {self.prefix!r}) are not three strings: {_ORDER}"
            )
        self._check_order()
        for value in (self.path, self.bucket):
            _refuse_url(value)
        if not _BUCKET.fullmatch(self.bucket):
            raise ConfigError(
                f'S3Volume: {self.bucket!r} is not the name of a bucket; write S3Volume("/data", "bucket", "prefix/")'
            )
        object.__setattr__(self, "path", _mount_point(self.path, "S3Volume"))
        prefix = self.prefix.strip("/")
        if any(part in ("", ".", "..") for part in prefix.split("/")) and prefix:
            raise ConfigError(f"S3Volume: prefix={self.prefix!r} can't be a folder: it has an empty part, . or ..")
        object.__setattr__(self, "prefix", f"{prefix}/" if prefix else "")
        if self.endpoint is not None and not re.fullmatch(r"https?://[^/\s]+/?", self.endpoint):
            raise ConfigError(f'S3Volume: endpoint={self.endpoint!r} is not a URL such as "https://s3.example.org"')
        self._check_credentials()

    def _check_order(self) -> None:
        bucket, _, prefix = self.path.removeprefix("s3://").partition("/")
        if self.path.startswith("s3://") or (self.bucket.startswith("/") and "://" not in self.path):
            more = f", {(prefix or self.prefix)!r}" if prefix or self.prefix else ""
            raise ConfigError(
                f"S3Volume({self.path!r}, {self.bucket!r}): {self.bucket!r} is not the name of a bucket: {_ORDER}. "
                f"Write S3Volume({self.bucket!r}, {bucket!r}{more})"
            )
        if self.bucket.startswith("s3://"):
            bucket, _, prefix = self.bucket.removeprefix("s3://").partition("/")
            raise ConfigError(
                f"S3Volume: {self.bucket!r} is a URL; bucket and prefix are two arguments. "
                f"Write S3Volume({self.path!r}, {bucket!r}, {(prefix or self.prefix)!r})"
            )

    def _check_credentials(self) -> None:
        if (self.access_key is None) != (self.secret_key is None) or (self.session_token and not self.access_key):
            raise ConfigError("S3Volume: access_key and secret_key belong together, and a session_token to both")
        ways = {
            "access_key": self.access_key is not None,
            "role": self.role is not None,
            "instance_profile": self.instance_profile,
            "anonymous": self.anonymous,
        }
        if sum(ways.values()) > 1:
            raise ConfigError(f"S3Volume: {' and '.join(name for name in ways if ways[name])} exclude each other")

    @property
    def url(self) -> str:
        """The place in S3, for messages."""
        return f"s3://{self.bucket}/{self.prefix}"
