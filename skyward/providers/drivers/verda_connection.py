"""Requests to Verda's API for its libcloud driver: access tokens, replies and refusals. Knows only libcloud."""

# libcloud claims to be typed, but few of its functions are.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from libcloud.common.base import ConnectionUserAndKey
from libcloud.common.exceptions import RateLimitReachedError, exception_from_message
from libcloud.common.types import InvalidCredsError, MalformedResponseError

from .json_api import SHOWN, JSONReply, RefusedError

__all__ = [
    "VerdaAlreadyDiscontinuedError",
    "VerdaConnection",
    "VerdaError",
    "VerdaNoCapacityError",
    "VerdaNotFoundError",
    "VerdaResponse",
    "VerdaStillProvisioningError",
    "refusal",
    "segment",
]

_TOKEN = "/oauth2/token"  # noqa: S105 (a path)
_EARLY = 60.0  # seconds before it expires, a token is replaced
_ID = re.compile(r"[\w~-][\w.~-]*", re.ASCII)
_REFUSED_END = re.compile(r"discontinue an? (\w+) instance", re.IGNORECASE)
_UNKNOWN_ID = re.compile(r"invalid \w+ id\b", re.IGNORECASE)


class VerdaError(RefusedError):
    """Verda's API refused a request."""


class VerdaNotFoundError(VerdaError):
    """Nothing has this id, or it no longer exists."""


class VerdaNoCapacityError(VerdaError):
    """No instance of this type is available there now."""


class VerdaStillProvisioningError(VerdaError):
    """An instance can't be deleted while it is starting. It is billed; retry until the call is accepted."""


class VerdaAlreadyDiscontinuedError(VerdaError):
    """The instance is already deleted, or was evicted. Its volumes may still exist."""


class VerdaResponse(JSONReply):
    """A reply: JSON, a bare id as text, or nothing."""

    def parse_body(self) -> Any:
        """Parse the reply; None if it is empty."""
        if not self._text:
            return None
        try:
            return json.loads(self._text)
        except ValueError:
            if _ID.fullmatch(self._text):
                return self._text
            self._malformed()

    def parse_error(self) -> NoReturn:
        """Raise the error that the reply means."""
        try:
            reply = json.loads(self._text)
        except ValueError:
            reply = None
        if not isinstance(reply, dict):
            if self.status == 429:  # a proxy in front of the API limits rates too, with texts of its own
                raise refusal(self.status, None, self._text[:SHOWN], self.headers)
            self._malformed()
        message = reply.get("message") or self._text
        text = "; ".join(map(str, message)) if isinstance(message, list) else str(message)
        raise refusal(self.status, reply.get("code"), text, self.headers)

    def _malformed(self) -> NoReturn:
        kind = self.headers.get("content-type", "no content type")
        what = f"HTTP {self.status} with {kind} where Verda's API answers with JSON; is a proxy in between?"
        raise MalformedResponseError(what, body=self._text[:SHOWN])

    @property
    def _text(self) -> str:
        return self.body or ""


class VerdaConnection(ConnectionUserAndKey):
    """Requests with an access token, which is fetched when first needed, and renewed before it expires.

    A token that is refused early (it was revoked, or this machine slept and its clock with it) is replaced once. The
    refresh token is not used, since the client's secret does the same.

    Parameters
    ----------
    args, options
        As in libcloud's `ConnectionUserAndKey`; without a ``url`` with a path, the API's version is v1.
    """

    host = "api.verda.com"
    responseCls = VerdaResponse  # noqa: N815 (libcloud's name)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.request_path = self.request_path.rstrip("/") or "/v1"
        self._token: str | None = None
        self._usable_until = 0.0

    def add_default_headers(self, headers: dict[str, str]) -> dict[str, str]:
        """Add content type and access token."""
        headers["Accept"] = headers["Content-Type"] = "application/json"
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        return headers

    def request(self, action: str, *args: Any, **options: Any) -> Any:
        """Request with a valid token.

        Parameters
        ----------
        action
            The path.
        args, options
            As in libcloud's `Connection.request`.
        """
        if options.get("method", "GET") != "GET":
            # libcloud's optional retries would repeat a create whose reply was lost, and so buy twice.
            options["retry_failed"] = False
        fresh = self._token is None or time.monotonic() >= self._usable_until
        if fresh:
            self._fetch_token()
        try:
            return super().request(action, *args, **options)
        except InvalidCredsError:
            if fresh:
                raise
        self._fetch_token()
        return super().request(action, *args, **options)

    def _fetch_token(self) -> None:
        self._token = None
        asked = {"grant_type": "client_credentials", "client_id": self.user_id, "client_secret": self.key}
        now = time.monotonic()
        try:
            got = super().request(_TOKEN, method="POST", data=json.dumps(asked), retry_failed=False).object
        except VerdaError as error:
            if error.code not in {400, 403}:
                raise
            raise InvalidCredsError(f"Verda refuses this client id and secret: {error}") from error
        try:
            token, lasts = str(got["access_token"]), float(got["expires_in"])
        except (LookupError, TypeError, ValueError) as error:
            what = "the reply to a request for an access token holds none"
            raise MalformedResponseError(what) from error
        self._token, self._usable_until = token, now + lasts - min(_EARLY, lasts / 2)


def refusal(status: int, code: str | None, message: str, headers: Mapping[str, str]) -> Exception:
    """Make the exception for a refusal. The API has few codes, so only its texts say what was refused.

    Parameters
    ----------
    status, headers
        Of the HTTP reply.
    code, message
        The API's own; `code` is None if it sent none.
    """
    if status == 401:
        return InvalidCredsError(f"Verda refuses the credentials: {message}")
    if status == 429:
        return _rate_limit(message, headers)
    kind = VerdaError
    refused = _REFUSED_END.search(message)
    if refused:
        gone = refused[1].lower() == "discontinued"
        kind = VerdaAlreadyDiscontinuedError if gone else VerdaStillProvisioningError
    elif status == 404 or (status == 400 and _UNKNOWN_ID.search(message)):
        kind = VerdaNotFoundError
    elif status == 503 and "capacity" in message.lower():
        kind = VerdaNoCapacityError
    return kind(status, message, headers, code)


def _rate_limit(message: str, headers: Mapping[str, str]) -> RateLimitReachedError:
    """Make libcloud's error with its `retry_after` (seconds; 0 if absent), which fails on odd header values."""
    try:
        error: RateLimitReachedError = exception_from_message(429, message, dict(headers))
    except ValueError:
        error = RateLimitReachedError()
    error.message = message or error.message
    return error


def segment(id: str | None) -> str:
    """Check an id before it goes into a path: an empty or odd one would reach another resource."""
    if id is None or not _ID.fullmatch(id):
        raise ValueError(f"{id!r} is not an id of Verda's: letters, digits, '.', '_', '~' and '-'")
    return id
