"""What can be mounted on nodes, as users describe it: checked when constructed."""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass
from pathlib import Path

from skyward.core.errors import ConfigError

__all__ = ["LocalVolume", "S3Volume", "Volume"]

_ORDER = "the mount comes first, then what is mounted there"


def _mount_point(value: object, kind: str) -> str:
    """Parse where a volume is mounted: in the tasks' working directory, or an absolute path."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise ConfigError(f"{kind}: {value!r} is not where to mount it: {_ORDER}")
    path = posixpath.normpath(value)
    if path in (".", "/", "//") or path.split("/", 1)[0] in ("..", "~") or path.startswith("~"):
        raise ConfigError(
            f"{kind}: {value!r} is no place for it: name a folder in the tasks' working directory, such as "
            '"data", or an absolute path, such as "/data"'
        )
    return path


@dataclass(frozen=True, slots=True)
class Volume:
    """Storage mounted at `path` on every node; see `LocalVolume`."""

    path: str


@dataclass(frozen=True, slots=True)
class LocalVolume(Volume):
    """A folder of this machine, copied to every node before tasks run there.

    Parameters
    ----------
    path
        Where tasks find it: ``"data"`` lies in their working directory, ``"/data"`` must not exist on the nodes yet.
    source
        The folder. Links in it must not lead out of it.
    read_only
        Whether tasks are kept from writing, by permissions. What they write otherwise stays on its node and is removed
        when the pool ends; see `Compute.download`.

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
    """Objects of an S3 bucket, mounted as files at `path` on every node.

    Not supported yet: a pool that is given one raises `ConfigError`.

    Parameters
    ----------
    path
        Mount point on the nodes, such as ``"/data"``.
    bucket
        Name of the bucket.
    prefix
        Mount only objects whose keys start with it.
    read_only
        Whether tasks are kept from writing.
    """

    bucket: str
    prefix: str = ""
    read_only: bool = True

    def __post_init__(self) -> None:
        if self.bucket.startswith("/"):
            raise ConfigError(
                f"S3Volume({self.path!r}, {self.bucket!r}): {self.bucket!r} is not the name of a bucket: {_ORDER}. "
                f"Write S3Volume({self.bucket!r}, {self.path!r})"
            )
