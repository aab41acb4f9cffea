"""Requests to Vast.ai's API for its libcloud driver: replies, errors, and the pace of an account."""

# libcloud claims to be typed, but few of its functions are.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn
from urllib.parse import urlsplit

from libcloud.common.base import ConnectionKey
from libcloud.common.exceptions import RateLimitReachedError
from libcloud.common.types import InvalidCredsError, MalformedResponseError

from .json_api import SHOWN, JSONReply, RefusedError

__all__ = [
    "Pace",
    "VastAIConnection",
    "VastAIError",
    "VastAILeftoverError",
    "VastAINotFoundError",
    "VastAIOfferGoneError",
    "VastAIRateLimitError",
    "VastAIResponse",
]

_MAX_WAIT = 60.0  # seconds, as in the vendor's own client; terminating machines would have to wait as well


class VastAIError(RefusedError):
    """Vast.ai's API refused a request."""


class VastAIOfferGoneError(VastAIError):
    """The offer no longer exists: somebody else has rented it, or it was withdrawn. Use another one."""


class VastAINotFoundError(VastAIError):
    """No instance has this id, or it no longer exists."""


class VastAILeftoverError(VastAIError):
    """Creating failed and left an instance behind, whose storage is billed until it is destroyed.

    Parameters
    ----------
    code, message, headers, error_code
        As in `VastAIError`.
    contract_id
        Id of that instance.
    """

    def __init__(
        self,
        code: int,
        message: str,
        headers: Mapping[str, str] | None = None,
        error_code: str | None = None,
        *,
        contract_id: str,
    ) -> None:
        super().__init__(code, f"{message} (it left instance {contract_id} behind: destroy it)", headers, error_code)
        self.contract_id = contract_id


class VastAIRateLimitError(RateLimitReachedError):
    """Too many calls.

    Parameters
    ----------
    message, headers
        The API's text, and the headers of the reply.
    error_code
        The API's own code or None; "search_quota_exceeded" is a daily quota, which resets at midnight UTC.

    Attributes
    ----------
    retry_after
        Seconds that the API asks to wait, at most a minute; 0 if it does not say, which is usual.
    """

    def __init__(self, message: str, headers: Mapping[str, str], error_code: str | None) -> None:
        super().__init__()
        self.args = (message,)
        self.message = message
        self.headers = headers
        self.error_code = error_code
        try:
            self.retry_after = min(max(0.0, float(headers.get("retry-after", 0))), _MAX_WAIT)
        except ValueError:  # a date, which the vendor's own client ignores as well
            self.retry_after = 0.0


class VastAIResponse(JSONReply):
    """A reply, which is a value or raises an error."""

    def parse_body(self) -> Any:
        """Parse the body; some refusals have status 200 and ``success: false``."""
        reply = self._json()
        if isinstance(reply, dict) and reply.get("success") is False:
            self._refuse(reply)
        return reply

    def parse_error(self) -> NoReturn:
        """Raise the error that status and body mean."""
        if self.status in (401, 429):  # often plain text, which must not be taken for a proxy's page
            self._refuse(self._json_or_text())
        body = str(self.body)
        if body.startswith("<") or "text/html" in self.headers.get("content-type", ""):
            self._malformed(f"an HTML page, status {self.status}")
        self._refuse(self._json_or_text())

    def _json(self) -> Any:
        try:
            return json.loads(str(self.body))
        except ValueError:
            self._malformed("not JSON")

    def _json_or_text(self) -> dict[str, Any]:
        try:
            reply = json.loads(str(self.body))
        except ValueError:
            reply = self.body
        return reply if isinstance(reply, dict) else {"msg": str(reply)[:SHOWN] or self.error}

    def _refuse(self, reply: dict[str, Any]) -> NoReturn:
        word = reply.get("error")
        word = word if isinstance(word, str) and word else None
        said = str(reply.get("msg") or reply.get("message") or word or "no reason given")
        message = f"{self._where()}: {said}"
        contract = reply.get("new_contract")
        if self.status == 401:
            raise InvalidCredsError(
                f"{message} (the API key is unknown, was deleted or lacks a permission)", self._driver
            )
        if self.status == 429:
            raise VastAIRateLimitError(message, self.headers, word)
        if contract:
            raise VastAILeftoverError(self.status, message, self.headers, word, contract_id=str(contract))
        # The code for an offer that is gone is "invalid_args", as for any wrong argument; only the message differs.
        kinds = {"no_such_ask": VastAIOfferGoneError, "no_such_instance": VastAINotFoundError}
        for mark, kind in kinds.items():
            if word == mark or mark in said:
                raise kind(self.status, message, self.headers, mark)
        raise VastAIError(self.status, message, self.headers, word)

    def _malformed(self, what: str) -> NoReturn:
        raise MalformedResponseError(f"{self._where()}: the reply is {what}", str(self.body)[:SHOWN], self._driver)

    def _where(self) -> str:
        """Return method and path, without the query, which may contain a key."""
        return f"{self.request.method} {urlsplit(str(self.request.url)).path}"

    @property
    def _driver(self) -> Any:
        return self.connection.driver if self.connection is not None else None


class VastAIConnection(ConnectionKey):
    """HTTPS with the API key in a header."""

    host = "console.vast.ai"
    responseCls = VastAIResponse  # noqa: N815 (libcloud's name)

    def add_default_headers(self, headers: dict[str, str]) -> dict[str, str]:
        """Add the key."""
        return {
            **headers,
            "Authorization": f"Bearer {self.key}",
            "Content-Type": "application/json",
            "Accept": "application/json",
        }


class Pace:
    """Spaces calls of one kind, from whatever thread; served in the order in which they arrive."""

    _all: ClassVar[dict[tuple[str, ...], Pace]] = {}
    _all_lock = threading.Lock()  # guards the table, which drivers of several threads use

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the time of the next call
        self._next = 0.0

    @classmethod
    def of(cls, *what: str) -> Pace:
        """Return the pace that this process shares, by address, kind of call, and whose calls count together."""
        with cls._all_lock:
            return cls._all.setdefault(what, cls())

    def wait(self, interval: float) -> None:
        """Reserve the next free time slot, and sleep until then."""
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + interval
        if start > now:
            time.sleep(start - now)

    def postpone(self, seconds: float) -> None:
        """Delay all calls from now on by this many seconds."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)
