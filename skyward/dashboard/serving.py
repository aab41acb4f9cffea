"""The server of the live page: a thread with a loop of its own, so that no browser can stall the pool."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from skyward.core.errors import ConfigError
from skyward.core.events import Event, PoolReady, TaskEnded
from skyward.core.facts import Facts
from skyward.dashboard.access import HEADERS, TOKEN, Admission, Gate
from skyward.dashboard.broadcast import Broadcast
from skyward.dashboard.feed import Feed
from skyward.dashboard.page_file import live_page, report
from skyward.dashboard.recording import Recording

__all__ = ["Page"]

_log = logging.getLogger("skyward.dashboard")
_HOST = "127.0.0.1"
_CONNECTIONS = 64
_LAST_WORDS = 2  # seconds in which browsers may fetch the last message


class Page:
    """The live page of one pool; see `skyward.core.interfaces.Dashboard`.

    Parameters
    ----------
    pool
        Name of the pool.
    port
        Where to listen; 0 for any port that is free.
    facts
        The pool's running totals.

    Raises
    ------
    ConfigError
        The port is taken.
    """

    kinds = (*Recording.kinds, PoolReady)

    def __init__(self, pool: str, port: int, facts: Facts) -> None:
        self._socket = _listening(port)
        self._port: int = self._socket.getsockname()[1]
        self._token = secrets.token_urlsafe(24)
        self._gate = Gate(self._token, self._port)
        self._name, self._facts, self._began = pool, facts, time.time()
        self._recording = Recording(time.monotonic())
        self._put = self._recording.put
        self._state = "starting"
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()  # the server's loop runs, or never will
        self._broadcast: Broadcast | None = None
        self._server: _Server | None = None

    def __repr__(self) -> str:
        return f"<Page of {self._name} on port {self._port}: {self._state}>"

    @property
    def link(self) -> str:
        """Address of the page, for a browser on this machine."""
        return f"http://{_HOST}:{self._port}/?{TOKEN}={self._token}"

    def handle(self, event: Event) -> None:
        """Record an event; from any thread."""
        if type(event) is TaskEnded and event.exception is None:
            self._put(event)
        elif type(event) is PoolReady:
            self._state = "running"
        else:
            self._recording.handle(event, time.monotonic())

    def start(self) -> None:
        """Start the server."""
        self._state = "running" if self._facts.status().slots else "starting"
        self._thread = threading.Thread(target=self._main, name=f"skyward-page-{self._name}", daemon=True)
        self._thread.start()
        self._ready.wait()

    def close(self) -> None:
        """Send the final state to connected browsers, and stop the server. May be repeated."""
        self._state = "ended"
        if self._loop is not None and self._broadcast is not None and self._thread is not None:
            try:
                self._loop.call_soon_threadsafe(self._end)
            except RuntimeError:  # it has ended before
                _log.debug("the page's loop had ended")
            self._thread.join(_LAST_WORDS + 3)
        self._socket.close()
        self._recording.digest(time.monotonic())

    def save(self, path: str) -> None:
        """Write everything recorded to one HTML file that needs nothing else."""
        target = Path(path)
        part = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        try:
            part.write_text(self._report(), "utf-8")
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    def _report(self) -> str:
        now, status = time.monotonic(), self._facts.status()
        self._recording.digest(now)
        self._recording.meet(status)
        return report(Feed(self._recording, self._name, self._began).whole(status, now, self._state))

    # --- the server's thread ---

    def _main(self) -> None:
        try:
            # Not through the policy, which is the user's.
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
                runner.run(self._serve())
        except Exception:
            _log.exception("the live page has failed; the pool goes on without it")
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        feed = Feed(self._recording, self._name, self._began)
        broadcast = Broadcast(self._recording, feed, self._facts.status, lambda: self._state)
        routes = [Route("/", _page), Route("/feed", self._feed), Route("/report", self._download)]
        config = uvicorn.Config(
            _Guard(Starlette(routes=routes), self._gate),
            access_log=False,
            date_header=False,
            http="h11",
            lifespan="off",
            limit_concurrency=_CONNECTIONS,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=_LAST_WORDS,
            ws="none",
        )
        self._server, self._broadcast, self._loop = _Server(config), broadcast, asyncio.get_running_loop()
        self._ready.set()
        sending = asyncio.create_task(broadcast.run())
        await self._server.serve(sockets=[self._socket])
        broadcast.end()
        await sending

    def _end(self) -> None:
        assert self._broadcast is not None
        assert self._server is not None
        self._broadcast.end()
        self._server.stop()

    async def _feed(self, _: Request) -> Response:
        assert self._broadcast is not None
        if self._broadcast.is_full:
            return PlainTextResponse("Too many browsers are showing this page.", 503)
        return StreamingResponse(_events(self._broadcast), media_type="text/event-stream")

    async def _download(self, _: Request) -> Response:
        name = f"{self._name}.html"
        headers = {"content-disposition": f'attachment; filename="{name}"'}
        return Response(self._report(), media_type="text/html", headers=headers)


class _Server(uvicorn.Server):
    """Sleeps until it is to stop; uvicorn's own looks ten times per second, the most that an idle page would cost."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Let it end; from its own loop."""
        self.should_exit = True
        self._stopping.set()

    async def main_loop(self) -> None:
        """Serve until `stop` is called."""
        await self.on_tick(0)  # which makes the headers of all responses; without a date they stay the same
        await self._stopping.wait()


class _Guard:
    """Answers requests that the gate does not admit, and adds the headers of every response."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self._app, self._gate = app, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        admission = self._gate.judge(scope["path"], scope["query_string"].decode("latin-1"), headers)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        app: ASGIApp
        if admission is Admission.ADMIT:
            app = self._app
        elif admission is Admission.GREET:
            app = RedirectResponse("/", 303, headers={"set-cookie": self._gate.cookie})
        else:
            app = PlainTextResponse(admission.value, 403)
        await app(scope, receive, send_with_headers)


async def _page(_: Request) -> Response:
    page = live_page()
    return Response(page.html, media_type="text/html", headers={"content-security-policy": page.policy})


async def _events(broadcast: Broadcast) -> AsyncIterator[str]:
    async for text in broadcast.messages():
        yield f"data: {text}\n\n"


def _listening(port: int) -> socket.socket:
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was in use a minute ago
    try:
        found.bind((_HOST, port))
        found.listen(_CONNECTIONS)
    except OSError as error:
        found.close()
        raise ConfigError(
            f"dashboard={port}: port {port} of {_HOST} can't be used ({error.strerror}); give another one, or "
            "dashboard=True for one that is free"
        ) from error
    return found
