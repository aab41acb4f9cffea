"""Who may see a page that shows arguments, output and prices on a machine that others may use too. Pure.

The server listens on 127.0.0.1 only, but every program and every user of this machine can reach that, and so can any
web page in a browser on it. Therefore: the link carries a token that can't be guessed, which a cookie replaces after
the first visit; the Host header must name this machine, or a site could point its own name at our address; and requests
caused by other sites get nothing but the page itself.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from enum import Enum
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

__all__ = ["HEADERS", "TOKEN", "Admission", "Gate"]

TOKEN = "token"  # noqa: S105 - the name of the parameter
_HOSTS = {"127.0.0.1", "localhost", "[::1]"}
_OTHERS = {"cross-site", "same-site"}  # a page on another port of this machine is of the same site

HEADERS = {
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""Headers of every response."""


class Admission(Enum):
    """What to do with a request."""

    ADMIT = "admit"
    GREET = "greet"
    """Give the browser its cookie, and send it to the address without the token."""
    NOT_KNOWN = "The link of this page carries a token, which is missing or wrong: use the link that the pool printed."
    WRONG_HOST = "This page answers on 127.0.0.1 and localhost only."
    OTHER_SITE = "This request comes from another site."


class Gate:
    """Decides about requests.

    Parameters
    ----------
    token
        The secret.
    port
        The server's port, which distinguishes the cookies of several pools.
    """

    def __init__(self, token: str, port: int) -> None:
        self._token = token.encode()
        self._cookie = f"skyward-{port}"

    def __repr__(self) -> str:
        return f"<Gate {self._cookie}>"

    def judge(self, path: str, query: str, headers: Mapping[str, str]) -> Admission:
        """Decide about one request.

        Parameters
        ----------
        path, query
            What is requested; ``query`` without the question mark.
        headers
            Those of the request, with names in lower case.
        """
        if _host(headers.get("host", "")) not in _HOSTS:
            return Admission.WRONG_HOST
        if path != "/" and headers.get("sec-fetch-site") in _OTHERS:
            return Admission.OTHER_SITE
        given = parse_qs(query).get(TOKEN, [""])[0]
        if given and path == "/" and self._is_right(given):
            return Admission.GREET
        return Admission.ADMIT if self._is_right(self._kept(headers.get("cookie", ""))) else Admission.NOT_KNOWN

    @property
    def cookie(self) -> str:
        """The header that makes a browser keep the token, until it is closed.

        Not ``SameSite=Strict``: that is not sent after a click on a link elsewhere, such as in a notebook.
        """
        return f"{self._cookie}={self._token.decode()}; Path=/; HttpOnly; SameSite=Lax"

    def _is_right(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(errors="replace"), self._token)

    def _kept(self, header: str) -> str:
        try:
            kept = SimpleCookie(header).get(self._cookie)
        except CookieError:
            return ""
        return "" if kept is None else kept.value


def _host(header: str) -> str:
    """The name without the port, which differs where a tunnel leads here."""
    name, colon, port = header.rpartition(":")
    return name.lower() if colon and port.isdecimal() else header.lower()
