"""Connections to hosts, directly or through jump hosts; one to each jump host, shared by all hosts behind it.

sshd limits concurrent logins (MaxStartups: beyond ten, it drops some at random). So we log in to a jump host once,
however many hosts are behind it; make few concurrent logins to the same host; and retry connections that were dropped
before the login began. A single login is in ssh_login.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shlex
import signal
import socket
import subprocess
import tempfile
import weakref
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from typing import IO, ClassVar

import asyncssh

from skyward.core.errors import HostKeyError, HostUnreachable, LoginRefused
from skyward.core.spec import Endpoint
from skyward.transport.ssh_config import expand
from skyward.transport.ssh_login import Dropped, Login, attempt, read_login
from skyward.transport.ssh_stream import Line

__all__ = ["LoginProgress", "Route", "Routes"]

_CONCURRENT = 6  # logins to one host; sshd starts dropping at ten, and others log in, too
_TRIES = 9  # for a host that drops connections: some 25 s
_PROXY_TRIES = 4  # for a ProxyCommand, whose end looks like a drop whatever the cause
_PAUSE, _LONGEST_PAUSE = 0.25, 6.0  # seconds before the second attempt, doubled for each further one
_MAX_LOST = 3  # times that a jump host's connection may end during a login through it, before that is an error
_MAX_HOPS = 8  # more jump hosts than this count as a loop
_GOODBYE = 2.0  # seconds for an orderly end; a dead line does not answer


class LoginProgress:
    """What a login is waiting for, to be named if it times out."""

    def __init__(self, at: str) -> None:
        self.at = at
        self.is_jump = False


class Route:
    """A connection to a host, with the connections that it goes through.

    Parameters
    ----------
    connection
        The connection.
    below
        The connection to the jump host that it goes through directly, if any.
    proxy
        The ProxyCommand that it goes through, if any.
    """

    def __init__(
        self, connection: asyncssh.SSHClientConnection, below: _Shared | None = None, proxy: _Proxy | None = None
    ) -> None:
        self.connection = connection
        self.line = Line(connection, below.line if below is not None else None)
        self._leases: list[_Shared] = []
        self._proxy = proxy

    def keep(self, leases: Sequence[_Shared]) -> None:
        """Hold the connections to jump hosts until this one ends."""
        self._leases += leases

    async def close(self) -> None:
        """Close it; connections to jump hosts end with the last one that uses them. May be repeated."""
        leases, self._leases = self._leases, []
        proxy, self._proxy = self._proxy, None
        self.connection.close()
        try:
            async with asyncio.timeout(_GOODBYE):
                await self.connection.wait_closed()
        except BaseException as error:  # also when cancelled: nothing may be left open
            self.connection.abort()
            if not isinstance(error, TimeoutError):
                raise
        finally:
            if proxy is not None:
                proxy.end()
            for lease in reversed(leases):
                await lease.leave()


class _Shared:
    """A connection to a jump host with a count of its users; it ends with the last of them."""

    coming: asyncio.Task[Route]

    def __init__(self, key: Hashable, table: dict[Hashable, _Shared], name: str) -> None:
        self.key, self.name = key, name
        self.waits_for: _Shared | None = None  # another jump host on the way to it
        self._table = table
        self._users = 0

    @property
    def is_usable(self) -> bool:
        """Whether it may still be used: it is being made, or is open."""
        if not self.coming.done():
            return True
        failed = self.coming.cancelled() or self.coming.exception() is not None
        return not failed and not self.coming.result().connection.is_closed()

    @property
    def connection(self) -> asyncssh.SSHClientConnection:
        """The connection, once it has been made."""
        return self.coming.result().connection

    @property
    def line(self) -> Line:
        """Its line, once it has been made."""
        return self.coming.result().line

    def leads_to(self, other: _Shared | None) -> bool:
        """Whether it is the other one, or waits for it."""
        at: _Shared | None = self
        while at is not None and at is not other:
            at = at.waits_for
        return at is not None

    async def enter(self) -> None:
        """Wait until it is open, and use it. After an error, `leave` must not be called.

        Raises
        ------
        HostUnreachable, HostKeyError, LoginRefused
            The same for all who wait together.
        """
        self._users += 1
        try:
            await asyncio.shield(self.coming)
        except BaseException:
            await self.leave()
            raise

    async def leave(self) -> None:
        """Stop using it."""
        self._users -= 1
        if self._users:
            return
        if self._table.get(self.key) is self:
            del self._table[self.key]
        self.coming.cancel()  # does nothing if it has been made
        await asyncio.wait([self.coming])
        if not self.coming.cancelled() and self.coming.exception() is None:
            await self.coming.result().close()


class Routes:
    """All logins of one event loop, to which it belongs."""

    _all: ClassVar[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Routes]] = weakref.WeakKeyDictionary()

    def __init__(self) -> None:
        self._shared: dict[Hashable, _Shared] = {}
        self._semaphores: weakref.WeakValueDictionary[Hashable, asyncio.Semaphore] = weakref.WeakValueDictionary()

    @classmethod
    def here(cls) -> Routes:
        """Return the one of the running loop."""
        return cls._all.setdefault(asyncio.get_running_loop(), cls())

    async def log_in(
        self, endpoint: Endpoint, progress: LoginProgress, inside: _Shared | None = None, depth: int = 0
    ) -> Route:
        """Connect to the jump hosts and the host itself. The caller limits the time by cancelling.

        Parameters
        ----------
        endpoint
            The host.
        progress
            Updated with what the login is waiting for.
        inside
            The shared connection that this login is for, if any.
        depth
            Number of logins that this one is nested in.

        Raises
        ------
        HostUnreachable, HostKeyError, LoginRefused
            As their names say; never any other type. The text names the machine that failed, also if it is a jump host.
        """
        if depth > _MAX_HOPS:
            raise _circle(endpoint)
        login = await asyncio.to_thread(read_login, endpoint)
        for left in reversed(range(_MAX_LOST)):
            leases: list[_Shared] = []
            try:
                return await self._approach(login, progress, leases, inside, depth)
            except HostUnreachable as error:
                await asyncio.sleep(0)  # a connection that has just ended is reported in the loop's next turn
                lost = next((lease for lease in leases if not lease.is_usable), None)
                await _leave(leases)
                if lost is None:
                    raise
                if not left:
                    text = f"{login} can't be reached: the connection to the jump host {lost.name} keeps ending"
                    raise HostUnreachable(text) from error
            except BaseException:
                await _leave(leases)
                raise
        raise AssertionError("the last attempt raises")

    async def _approach(
        self, login: Login, progress: LoginProgress, leases: list[_Shared], inside: _Shared | None, depth: int
    ) -> Route:
        """Log in through the jump hosts, whose connections are added to `leases`."""
        endpoint = login.endpoint
        for number, jump in enumerate(login.jumps):
            # As with ssh -J: the first hop may have jump hosts of its own in the configuration; each other one is
            # reached through the hop before it.
            options = {**endpoint.options, "jump": None if number == 0 else "none", "host_key": None}
            hop = replace(jump, options=options)
            progress.at, progress.is_jump = f"the jump host {hop}", True
            leases.append(await self._go_through(hop, endpoint, leases[-1:], inside, depth))
        progress.at, progress.is_jump = f"{login}", False
        route = await self._enter(login, leases[-1] if leases else None)
        route.keep(leases)
        return route

    async def _go_through(
        self, hop: Endpoint, to: Endpoint, before: Sequence[_Shared], inside: _Shared | None, depth: int
    ) -> _Shared:
        """Use the connection to a jump host: all share one, and all get its error if it fails."""
        key = (before[-1].key if before else None, str(hop), repr(sorted(hop.options.items())))
        shared = self._shared.get(key)
        if shared is None or not shared.is_usable:
            shared = self._shared[key] = _Shared(key, self._shared, str(hop))
            approach = (
                self._through(hop, before[-1]) if before else self.log_in(hop, LoginProgress(""), shared, depth + 1)
            )
            shared.coming = asyncio.ensure_future(approach)
        elif inside is not None and shared.leads_to(inside):
            raise _circle(to)
        if inside is not None:
            inside.waits_for = shared
        try:
            await shared.enter()
        except (HostUnreachable, HostKeyError, LoginRefused) as error:
            raise type(error)(f"{error}\nThis is the jump host on the way to {to}") from error
        finally:
            if inside is not None:
                inside.waits_for = None
        return shared

    async def _through(self, hop: Endpoint, before: _Shared) -> Route:
        """Log in to a jump host through another one, whose connection is held by whoever waits for this."""
        return await self._enter(await asyncio.to_thread(read_login, hop), before)

    async def _enter(self, login: Login, hop: _Shared | None) -> Route:
        """Log in to one host, retrying while it drops the connection."""
        place = (hop.key if hop else None, login.proxy or (login.settings.name, login.settings.port))
        semaphore = self._semaphores.setdefault(place, asyncio.Semaphore(_CONCURRENT))

        async def once() -> Route:
            async with semaphore:
                if hop is not None:
                    return Route(await attempt(login, tunnel=hop.connection, hop=hop.name), hop)
                return await _by_command(login) if login.proxy else Route(await attempt(login))

        return await _insist(once, _PROXY_TRIES if login.proxy else _TRIES)


async def _leave(leases: Sequence[_Shared]) -> None:
    for lease in reversed(leases):
        await lease.leave()


def _circle(endpoint: Endpoint) -> HostUnreachable:
    return HostUnreachable(f"{endpoint}: ProxyJump goes in a circle, or through more than {_MAX_HOPS} hosts")


async def _insist(once: Callable[[], Awaitable[Route]], tries: int) -> Route:
    """Retry while connections are dropped."""
    for pause in _pauses(tries):
        try:
            return await once()
        except Dropped as error:
            if pause is None:
                raise HostUnreachable(str(error)) from error
            await asyncio.sleep(pause)
    raise AssertionError("the last pause is None")


def _pauses(tries: int) -> Iterator[float | None]:
    """Yield seconds to wait after each attempt, with jitter, so that those dropped together do not retry together."""
    for number in range(tries - 1):
        yield min(_PAUSE * 2**number, _LONGEST_PAUSE) * random.uniform(0.5, 1.5)  # noqa: S311 - no secret
    yield None


# --- ProxyCommand ---------------------------------------------------------------------------------------------------


class _Proxy:
    """A running ProxyCommand; its input and output are one socket, which gives us backpressure if it is slow."""

    def __init__(self, command: str) -> None:
        ours, theirs = socket.socketpair()
        self.sock = ours
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the command runs
        shell = os.environ.get("SHELL") or "/bin/sh"
        with theirs:
            self._process = subprocess.Popen(
                [shell, "-c", f"exec {command}"],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=self._errors,
                start_new_session=True,
            )

    def said(self) -> str:
        """Return the end of what it wrote to its standard error."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace").strip()[-500:]

    def end(self) -> None:
        """End it and its children; asyncssh has closed the socket."""
        self.sock.close()
        self._errors.close()
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGTERM)
        asyncio.get_running_loop().run_in_executor(None, self._reap)

    def _reap(self) -> None:
        try:
            self._process.wait(_GOODBYE)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


async def _by_command(login: Login) -> Route:
    tokens = login.settings.tokens
    try:
        command = expand(login.proxy, tokens, environment=False)
        proxy = _Proxy(command)
    except (OSError, ValueError) as error:
        raise LoginRefused(f"{login}: can't run ProxyCommand {shlex.quote(login.proxy)}: {error}") from error
    try:
        return Route(await attempt(login, sock=proxy.sock), proxy=proxy)
    except BaseException as error:
        said = proxy.said()
        proxy.end()
        if isinstance(error, HostUnreachable):
            what = "ended before the login" if isinstance(error, Dropped) else f"did not reach it ({error})"
            raise type(error)(
                f"{login} can't be reached: ProxyCommand {command!r} {what}; it printed: {said or 'nothing'}"
            ) from error
        raise
