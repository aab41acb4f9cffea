"""What a slot prints: read from its two pipes and cut into whole lines."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
from collections.abc import Callable

__all__ = ["Outputs"]

_CHUNK = 64 * 1024  # as much as a pipe holds, and the longest line that is waited for


class Outputs:
    """Reads the pipes of one slot.

    Parameters
    ----------
    loop
        The agent's loop.
    fds
        Reading ends of the slot's stdout and stderr; they belong to this object from now on.
    emit
        Called with the stream's number (1 or 2) and whole lines.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, fds: tuple[int, int], emit: Callable[[int, bytes], None]
    ) -> None:
        self._loop = loop
        self._emit = emit
        self._fds = {1: fds[0], 2: fds[1]}
        self._partial = {1: b"", 2: b""}
        self._paused = True
        self._poll = select.poll()
        for fd in fds:
            os.set_blocking(fd, False)
            self._poll.register(fd, select.POLLIN)

    def __repr__(self) -> str:
        return f"<Outputs {sorted(self._fds)}{' paused' if self._paused else ''}>"

    def pause(self, paused: bool) -> None:
        """Stop or go on reading; a slot that prints into a full pipe waits."""
        if paused == self._paused:
            return
        self._paused = paused
        for stream, fd in self._fds.items():
            if paused:
                self._loop.remove_reader(fd)
            else:
                self._loop.add_reader(fd, self._read, stream)

    def settle(self) -> None:
        """A task has ended: all that it has printed goes out now, whole lines or not."""
        if self._poll.poll(0):  # most tasks print nothing, and this is asked after each
            for stream in tuple(self._fds):
                self._read(stream)
        for stream, partial in self._partial.items():
            if partial:
                self._partial[stream] = b""
                self._emit(stream, partial)

    def close(self) -> None:
        """The slot is dead: take what is left and let the pipes go, though a grandchild may hold them."""
        for stream in (1, 2):
            for _ in range(16):  # a megabyte, for one that writes faster than we read
                if stream not in self._fds or not self._read(stream):
                    break
        self.settle()
        for stream in tuple(self._fds):
            self._drop(stream)

    def _read(self, stream: int) -> bool:
        """Read once; whether there may be more."""
        try:
            data = os.read(self._fds[stream], _CHUNK)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            data = b""
        if not data:
            self._drop(stream)
            return False
        partial = self._partial[stream]
        end = data.rfind(b"\n") + 1
        if not end and len(partial) + len(data) >= _CHUNK:
            end = len(data)
        if end:
            self._emit(stream, partial + data[:end])
            partial = b""
        self._partial[stream] = partial + data[end:]
        return True

    def _drop(self, stream: int) -> None:
        fd = self._fds.pop(stream)
        self._poll.unregister(fd)
        with contextlib.suppress(OSError):
            self._loop.remove_reader(fd)
            os.close(fd)
