"""Byte streams from a slot to a listening socket of the owner's process, through the agent.

A Manager proxy or a scikit-learn callback in a task connects to a Unix socket of the process that made it. On another
machine that path does not exist. In a slot, `install` makes `multiprocessing.connection` ask the agent in that case;
`Bridge` is the agent's end. The protocol of the bridge socket: the slot sends the path's length and the path, receives
one byte (whether it was opened), and then both ends send the stream itself.

Pieces of a stream are at most 32 KiB, because larger messages may be overtaken on the wire.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skyward.core.protocol.framing import frame, split_frame
from skyward.core.protocol.messages import Message, StreamClose, StreamData, StreamOpen
from skyward.core.protocol.wire import Filled
from skyward.core.system.socket_paths import socket_path
from skyward.worker.listening_socket import ListeningSocket

if TYPE_CHECKING:  # slots import this module as well, and need no asyncio
    import asyncio

__all__ = ["Bridge", "install"]

_PIECE = 32 * 1024  # the largest message that keeps its place on the wire
_OPEN_AFTER = 5.0  # seconds after which a stream counts as open though the owner has not answered
_BACKLOG = 64 * 1024 * 1024  # bytes that may wait for a slot that does not read
_OPEN, _REFUSED = b"\x01", b"\x00"


# --- in a slot ------------------------------------------------------------------------------------------------------


def install(bridge: str) -> None:
    """Let `multiprocessing` in this process reach the owner's listeners; calls that need its key bring it."""
    from multiprocessing import connection  # noqa: PLC0415 - the agent does not need it

    direct = connection.SocketClient  # type: ignore[attr-defined]

    def client(address: Any) -> Any:
        try:
            return direct(address)
        except (FileNotFoundError, ConnectionRefusedError):
            wanted = _owner_address(address)
            if wanted is None:
                raise
            sock = _connect_through(bridge, wanted)
        return connection.Connection(sock.detach())

    connection.SocketClient = client  # type: ignore[attr-defined]


def _owner_address(address: Any) -> str | None:
    """Return what to ask the agent for, if an address may be one of the owner's."""
    if isinstance(address, str) and address.startswith("/"):
        return None if Path(address).exists() else address
    if isinstance(address, tuple) and len(address) == 2 and address[0] in ("127.0.0.1", "localhost"):
        return f"127.0.0.1:{address[1]}"
    return None


def _connect_through(bridge: str, address: str) -> socket.socket:
    """Open a stream to the owner's `address`."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with socket_path(bridge) as name:
            sock.connect(name)
        path = os.fsencode(address)
        sock.sendall(frame(path))
        if sock.recv(1) != _OPEN:
            raise ConnectionRefusedError(f"nobody listens at {address}, neither here nor in the pool's own process")
    except BaseException:
        sock.close()
        raise
    return sock


# --- in the agent ---------------------------------------------------------------------------------------------------


class _Stream:
    """One stream: its socket to a slot, and what is to be written there."""

    def __init__(self, number: int, sock: socket.socket) -> None:
        self.number = number
        self.sock = sock
        self.fd = sock.fileno()
        self.request = bytearray()
        self.asked = self.answered = self.ending = False
        self.pending: deque[memoryview] = deque()
        self.size = 0
        self.timer: asyncio.TimerHandle | None = None


class Bridge:
    """The agent's end: accepts connections of slots, and passes bytes between them and the owner.

    Parameters
    ----------
    loop
        The agent's loop.
    path
        Where to listen; in a folder that only this user can enter.
    post
        Sends a message to the owner.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, path: str, post: Callable[..., Any]) -> None:
        self.path = path
        self._loop = loop
        self._post: Callable[..., Any] = post
        self._streams: dict[int, _Stream] = {}
        self._last = 0
        self._paused = False
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with socket_path(path) as name:
            listener.bind(name)
        listener.listen(128)
        self._listener = ListeningSocket(loop, listener, self._accept)

    def __repr__(self) -> str:
        return f"<Bridge at {self.path} with {len(self._streams)} streams>"

    def close(self) -> None:
        """Close all streams and the listener."""
        for stream in list(self._streams.values()):
            self._drop(stream)
        self._listener.close()
        with contextlib.suppress(OSError):
            Path(self.path).unlink()

    def pause(self, paused: bool) -> None:
        """Stop or resume reading from slots, depending on how much is on its way to the owner."""
        if paused == self._paused:
            return
        self._paused = paused
        for stream in self._streams.values():
            if paused:
                self._loop.remove_reader(stream.fd)
            else:
                self._loop.add_reader(stream.fd, self._readable, stream)

    def receive(self, message: StreamData | StreamClose, data: Filled | None) -> None:
        """Handle a message of the owner."""
        stream = self._streams.get(message.stream)
        if stream is None:
            return
        self._answer(stream, _REFUSED if isinstance(message, StreamClose) and message.error else _OPEN)
        if isinstance(message, StreamClose):
            stream.ending = True
            self._write(stream)
        elif data:
            self._queue(stream, data)
            if stream.size > _BACKLOG:
                self._send(StreamClose(stream.number, "the task does not read what was sent to it"))
                self._drop(stream)

    def _accept(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._last += 1
        stream = self._streams[self._last] = _Stream(self._last, sock)
        if not self._paused:
            self._loop.add_reader(stream.fd, self._readable, stream)

    def _readable(self, stream: _Stream) -> None:
        try:
            data = stream.sock.recv(_PIECE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            if stream.asked:
                self._send(StreamClose(stream.number, None))
            self._drop(stream)
        elif stream.asked:
            self._send(StreamData(stream.number), [data])
        else:
            self._request(stream, data)

    def _request(self, stream: _Stream, data: bytes) -> None:
        """Read the address that the slot asks for; it sends nothing else until it is answered."""
        stream.request += data
        try:
            path = split_frame(stream.request, limit=4096)
        except ValueError:
            self._drop(stream)
            return
        if path is not None:
            stream.asked = True
            stream.timer = self._loop.call_later(_OPEN_AFTER, self._answer, stream, _OPEN)
            self._send(StreamOpen(stream.number, os.fsdecode(path)))

    def _answer(self, stream: _Stream, answer: bytes) -> None:
        if not stream.answered:
            stream.answered = True
            if stream.timer is not None:
                stream.timer.cancel()
            self._queue(stream, bytearray(answer))

    def _queue(self, stream: _Stream, data: Filled) -> None:
        stream.pending.append(memoryview(data))
        stream.size += len(data)
        self._write(stream)

    def _write(self, stream: _Stream) -> None:
        try:
            while stream.pending:
                sent = stream.sock.send(stream.pending[0])
                stream.size -= sent
                rest = stream.pending.popleft()[sent:]
                if len(rest):
                    stream.pending.appendleft(rest)
        except (BlockingIOError, InterruptedError):
            self._loop.add_writer(stream.fd, self._write, stream)
            return
        except OSError as error:
            self._send(StreamClose(stream.number, str(error)))
            self._drop(stream)
            return
        self._loop.remove_writer(stream.fd)
        if stream.ending:
            self._drop(stream)

    def _send(self, message: Message, buffers: list[bytes] | None = None) -> None:
        self._post(message, buffers or [])

    def _drop(self, stream: _Stream) -> None:
        if self._streams.pop(stream.number, None) is None:
            return
        if stream.timer is not None:
            stream.timer.cancel()
        self._loop.remove_reader(stream.fd)
        self._loop.remove_writer(stream.fd)
        stream.sock.close()
