"""The front of AWS: signatures, the errors that any call may meet, and moto for what a service does not do itself."""

from __future__ import annotations

import secrets
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import ClassVar
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

import flask

from .cloud import Cloud
from .machines import Machines
from .sigv4 import age, parse

__all__ = ["AWS", "Call", "Refusal", "hexadecimal"]

_CLOCK_TOLERANCE = 300.0


@dataclass
class Refusal(Exception):
    """What AWS answers instead of doing what was asked."""

    status: int
    code: str
    message: str


@dataclass(frozen=True)
class Call:
    """A request: to which service and region, what, and with which parameters."""

    service: str
    region: str
    action: str
    fields: Mapping[str, str]


class AWS(Cloud):
    """All services at one address, told apart by the signature, for one account. One at a time in a process.

    Attributes
    ----------
    access_key, secret_key
        The account's long-term credentials.
    temporary
        Further access keys -> (secret, session token).
    moto
        What answers where no handler does.
    down
        Regions whose service is not available.
    policy
        What the account, or the role, may not do: the refusal of a call, or None.
    """

    access_key: ClassVar[str] = "AKIAIOSFODNN7LABLAB1"
    secret_key: ClassVar[str] = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYLABLABKEY1"
    _only: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, machines: Machines | None = None) -> None:
        if not self._only.acquire(blocking=False):
            raise RuntimeError("moto keeps its state in its modules: close the other AWS of this process first")
        from .ec2_moto import Moto

        self.temporary: dict[str, tuple[str, str]] = {}
        self.moto = Moto()
        self.down: set[str] = set()
        self.policy: Callable[[Call], Refusal | None] = lambda _: None
        super().__init__(machines)

    def routes(self) -> None:
        """All at the root."""
        self.app.add_url_rule("/", view_func=self._answer, methods=["GET", "POST"])

    def handlers(self) -> Mapping[tuple[str, str], Callable[[Call], bytes]]:
        """(service, action) -> what answers it, with the lock held."""
        return {}

    def close(self) -> None:
        """Stop; another AWS may start."""
        super().close()
        self._only.release()

    def _answer(self) -> flask.Response:
        try:
            call = _read()
            if call.region in self.down:
                raise Refusal(503, "Unavailable", "The server is overloaded and can't handle the request.")
            self._fail_on_request()
            self._check_signature()
            if (refusal := self.policy(call)) is not None:
                raise refusal
            handler = self.handlers().get((call.service, call.action), self.moto_answers)
            with self.lock:  # moto is not made for several threads
                body = handler(call)
            if call.action == "RunInstances" and self.faults.take("lost_reply") is not None:
                self.lose_reply()
            return flask.Response(body, content_type="text/xml;charset=UTF-8")
        except Refusal as refusal:
            return self._refuse(refusal)

    def _fail_on_request(self) -> None:
        if self.faults.take("throttle") is not None:
            raise Refusal(503, "RequestLimitExceeded", "Request limit exceeded.")
        if self.faults.take("server_error") is not None:
            raise Refusal(500, "InternalError", "An internal error has occurred")
        if self.faults.take("html") is not None:
            raise Refusal(502, "html", "")
        if self.faults.take("token_expired") is not None:
            raise Refusal(400, "RequestExpired", "Request has expired.")
        if self.faults.take("bad_credentials") is not None:
            raise Refusal(401, "AuthFailure", "AWS was not able to validate the provided access credentials")

    def _check_signature(self) -> None:
        """Refuse as EC2 does, which tells nobody what is wrong with keys."""
        got = flask.request
        headers = {name.lower(): value for name, value in got.headers.items()}
        signature = parse(headers["authorization"])
        assert signature is not None
        secret, token = self.temporary.get(signature.key, (self.secret_key, ""))
        known = signature.key == self.access_key or signature.key in self.temporary
        fits = signature.fits(secret, got.method, got.path, got.query_string.decode(), headers, got.get_data())
        if not (known and fits and headers.get("x-amz-security-token", "") == token):
            raise Refusal(401, "AuthFailure", "AWS was not able to validate the provided access credentials")
        skew = self.faults.take("clock_skew")
        if abs(age(headers["x-amz-date"]) + (skew or {}).get("seconds", 0.0)) > _CLOCK_TOLERANCE:
            flask.g.ahead = (skew or {}).get("seconds", 0.0)
            raise Refusal(401, "AuthFailure", "AWS was not able to validate the provided access credentials")

    def _refuse(self, refusal: Refusal) -> flask.Response:
        if refusal.code == "html":
            page = "<html><head><title>502 Bad Gateway</title></head><body><h1>Bad Gateway</h1></body></html>"
            return flask.Response(page, 502, content_type="text/html")
        signature = parse(flask.request.headers.get("Authorization", ""))
        inside = f"<Code>{refusal.code}</Code><Message>{escape(refusal.message)}</Message>"
        errors = f"<Errors><Error>{inside}</Error></Errors><RequestID>{hexadecimal(32)}</RequestID>"
        body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Response>{errors}</Response>'
        if signature is not None and signature.service != "ec2":
            name = f"https://{signature.service}.amazonaws.com/doc/2011-06-15/"
            errors = f"<Error><Type>Sender</Type>{inside}</Error><RequestId>{hexadecimal(32)}</RequestId>"
            body = f'<ErrorResponse xmlns="{name}">{errors}</ErrorResponse>'
        now = datetime.now(UTC) + timedelta(seconds=flask.g.get("ahead", 0.0))
        headers = {"Date": format_datetime(now, usegmt=True)}
        return flask.Response(body, refusal.status, content_type="text/xml;charset=UTF-8", headers=headers)

    def moto_answers(self, call: Call) -> bytes:
        """Let moto answer."""
        self.moto.backend(call.region)
        status, body = self.moto.call(flask.request.environ, call.fields)
        if status != 200:
            told = ET.fromstring(body) if body.lstrip().startswith(b"<?xml") else None
            if told is None:  # moto has not got this, or broke over it
                raise Refusal(500, "InternalError", f"{call.action} is not known in the lab: {body[-300:]!r}")
            words = {element.tag.rpartition("}")[2]: element.text or "" for element in told.iter()}
            raise Refusal(status, words.get("Code", ""), words.get("Message", ""))
        return body


def _read() -> Call:
    got = flask.request
    signature = parse(got.headers.get("Authorization", ""))
    if signature is None:
        raise Refusal(403, "MissingAuthenticationToken", "Request is missing Authentication Token")
    fields = dict(parse_qsl(got.query_string.decode(), keep_blank_values=True))
    fields |= dict(parse_qsl(got.get_data(as_text=True), keep_blank_values=True))
    return Call(signature.service, signature.region, fields.get("Action", ""), fields)


def hexadecimal(digits: int) -> str:
    """The random part of an id."""
    return secrets.token_hex(digits // 2)
