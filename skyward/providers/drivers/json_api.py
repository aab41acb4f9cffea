"""What JSON APIs of vendors have in common, for their libcloud drivers."""

# libcloud claims to be typed, but few of its functions are.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Mapping

from libcloud.common.base import JsonResponse
from libcloud.common.exceptions import BaseHTTPError

__all__ = ["SHOWN", "JSONReply", "RefusedError"]

SHOWN = 500
"""Characters of a foreign body in an error, at most."""


class RefusedError(BaseHTTPError):
    """The API refused a request.

    Parameters
    ----------
    code
        The HTTP status; 200 for a refusal that looks like a success.
    message, headers
        Its text, and the headers of the reply.
    error_code
        The API's own code, such as "invalid_request"; None if it sent none.
    """

    def __init__(
        self, code: int, message: str, headers: Mapping[str, str] | None = None, error_code: str | None = None
    ) -> None:
        super().__init__(code, message, headers)
        self.error_code = error_code

    def __str__(self) -> str:
        return f"{self.code} {self.error_code or 'error'}: {self.message}"


class JSONReply(JsonResponse):
    """A reply; any status from 200 to 299 is one of success."""

    def success(self) -> bool:
        """Whether the status is one of success; the body may still say otherwise."""
        return 200 <= self.status < 300
