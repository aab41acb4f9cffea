"""The frame of every cloud: an HTTP server in a thread, a record of requests, a meter and faults."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Self

import flask
from werkzeug.routing import Map
from werkzeug.serving import WSGIRequestHandler, make_server

from .faults import Faults
from .machines import Machines
from .meter import Meter

__all__ = ["Cloud", "Request"]


@dataclass(frozen=True)
class Request:
    """What a client sent."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: str


class _Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"  # clients keep their connections, as they do with real clouds

    def log(self, type: str, message: str, *args: Any) -> None:
        pass

    def send_header(self, keyword: str, value: str) -> None:
        if keyword.lower() == "date":  # a route's own time counts, not the one that is always written first
            lines: list[bytes] = self.__dict__.setdefault("_headers_buffer", [])
            lines[:] = [line for line in lines if not line.lower().startswith(b"date:")]
        super().send_header(keyword, value)


class _App(flask.Flask):
    """An application whose routes are compiled once for all clouds of a class: that takes longer than most tests."""

    _maps: ClassVar[dict[type, Map]] = {}

    def __init__(self, kind: type) -> None:
        self._compiled = self._maps.get(kind)
        super().__init__(kind.__name__, static_folder=None)
        if self._compiled is None:
            self._maps[kind] = self.url_map
        else:
            self.url_map = self._compiled

    def add_url_rule(self, rule: str, endpoint: str | None = None, *args: Any, **options: Any) -> None:
        """Add a route, or only the function that serves it here."""
        view = options.get("view_func") or args[0]
        if self._compiled is None:
            super().add_url_rule(rule, endpoint, *args, **options)
        else:
            self.view_functions[endpoint or view.__name__] = view


class Cloud:
    """A vendor's API. Subclasses add routes to `app` and keep their state under `lock`.

    Parameters
    ----------
    machines
        Where hosts come from; without any, instances have addresses where nobody answers.

    Attributes
    ----------
    url
        Where it listens: on the lab's bridge if there is a lab, so that hosts reach it too, else on loopback.
    requests
        All there were.
    """

    def __init__(self, machines: Machines | None = None) -> None:
        self.machines = machines or Machines(None)
        self.faults = Faults()
        self.meter = Meter()
        self.lock = threading.RLock()
        self.requests: list[Request] = []
        self.app = _App(type(self))
        self.app.before_request(self._record)
        self.routes()
        self._server = make_server(self.machines.gateway, 0, self.app, threaded=True, request_handler=_Handler)
        self._server.daemon_threads = True
        self.host, self.port = self.machines.gateway, self._server.server_port
        self.url = f"http://{self.host}:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name=f"cloud-{self.port}")
        self._thread.start()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}, {self.meter!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def routes(self) -> None:
        """Add the API's routes to `app`; called once, before the server starts."""

    def close(self) -> None:
        """Stop the server and end all machines."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self.machines.close()

    def _record(self) -> None:
        got = flask.request
        body = got.get_data(as_text=True)
        self.requests.append(Request(got.method, got.path, dict(got.args), dict(got.headers), body))

    def lose_reply(self) -> None:
        """Close the connection of the request at hand without a reply (to be called in a route)."""
        # The server hands its socket to the application under this name.
        flask.request.environ["werkzeug.socket"].shutdown(2)
