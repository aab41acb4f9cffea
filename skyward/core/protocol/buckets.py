"""What a node needs to know to bring a bucket's content to its tasks, and the keys for it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace

import msgpack

__all__ = ["Bucket", "BucketKeys"]


@dataclass(frozen=True, slots=True)
class BucketKeys:
    """Credentials of a bucket; never shows its secrets.

    Attributes
    ----------
    kind
        ``"keys"``, which follow; ``"instance"`` for those of the node's machine; or ``"none"``.
    access_key, secret_key, session_token
        The keys; empty strings for none.
    expires
        When they expire, in seconds since 1970; None if they don't.
    """

    kind: str
    access_key: str = field(default="", repr=False)
    secret_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    expires: float | None = None

    def left(self, now: float) -> float:
        """Seconds until they expire; infinite if they don't."""
        return math.inf if self.expires is None else self.expires - now

    def pack(self) -> bytes:
        """Return it as bytes."""
        packed: bytes = msgpack.packb(asdict(self))
        return packed

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> BucketKeys:
        """Read what `pack` returned."""
        return cls(**msgpack.unpackb(data))


@dataclass(frozen=True, slots=True)
class Bucket:
    """A folder of a bucket.

    Attributes
    ----------
    url
        Its name, for messages.
    folder
        Bucket and prefix, as in ``"bucket/datasets"``.
    settings
        How rclone reaches it: the settings of its backend, apart from credentials.
    keys
        The credentials.
    files, size
        How many objects there are, and their bytes, when the pool began.
    """

    url: str
    folder: str
    settings: dict[str, str]
    keys: BucketKeys
    files: int
    size: int

    def with_keys(self, keys: BucketKeys) -> Bucket:
        """Return it with other keys."""
        return replace(self, keys=keys)

    def pack(self) -> bytes:
        """Return it as bytes."""
        packed: bytes = msgpack.packb(asdict(self))
        return packed

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> Bucket:
        """Read what `pack` returned.

        Raises
        ------
        ValueError
            These are not the bytes of a bucket.
        """
        try:
            values = msgpack.unpackb(data)
            return cls(**{**values, "keys": BucketKeys(**values["keys"])})
        except (TypeError, KeyError, msgpack.UnpackException) as error:
            raise ValueError(f"not a bucket: {error}") from error
