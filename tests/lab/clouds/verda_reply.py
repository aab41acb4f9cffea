"""How Verda's API answers: bare ids, JSON, and refusals with a code and a message."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import flask

__all__ = ["Refusal", "Row", "bare", "body", "invalid", "now", "refuse", "reply", "unauthorized", "unknown_path"]

Row = dict[str, Any]


class Refusal(Exception):
    """An error of the API."""

    def __init__(self, status: int, code: str, message: str | list[str], **headers: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers


def body() -> Row:
    """What the client sent."""
    sent = flask.request.get_json(force=True)
    if not isinstance(sent, dict):
        raise invalid("The body is no object")
    return sent


def bare(id: str, status: int) -> flask.Response:
    """An id as text is all that a create answers with."""
    return flask.Response(id, status, content_type="text/html; charset=utf-8")


def reply(value: Any, status: int) -> flask.Response:
    return flask.Response(json.dumps(value), status, mimetype="application/json")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def refuse(refusal: Refusal) -> flask.Response:
    answer = reply({"code": refusal.code, "message": refusal.message}, refusal.status)
    answer.headers.update(refusal.headers)
    return answer


def invalid(message: str | list[str]) -> Refusal:
    return Refusal(400, "invalid_request", message)


def unauthorized(message: str) -> Refusal:
    return Refusal(401, "unauthorized_request", message)


def unknown_path() -> Refusal:
    return Refusal(404, "not_found", f"Cannot {flask.request.method} {flask.request.path}")
