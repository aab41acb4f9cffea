"""A non-blocking socket with a `Wire` on it, driven by an asyncio loop. It does not interpret messages.

asyncio's transports would copy what the wire already queues, and queue it without a limit; here a message stays in the
wire, in pieces, until the socket accepts it.
"""

from __future__ import annotations

import mmap
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from skyward.core.errors import ProtocolError
from skyward.core.protocol.messages import Message
from skyward.core.protocol.wire import Buffer, Lane, Received, Wire

if TYPE_CHECKING:  # slots import this module as well, and need no asyncio
    import asyncio

__all__ = ["WireSocket", "unsent"]

# One for all sockets: nothing that is read stays in it, and the agent has one thread. Memory is taken as it is used.
_CHUNK = mmap.mmap(-1, 256 * 1024, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
_VIEW = memoryview(_CHUNK)
_PARTS = 512  # buffers per writev


def unsent(parts: Sequence[bytes | memoryview], sent: int) -> list[bytes | memoryview]:
    """Return what remains of the buffers after `sent` bytes of them were sent."""
    for index, part in enumerate(parts):
        if sent < len(part):
            return [memoryview(part)[sent:], *parts[index + 1 :]]
        sent -= len(part)
    return []


class WireSocket:
    """One end of one connection.

    Parameters
    ----------
    loop, sock, wire
        The socket becomes non-blocking, and is closed by this object.
    on_message
        Called with each message; if it raises, the connection is closed.
    on_end
        Called once, with the reason, unless `close` was called first.
    eager
        Whether `send` itself writes, instead of once per iteration of the loop: less latency, more system calls.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        wire: Wire,
        on_message: Callable[[Received], None],
        on_end: Callable[[str], None],
        eager: bool = False,
    ) -> None:
        self.wire = wire
        self.closed = False
        self.fault: str | None = None
        """The error of either end that closed it; None if it was closed otherwise."""
        self.lag = 0.0
        """Seconds that a write may wait for more to send, while nobody is idle."""
        self._loop = loop
        self._sock = sock
        self._receive: Callable[[Buffer], list[Received]] = wire.receive_data
        self._on_message = on_message
        self._on_end = on_end
        self._lane: Lane | None = None  # of a stripe: where its bytes belong in the wire
        self._paused = False  # not reading, as the lane waits
        self._main = self  # the connection that this is a stripe of
        self._stripes: list[WireSocket] = []  # of the main connection
        self._eager = eager
        self._parts: list[bytes | memoryview] = []  # taken from the wire and not yet written
        self._will_write = False
        self._later: asyncio.TimerHandle | None = None  # the timer of a write that may wait
        self._waits_for_room = False
        self._fd = sock.fileno()
        sock.setblocking(False)
        loop.add_reader(self._fd, self._readable)

    def __repr__(self) -> str:
        return f"<WireSocket fd {self._fd}{' closed' if self.closed else ''}, {self.wire!r}>"

    def send(self, message: Message, buffers: Sequence[Buffer] = (), number: int = 0) -> None:
        """Send a message; no effect if the connection is closed.

        Parameters
        ----------
        message, buffers
            What to send.
        number
            The message's number in its session; 0 for none.
        """
        if not self.closed:
            self.wire.send(message, buffers, number)
            self.wake()

    def queue(self, message: Message, buffers: Sequence[Buffer] = (), number: int = 0) -> None:
        """Queue a message until `wake`; no effect if the connection is closed.

        Parameters
        ----------
        message, buffers, number
            As in `send`.
        """
        if not self.closed:
            self.wire.send(message, buffers, number)

    def send_last(self, message: Message) -> None:
        """Send a message at once, as far as there is room; to be followed by `close`."""
        self.send(message)
        if not self._parts:
            self._write()

    def wake(self) -> None:
        """Write what was queued in the wire."""
        if self._waits_for_room:
            return
        if self._eager:
            self._write()
        elif self.lag:
            if not self._will_write:
                self._will_write = True
                self._later = self._loop.call_later(self.lag, self._write)
        elif not self._will_write or self._later is not None:
            self._will_write = True
            if self._later is not None:
                self._later.cancel()
                self._later = None
            self._loop.call_soon(self._write)

    def join(self, link: WireSocket) -> None:
        """Become a stripe of another connection: it receives what arrives here, and neither outlives the other.

        What this connection's own wire has to send is still sent.
        """
        self._lane = link.wire.stripe()
        self._receive = partial(link.wire.receive_data, lane=self._lane)
        self._on_message, self._on_end = link._on_message, link._end
        self._main = link
        self._stripes = link._stripes
        self._stripes.append(self)

    def close(self) -> None:
        """Close at once, with all stripes; may be repeated."""
        if self.closed:
            return
        self.closed = True
        for stripe in self._stripes:
            stripe.close()
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._parts.clear()
        self._sock.close()

    def drain(self) -> None:
        """Read all that has arrived, without waiting."""
        while not self.closed and self._read():
            pass

    def fail(self, error: Exception) -> None:
        """Close it because of an error; the other end may have to repeat the message that caused it."""
        link, expected = self._main, isinstance(error, ProtocolError)
        link.fault = link.fault or (f"{error}" if expected else f"{type(error).__name__}: {error}")
        if not expected:
            self._loop.call_exception_handler({"message": f"unexpected error in {link!r}", "exception": error})
        self._end(link.fault)

    def _broken(self, reason: str) -> None:
        """Close it because writing failed, after reading what the other end sent before."""
        self.drain()
        self._end(reason)

    def _end(self, reason: str) -> None:
        if not self.closed:
            self.close()
            self._on_end(reason)

    def _readable(self) -> None:
        if not self.closed:
            self._read()

    def _read(self) -> bool:
        """Read once; returns whether there may be more."""
        try:
            count = self._sock.recv_into(_CHUNK)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._end(str(error))
            return False
        if not count:
            self.wire.receive_eof()
            self._end("closed by the other end")
            return False
        try:
            for received in self._receive(_VIEW[:count]):
                self._on_message(received)
        except Exception as error:
            self.fail(error)
            return False
        for stripe in self._stripes:  # the message that one waits for may have begun
            stripe.update_reading()
        return True

    def update_reading(self) -> None:
        """Of a stripe: read only while the wire need not wait for another stream."""
        waits = self._lane is not None and self._lane.waits
        if self.closed or waits is self._paused:
            return
        self._paused = waits
        if waits:
            self._loop.remove_reader(self._fd)
        else:
            self._loop.add_reader(self._fd, self._readable)

    def _write(self) -> None:
        """Write one batch; the rest is written in later iterations of the loop, so that reading is not starved."""
        self._will_write = False
        self._later = None
        if self.closed:
            return
        try:
            parts = self._parts or self.wire.data_to_send()
            if len(parts) == 1:
                sent = self._sock.send(parts[0])
                self._parts = unsent(parts, sent) if sent < len(parts[0]) else []
            elif parts:
                self._parts = unsent(parts, self._sock.sendmsg(parts[:_PARTS]))
        except (BlockingIOError, InterruptedError):
            self._parts = parts
        except OSError as error:
            self._loop.call_soon(self._broken, str(error))  # later: callers of `send` don't expect it
            return
        except Exception as error:
            self._loop.call_soon(self.fail, error)
            return
        more = bool(self._parts) or self.wire.has_data
        if more != self._waits_for_room:
            self._waits_for_room = more
            if more:
                self._loop.add_writer(self._fd, self._write)
            else:
                self._loop.remove_writer(self._fd)
