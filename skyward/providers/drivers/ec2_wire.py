"""EC2's Query protocol: parameters, signed POST requests, replies, errors, without their meaning.

libcloud signs (version 4, which works in all regions) and sends; its own parsing of errors drops AWS's code, which is
the only part of an error that a program should rely on.
"""

from __future__ import annotations

import contextlib
import urllib.parse
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from libcloud.common.types import InvalidCredsError, LibcloudError, MalformedResponseError
from libcloud.compute.drivers.ec2 import EC2Connection, EC2Response

__all__ = [
    "EC2ClockSkewError",
    "EC2CredentialsError",
    "EC2Error",
    "EC2InUseError",
    "QueryConnection",
    "STSConnection",
    "flatten",
    "request",
]

_CREDENTIALS = frozenset(
    {
        "AuthFailure",
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidClientTokenId",
        "InvalidSecurity",
        "InvalidToken",
        "MissingAuthenticationToken",
        "OptInRequired",
        "RequestExpired",  # also for session tokens that have expired
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
_CLOCK = frozenset({"RequestTimeTooSkewed", "RequestInTheFuture"})
_IN_USE = frozenset({"DependencyViolation", "InvalidGroup.InUse", "ResourceInUse", "VolumeInUse"})
_TOLERANCE = 240.0  # seconds; AWS refuses signatures that are five minutes off
_SHOWN = 500  # characters of a foreign body in a message, at most


class EC2Error(LibcloudError):
    """AWS refused a call.

    Parameters
    ----------
    code
        AWS's own, such as "InsufficientInstanceCapacity"; the message is for humans and may change.
    status
        The HTTP status.
    message, action, request_id
        AWS's message, the call, and the id that AWS support asks for.

    Attributes
    ----------
    region
        Where, if known.
    """

    region = ""

    def __init__(self, code: str, message: str, status: int, action: str = "", request_id: str = "") -> None:
        self.code = code
        self.message = message
        self.status = status
        self.action = action
        self.request_id = request_id
        super().__init__(f"{code}: {message}")

    def __str__(self) -> str:
        call = f"{self.action} in {self.region}" if self.region else self.action
        where = f" [{call}, HTTP {self.status}, request {self.request_id or 'unknown'}]"
        return f"{self.code}: {self.message}{where}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.code} of {self.action}, HTTP {self.status}>"


class EC2CredentialsError(EC2Error, InvalidCredsError):
    """The credentials are unknown, wrong or expired, or the account may not use EC2."""


class EC2ClockSkewError(EC2Error):
    """This machine's clock is too far from AWS's; the credentials may be right."""


class EC2InUseError(EC2Error):
    """What should be deleted is still in use; retry when the user is gone."""


class QueryResponse(EC2Response):
    """A reply; errors keep AWS's code."""

    def success(self) -> bool:
        """Whether the call succeeded."""
        return bool(self.status == 200)

    def parse_body(self) -> Any:
        """Parse a reply; a proxy's page may be XML too, so the root's name is checked."""
        root = self._root()
        if not root.tag.endswith("Response"):
            raise self._malformed()
        return root

    def parse_error(self) -> str:
        """Raise the error that the reply contains."""
        root = self._root()
        # EC2 has Response/Errors/Error, other services ErrorResponse/Error with a namespace.
        error = next((element for element in root.iter() if _local(element.tag) == "Error"), None)
        if error is None:
            raise self._malformed()
        fields = {_local(child.tag): (child.text or "").strip() for child in error}
        request = next((e.text for e in root.iter() if _local(e.tag) in {"RequestID", "RequestId"}), None)
        raise _error(fields.get("Code", ""), fields.get("Message", ""), self, request or "")

    def _root(self) -> Any:
        try:
            return ET.fromstring(self.body or "")  # noqa: S314 (from AWS over TLS; expat bounds what entities may grow to)
        except (ET.ParseError, ValueError) as error:
            raise self._malformed() from error

    def _malformed(self) -> MalformedResponseError:
        kind = self.headers.get("content-type")
        what = f"Not a reply of EC2, but of something in between (HTTP {self.status}, {kind})"
        connection: Any = self.connection
        return MalformedResponseError(what, body=str(self.body)[:_SHOWN], driver=connection.driver)


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def _error(code: str, message: str, response: Any, request_id: str) -> EC2Error:
    """Make an error of the class that fits its code."""
    action = response.connection.context.get("action", "")
    skew = _skew(response.headers.get("date"))
    kind: type[EC2Error] = EC2Error
    if code in _IN_USE:
        kind = EC2InUseError
    elif code in _CLOCK or (code == "SignatureDoesNotMatch" and _is_about_time(message)):
        kind = EC2ClockSkewError
    elif code in _CREDENTIALS:
        # EC2 answers a signature from a wrong clock like wrong keys; its own clock tells them apart.
        kind = EC2ClockSkewError if skew is not None and abs(skew) > _TOLERANCE else EC2CredentialsError
    error = kind(code, message, int(response.status), action, request_id)
    error.region = str(getattr(response.connection.driver, "region_name", ""))
    return error


def _is_about_time(message: str) -> bool:
    return "not yet current" in message or "Signature expired" in message


def _skew(date: str | None) -> float | None:
    """Return the seconds by which this machine's clock is ahead of a Date header."""
    with contextlib.suppress(TypeError, ValueError):
        theirs = parsedate_to_datetime(date or "")
        theirs = theirs if theirs.tzinfo is not None else theirs.replace(tzinfo=UTC)
        return (datetime.now(UTC) - theirs).total_seconds()
    return None


class QueryConnection(EC2Connection):
    """A connection to EC2."""

    responseCls = QueryResponse  # noqa: N815 (libcloud's name)


class STSConnection(QueryConnection):
    """A connection to STS, which knows whose credentials these are."""

    service_name = "sts"
    version = "2011-06-15"


def request(connection: Any, action: str, parameters: Mapping[str, Any]) -> ET.Element:
    """Call AWS, and return the reply's root without namespaces.

    Always a POST: user data makes URLs that proxies refuse, and URLs end up in logs.

    Parameters
    ----------
    connection
        A `QueryConnection`.
    action, parameters
        The call; parameters may be nested.
    """
    fields = {"Action": action, "Version": connection.version, **flatten(parameters)}
    connection.set_context({"action": action})
    headers = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
    response = connection.request("/", method="POST", data=urllib.parse.urlencode(fields), headers=headers)
    root: ET.Element = response.object
    for element in root.iter():
        element.tag = _local(element.tag)
    return root


def flatten(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Encode nested parameters for the Query protocol: lists count from 1, None is left out.

    >>> flatten({"Filter": [{"Name": "vpc-id", "Value": ["vpc-1"]}], "DryRun": False, "SubnetId": None})
    {'Filter.1.Name': 'vpc-id', 'Filter.1.Value.1': 'vpc-1', 'DryRun': 'false'}
    """
    return dict(_flat("", parameters))


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if value is None:
        return
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}" if name else str(key), inner)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for number, inner in enumerate(value, 1):
            yield from _flat(f"{name}.{number}", inner)
    else:
        yield name, str(value).lower() if isinstance(value, bool) else str(value)
