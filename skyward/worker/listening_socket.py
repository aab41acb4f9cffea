"""A listening socket on the agent's loop."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable

__all__ = ["ListeningSocket"]

_PAUSE = 0.5  # seconds
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class ListeningSocket:
    """Passes each connection to `take`.

    While this process can't open more files, it accepts nothing for a moment: otherwise the socket would be ready
    again at once, and the loop would do nothing else.

    Parameters
    ----------
    loop, listener
        The socket becomes non-blocking, and is closed by this object.
    take
        Called with each connection.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, listener: socket.socket, take: Callable[[socket.socket], None]
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._take = take
        self._later: asyncio.TimerHandle | None = None
        listener.setblocking(False)
        self._open()

    def __repr__(self) -> str:
        return f"<ListeningSocket {self._listener!r}{', paused' if self._later else ''}>"

    def close(self) -> None:
        """Stop listening; may be repeated."""
        if self._later is not None:
            self._later.cancel()
        elif self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener.fileno())
        self._listener.close()

    def _open(self) -> None:
        self._later = None
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            if error.errno in _EXHAUSTED:
                self._loop.remove_reader(self._listener.fileno())
                self._later = self._loop.call_later(_PAUSE, self._open)
            return  # otherwise the client has gone away
        self._take(sock)
