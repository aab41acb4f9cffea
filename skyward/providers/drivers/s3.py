"""S3 and STS as far as a volume needs them, over botocore: what is in a bucket, and keys that are valid for it only."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any

__all__ = ["S3Account", "S3Error", "S3Keys", "policy"]

_ATTEMPTS, _CONNECT, _READ = 3, 10, 30  # of a request; seconds
_AWS_DOMAINS = (".amazonaws.com", ".amazonaws.com.cn")


class S3Error(Exception):
    """A request failed.

    Attributes
    ----------
    code
        S3's or STS' own, such as ``"AccessDenied"``; ``"unreachable"`` or ``"credentials"`` if there was no answer.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class S3Keys:
    """Credentials; never shows its secrets. `expires` is in seconds since 1970."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)
    expires: float | None = None


class S3Account:
    """Makes requests with some credentials.

    Parameters
    ----------
    keys
        The credentials; None for the driver's own, as AWS's own tools find them.
    region
        Where to ask; None for the configured region.
    endpoint
        URL of the store; None for what is configured, or AWS.
    anonymous
        Whether to ask without credentials.
    """

    def __init__(
        self,
        keys: S3Keys | None = None,
        region: str | None = None,
        endpoint: str | None = None,
        anonymous: bool = False,
    ) -> None:
        self._keys, self._endpoint, self._anonymous = keys, endpoint, anonymous
        from botocore import session  # noqa: PLC0415 - see aws_credentials

        self._session: Any = session.Session()
        configured = os.environ.get("AWS_REGION") or self._session.get_config_variable("region")
        self._region = region or configured or "us-east-1"

    def __repr__(self) -> str:
        return f"<S3Account at {self._endpoint or 'AWS'}, {self._region}>"

    def _client(self, service: str) -> Any:
        from botocore import UNSIGNED, config  # noqa: PLC0415 - see aws_credentials

        options: dict[str, Any] = {
            "connect_timeout": _CONNECT, "read_timeout": _READ, "retries": {"total_max_attempts": _ATTEMPTS}
        }  # fmt: skip
        if self._anonymous:
            options["signature_version"] = UNSIGNED
        if self._endpoint is not None:
            options["s3"] = {"addressing_style": "path"}
        keys = self._keys
        return self._session.create_client(
            service,
            region_name=self._region,
            endpoint_url=self._endpoint,
            config=config.Config(**options),
            aws_access_key_id=keys and keys.access_key,
            aws_secret_access_key=keys and keys.secret_key,
            aws_session_token=keys and keys.token,
        )

    def _call(self, service: str, method: str, **arguments: Any) -> Any:
        from botocore import exceptions  # noqa: PLC0415 - see aws_credentials

        try:
            return getattr(self._client(service), method)(**arguments)
        except exceptions.ClientError as error:
            said = error.response.get("Error", {})
            raise S3Error(str(said.get("Code")), str(said.get("Message") or error)) from error
        except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError) as error:
            raise S3Error("credentials", str(error)) from error
        except exceptions.BotoCoreError as error:
            raise S3Error("unreachable", str(error)) from error

    @property
    def endpoint(self) -> str | None:
        """URL of the store, if it is not AWS."""
        url: str = self._client("s3").meta.endpoint_url
        host = url.partition("://")[2].partition("/")[0].partition(":")[0]
        return None if host.endswith(_AWS_DOMAINS) else url

    def region_of(self, bucket: str) -> str | None:
        """Ask where a bucket is; None if its store does not say.

        Raises
        ------
        S3Error
            ``"404"``: there is no such bucket.
        """
        from botocore import exceptions  # noqa: PLC0415 - see aws_credentials

        try:
            reply = self._call("s3", "head_bucket", Bucket=bucket)
        except S3Error as error:
            cause = error.__cause__
            if error.code in ("403", "301", "400") and isinstance(cause, exceptions.ClientError):
                reply = cause.response  # whoever may not list all of it may still list a part
            else:
                raise
        region: str | None = reply["ResponseMetadata"].get("HTTPHeaders", {}).get("x-amz-bucket-region")
        return region

    def measure(self, bucket: str, prefix: str) -> tuple[int, int]:
        """Return how many objects there are whose keys start with a prefix, and their bytes."""
        count = size = 0
        more: dict[str, str] = {}
        while True:
            reply = self._call("s3", "list_objects_v2", Bucket=bucket, Prefix=prefix, **more)
            for entry in reply.get("Contents", ()):
                if not entry["Key"].endswith("/"):  # what consoles make for an empty folder
                    count, size = count + 1, size + entry["Size"]
            if not reply.get("IsTruncated"):
                return count, size
            more = {"ContinuationToken": reply["NextContinuationToken"]}

    def try_writing(self, bucket: str, key: str) -> None:
        """Start writing an object and abort: checks the permission, and nothing ever becomes visible."""
        upload = self._call("s3", "create_multipart_upload", Bucket=bucket, Key=key)
        self._call("s3", "abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload["UploadId"])

    @property
    def is_temporary(self) -> bool:
        """Whether its credentials are temporary, as those of single sign-on and roles are."""
        found = self._session.get_credentials()
        return found is not None and found.get_frozen_credentials().token is not None

    def scoped(self, rights: str, seconds: int, role: str | None) -> S3Keys:
        """Make temporary keys that may do no more than a policy allows.

        Parameters
        ----------
        rights
            The policy.
        seconds
            How long they last.
        role
            Whose rights they are limited to; None for those of the user.
        """
        name = "skyward-volume"
        if role is not None:
            reply = self._call(
                "sts", "assume_role", RoleArn=role, RoleSessionName=name, Policy=rights, DurationSeconds=seconds
            )
        else:
            reply = self._call("sts", "get_federation_token", Name=name, Policy=rights, DurationSeconds=seconds)
        made = reply["Credentials"]
        return S3Keys(
            made["AccessKeyId"], made["SecretAccessKey"], made["SessionToken"], made["Expiration"].timestamp()
        )


def policy(bucket: str, prefix: str, region: str, *, writable: bool) -> str:
    """Write the policy that allows a folder of a bucket, and nothing else.

    Parameters
    ----------
    bucket, prefix
        The folder.
    region
        The bucket's.
    writable
        Whether it may be written.
    """
    partition = "aws-cn" if region.startswith("cn-") else "aws-us-gov" if region.startswith("us-gov-") else "aws"
    place = f"arn:{partition}:s3:::{bucket}"
    listing: dict[str, Any] = {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": place}
    if prefix:
        listing["Condition"] = {"StringLike": {"s3:prefix": [f"{prefix}*"]}}
    objects, keys = ["s3:GetObject"], ["kms:Decrypt"]
    if writable:
        objects += ["s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
        keys += ["kms:GenerateDataKey"]
    through_s3 = {"StringLike": {"kms:ViaService": "s3.*.amazonaws.com"}}  # of buckets encrypted with keys of KMS
    statements = [
        listing,
        {"Effect": "Allow", "Action": objects, "Resource": f"{place}/{prefix}*"},
        {"Effect": "Allow", "Action": keys, "Resource": "*", "Condition": through_s3},
    ]
    return json.dumps({"Version": "2012-10-17", "Statement": statements}, separators=(",", ":"))
