"""The agent's client for the fork server: configures it, asks for slots, reports their ends, kills it if it hangs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import msgpack

from skyward.core.protocol.framing import Records, frame
from skyward.core.protocol.messages import Setup
from skyward.core.whoami import DEPTH, KEPT, NODE
from skyward.worker import conventions, thread_limits
from skyward.worker.forkserver.launch import ROOT, ForkServerProcess
from skyward.worker.forkserver.liveness import Limits, Probe, ProbeState
from skyward.worker.forkserver.protocol import (
    ECHO,
    END,
    EXITED,
    FORK_ISOLATED,
    FORK_SHARED,
    FORKED,
    KILL,
    REPORT,
    REQUEST,
)
from skyward.worker.forkserver.restarts import Ended
from skyward.worker.process import kill_group

__all__ = ["ForkServerClient", "fork_config"]

_TAIL = 8 * 1024  # bytes of the fork server's own output to keep for error messages


class ForkServerClient:
    """Controls one fork server.

    Parameters
    ----------
    loop
        The agent's loop.
    config
        What `server.prepare` and the slots need; ``env`` is the whole environment of the slots, and ``limits`` define
        when it counts as hung.
    on_report
        Called with each report: what, slot, value.
    on_end
        Called once if it ends without having been asked to.
    server
        Its process; None to start one.
    delay
        Seconds until that is started, while requests wait; None for at once, or `OSError` if it can't be.
    start
        Starts one, with these environment variables.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        config: dict[str, Any],
        on_report: Callable[[int, int, int], None],
        on_end: Callable[[Ended], None],
        server: ForkServerProcess | None,
        delay: float | None,
        start: Callable[[Mapping[str, str]], ForkServerProcess],
    ) -> None:
        self.pids: dict[int, int] = {}
        """Process of each slot, as reported, in case the fork server can't clean up."""
        self._loop = loop
        self._on_report = on_report
        self._on_end: Callable[[Ended], None] | None = on_end
        self._limits = Limits(*config["limits"])
        self._probe = Probe(start=max(1, round(self._limits.start / self._limits.period)))
        self._polling: asyncio.TimerHandle | None = None
        self._queue: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._under_way: dict[int, tuple[int, ...]] = {}  # slot -> files that were sent, and may not have arrived
        self._tail = b""
        self._reports = Records(REPORT)
        own = {"root": ROOT, "agent": os.getpid()}
        packed: bytes = msgpack.packb({**config, **own}, unicode_errors="surrogatepass")  # variables may be any bytes
        self._queue.append((frame(packed), ()))
        self._server: ForkServerProcess | None = None
        self._closed = False
        self._env = config["env"]
        self._start = start
        self._starting: asyncio.TimerHandle | None = None
        if delay is not None:
            self._starting = loop.call_later(delay, self._start_late)
        else:
            self._begin(server or start(self._env))

    def __repr__(self) -> str:
        process = "no process yet" if self._server is None else f"process {self._server.process.pid}"
        return f"<ForkServerClient of {process}, {len(self.pids)} slots>"

    def _start_late(self) -> None:
        try:
            self._begin(self._start(self._env))
        except OSError as error:
            on_end, self._on_end = self._on_end, None
            self.kill_all()
            if on_end is not None:
                on_end(Ended(f"the fork server can't be started: {error}", True))

    def _begin(self, server: ForkServerProcess) -> None:
        self._server = server
        os.set_blocking(server.output.fileno(), False)
        server.control.setblocking(False)
        self._loop.add_reader(server.control.fileno(), self._readable, server)
        self._loop.add_reader(server.output.fileno(), self._read_output, server)
        self._write()
        self._poll_later()

    def fork(self, slot: int, shared: bool, fds: tuple[int, ...]) -> None:
        """Request a slot.

        Parameters
        ----------
        slot
            Its number.
        shared
            Whether it runs tasks in threads.
        fds
            Its file descriptors, see `protocol.FILES`; they are closed here once they have been sent.
        """
        self._queue.append((REQUEST.pack(FORK_SHARED if shared else FORK_ISOLATED, slot), fds))
        self._write()
        self._probe.forks(slot)
        self._poll_later()

    def kill(self, slot: int) -> None:
        """Kill a slot and everything that it started."""
        self._queue.append((REQUEST.pack(KILL, slot), ()))
        self._write()
        if slot in self.pids or self._probe.awaits(slot):
            self._probe.kills(slot)
            self._poll_later()

    def _poll_later(self) -> None:
        """Schedule the next poll of the probe."""
        if self._polling is None and self._server is not None:
            self._polling = self._loop.call_later(self._limits.period, self._poll, self._server)

    def _poll(self, server: ForkServerProcess) -> None:
        self._polling = None
        state = self._probe.poll()
        if state is ProbeState.HUNG:
            self._ended(server, self._limits.answer if self._probe.is_up else self._limits.start)
        elif state is not ProbeState.IDLE:
            if state is ProbeState.ASK:
                self._queue.append((REQUEST.pack(ECHO, 0), ()))
                self._write()
            self._poll_later()

    async def end(self, wait: float) -> None:
        """Let idle slots end by themselves for up to `wait` seconds, and kill the rest."""
        self._on_end = None
        self._queue.append((REQUEST.pack(END, 0), ()))
        self._write()
        deadline = self._loop.time() + wait
        server = self._server
        while server and not server.ends_within(0.0) and self._loop.time() < deadline:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.002)
        self.kill_all()

    def kill_all(self) -> None:
        """Kill the fork server and all slots at once, without its help."""
        self._on_end = None
        for pid in self.pids.values():
            with contextlib.suppress(OSError):
                kill_group(pid)
        self.pids.clear()  # their numbers may be others' soon
        self._close()
        if self._server is not None:
            self._server.kill()

    def _close(self) -> None:
        """Stop communicating with it; what is asked for from now on is dropped."""
        self._closed = True
        for timer in (self._starting, self._polling):
            if timer is not None:
                timer.cancel()
        self._discard_queue()
        if self._server is None:
            return
        if self._server.control.fileno() >= 0:
            self._loop.remove_reader(self._server.control.fileno())
            self._loop.remove_writer(self._server.control.fileno())
        if not self._server.output.closed:
            self._loop.remove_reader(self._server.output.fileno())

    def _arrived(self, slot: int) -> None:
        """Close a slot's files here, since the fork server has them."""
        for fd in self._under_way.pop(slot, ()):
            os.close(fd)

    def _discard_queue(self) -> None:
        for _, fds in self._queue:
            for fd in fds:
                os.close(fd)
        self._queue.clear()
        for slot in list(self._under_way):
            self._arrived(slot)

    def _write(self) -> None:
        """Send what is queued; the fork server may be busy with imports for long."""
        if self._closed:
            return self._discard_queue()
        if self._server is None:
            return None
        control = self._server.control
        if control.fileno() < 0:
            return self._close()
        try:
            while self._queue:
                data, fds = self._queue[0]
                sent = socket.send_fds(control, [data], fds) if fds else control.send(data)
                self._queue.popleft()
                if fds:
                    slot = REQUEST.unpack(data)[1]
                    self._under_way[slot] = fds
                    if sys.platform != "darwin":  # it loses files that are closed before they arrive (bpo-14669)
                        self._arrived(slot)
                if sent < len(data):
                    self._queue.appendleft((data[sent:], ()))
        except (BlockingIOError, InterruptedError):
            self._loop.add_writer(control.fileno(), self._write)
        except OSError:  # it has ended; `_readable` notices
            self._discard_queue()
        else:
            self._loop.remove_writer(control.fileno())

    def _readable(self, server: ForkServerProcess) -> None:
        try:
            data = server.control.recv(REPORT.size * 64)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        for what, slot, value in self._reports.receive(data):
            self._probe.heard(what, slot)
            self._arrived(slot)
            if what == FORKED:
                self.pids[slot] = value
            elif what == EXITED:
                self.pids.pop(slot, None)
            if what != ECHO:
                self._on_report(what, slot, value)
        if not data:
            self._loop.remove_reader(server.control.fileno())
            self._loop.call_soon(self._ended, server)

    def _ended(self, server: ForkServerProcess, hung: float = 0.0) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is None:
            return
        if not hung:
            server.ends_within(1.0)
        self._read_output(server)
        tail = self._tail.decode(errors="replace").strip()
        self.kill_all()
        status = server.process.returncode
        if not hung:
            how = f"ended with status {status}"
        elif self._probe.is_up:
            how = f"did not answer for {hung:g} s, and was killed"
        else:
            how = f"was not ready after {hung:g} s, and was killed; an import of Image(preload=[...]) may hang"
        on_end(Ended(f"the fork server {how}" + (f": {tail}" if tail else ""), status is None or status < 0, hung))

    def _read_output(self, server: ForkServerProcess) -> None:
        """Read what the fork server prints: warnings of modules that it imports, or why it ends."""
        if server.output.closed:
            return
        try:
            data = os.read(server.output.fileno(), 64 * 1024)
        except (BlockingIOError, InterruptedError):
            return
        if not data:
            self._loop.remove_reader(server.output.fileno())
        self._tail = (self._tail + data)[-_TAIL:]


def fork_config(
    setup: Setup, cores: int, places: Mapping[str, str | None], own: Mapping[str, object]
) -> dict[str, Any]:
    """Return the fork server's configuration.

    Parameters
    ----------
    setup
        The owner's settings.
    cores
        Number of cores that tasks may use.
    places
        ``bridge``: path of the bridge socket. ``result_files``: folder in which slots leave large results; None to send
        them. ``code``: folder of the versions of the user's code; empty if it has none.
    own
        The agent's part: ``scratch``, folders to remove if the agent can't; ``limits``, see `ForkServerClient`;
        ``gpus``, see `slot.Settings`; and ``kept``, see `OwnFolders`.
    """
    limit = setup.threads or max(1, cores // setup.concurrency)
    # What the user has set wins; what is only in the environment wins over a mere default.
    given = setup.env if setup.threads else {**os.environ, **setup.env}
    env = {
        **conventions.environment(os.environ, setup.conventions),
        **thread_limits.defaults(limit, given),
        **setup.env,
        NODE: setup.node,
        DEPTH: str(setup.depth + 1),
        KEPT: str(own.get("kept", "")),
    }
    return {
        "node": setup.node,
        "env": env,
        "path": setup.path,
        "cwd": setup.cwd,
        "argv": setup.argv,
        "preload": setup.preload,
        "data": setup.data,
        "around": setup.around,
        "threads": limit,
        "gpus": [],
        **places,
        **own,
    }
