"""The instance metadata service, version 2 only: an instance asks, and is known by its address.

At AWS it has the address 169.254.169.254; here it is wherever the cloud listens, below ``/latest``.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping

import flask

__all__ = ["add_metadata"]

_TTL = "X-aws-ec2-metadata-token-ttl-seconds"
_TOKEN = "X-aws-ec2-metadata-token"


def add_metadata(app: flask.Flask, tell: Callable[[str], Mapping[str, str] | None]) -> None:
    """Add the service to a server.

    Parameters
    ----------
    tell
        What is at each path below ``/latest/`` for the instance with this address; None: no instance has it.
    """
    tokens: dict[str, str] = {}

    def make_token() -> flask.Response:
        lifetime = flask.request.headers.get(_TTL, "")
        if not lifetime.isdigit() or not 1 <= int(lifetime) <= 21600:
            return flask.Response("400 - Bad Request", 400)
        if "X-Forwarded-For" in flask.request.headers or tell(str(flask.request.remote_addr)) is None:
            return flask.Response("403 - Forbidden", 403)
        token = secrets.token_urlsafe(40)
        tokens[token] = str(flask.request.remote_addr)
        return flask.Response(token, content_type="text/plain", headers={_TTL: lifetime})

    def show(path: str) -> flask.Response:
        address = str(flask.request.remote_addr)
        if tokens.get(flask.request.headers.get(_TOKEN, "")) != address:
            return flask.Response("401 - Unauthorized", 401)
        known = tell(address) or {}
        if path in known:
            return flask.Response(known[path], content_type="text/plain")
        below = sorted(
            {name[len(path) :].split("/")[0] for name in known if path.endswith("/") and name.startswith(path)}
        )
        return flask.Response("\n".join(below), content_type="text/plain") if below else flask.Response("404", 404)

    app.add_url_rule("/latest/api/token", view_func=make_token, methods=["PUT"])
    app.add_url_rule("/latest/<path:path>", view_func=show)
