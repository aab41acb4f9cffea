"""The driver's side of S3 volumes: checks them before machines are rented, and makes keys for nodes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

from skyward.core.errors import AuthFailed, CloudError, ConfigError, ProvisioningError
from skyward.core.protocol.buckets import Bucket, BucketKeys
from skyward.core.volumes import S3Volume
from skyward.providers.drivers.s3 import S3Account, S3Error, S3Keys, policy

__all__ = ["S3Store", "rclone_provider"]

_T = TypeVar("_T")

_LIFETIME = 3600  # seconds; the maximum for a role that is assumed with another role
_ABSENT = ("404", "NoSuchBucket")
_DENIED = ("403", "AccessDenied", "AllAccessDisabled")
_WRONG_KEYS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidClientTokenId", "ExpiredToken", "InvalidToken")


class S3Store:
    """The bucket that a volume refers to, at its store.

    Parameters
    ----------
    volume
        The volume.
    """

    def __init__(self, volume: S3Volume) -> None:
        self._volume = volume
        self._region = volume.region or "us-east-1"

    def __repr__(self) -> str:
        return f"<S3Store {self._volume.url}>"

    def check(self) -> Bucket:
        """Find out whether nodes will be able to use it, with the keys that they get. Blocks.

        Raises
        ------
        ConfigError
            There is no such bucket or folder, the region is wrong, or credentials have to be given.
        AuthFailed
            The credentials are wrong, or don't suffice.
        CloudError
            The store does not answer.
        """
        volume = self._volume
        own = self._account(self._given)
        endpoint = self._ask(lambda: own.endpoint)
        self._find_region(own)
        keys = self.keys()
        account = own if keys.kind == "instance" else self._account(_plain(keys))
        files, size = self._ask(lambda: account.measure(volume.bucket, volume.prefix))
        if volume.read_only and not files:
            raise ConfigError(
                f"S3Volume: {volume.url} is empty; prefix= names a folder of the bucket, not the beginning of a name"
            )
        if not volume.read_only and keys.kind != "instance":
            key = f"{volume.prefix}.skyward-{os.urandom(4).hex()}"
            self._ask(lambda: account.try_writing(volume.bucket, key))
        settings = {"provider": rclone_provider(endpoint), "region": self._region}
        if endpoint:
            settings["endpoint"] = endpoint
        return Bucket(volume.url, f"{volume.bucket}/{volume.prefix}".rstrip("/"), settings, keys, files, size)

    def keys(self) -> BucketKeys:
        """Return the keys for nodes; call this again halfway through their lifetime. Blocks.

        Raises
        ------
        ConfigError, AuthFailed, CloudError
            As for `check`.
        """
        volume = self._volume
        if volume.anonymous:
            return BucketKeys("none")
        if volume.instance_profile:
            return BucketKeys("instance")
        if volume.access_key and volume.secret_key:
            return BucketKeys("keys", volume.access_key, volume.secret_key, volume.session_token or "")
        if volume.endpoint is not None:
            raise ConfigError(
                f"S3Volume: nodes need keys for {volume.endpoint}, and this machine's own never leave it: pass "
                "access_key= and secret_key= that are valid for this bucket, or anonymous=True"
            )
        own = self._account(None)
        if volume.role is None and self._ask(lambda: own.is_temporary):
            raise AuthFailed(
                f"{volume.url}: this machine's AWS credentials are temporary, and AWS can't derive narrower ones "
                "from those for nodes. Pass role= (the ARN of a role that you may assume), or access_key= and "
                "secret_key=, or instance_profile=True"
            )
        rights = policy(volume.bucket, volume.prefix, self._region, writable=not volume.read_only)
        made = self._ask(lambda: own.scoped(rights, _LIFETIME, volume.role))
        return BucketKeys("keys", made.access_key, made.secret_key, made.token or "", made.expires)

    @property
    def _given(self) -> S3Keys | None:
        volume = self._volume
        if volume.access_key is None or volume.secret_key is None:
            return None
        return S3Keys(volume.access_key, volume.secret_key, volume.session_token)

    def _account(self, keys: S3Keys | None) -> S3Account:
        volume = self._volume
        return S3Account(keys, self._region, volume.endpoint, volume.anonymous)

    def _find_region(self, own: S3Account) -> None:
        volume = self._volume
        region = self._ask(lambda: own.region_of(volume.bucket))
        if region is None or region == self._region:
            return
        if volume.region is not None:
            raise ConfigError(
                f"S3Volume: the bucket {volume.bucket!r} is in {region}, not in {volume.region}: "
                f"write region={region!r}, or leave it out"
            )
        self._region = region

    def _ask(self, ask: Callable[[], _T]) -> _T:
        try:
            return ask()
        except S3Error as error:
            raise self._explained(error) from error

    def _explained(self, error: S3Error) -> ProvisioningError | ConfigError:
        volume = self._volume
        if error.code in _ABSENT:
            return ConfigError(f"S3Volume: there is no bucket {volume.bucket!r} ({error})")
        if error.code in _DENIED:
            rights = "s3:ListBucket and s3:GetObject"
            if not volume.read_only:
                rights = f"{rights.replace(' and', ',')}, s3:PutObject and s3:AbortMultipartUpload"
            return AuthFailed(
                f"{volume.url}: access denied ({error}). The credentials need {rights} there and, unless you pass keys "
                "for nodes, sts:GetFederationToken (with role=: sts:AssumeRole)"
            )
        if error.code == "credentials":
            return AuthFailed(f"{volume.url}: {error}. Run 'aws configure', or pass access_key= and secret_key=")
        if error.code in _WRONG_KEYS:
            return AuthFailed(f"{volume.url}: the credentials are not accepted: {error}")
        return CloudError(f"{volume.url}: {error.code}: {error}")


def rclone_provider(endpoint: str | None) -> str:
    """Return rclone's name for a store, which selects its workarounds: Google's store changes a signed header."""
    if not endpoint:
        return "AWS"
    return "GCS" if urlsplit(endpoint).hostname == "storage.googleapis.com" else "Other"


def _plain(keys: BucketKeys) -> S3Keys | None:
    if keys.kind != "keys":
        return None
    return S3Keys(keys.access_key, keys.secret_key, keys.session_token or None, keys.expires)
