"""What a slot prints: read from its two pipes and cut into whole lines.

They go out in messages that keep their place on the wire, so that no text overtakes what was printed before it. A line
that is longer than such a message goes in several, one right after another.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
from collections.abc import Callable

from skyward.core.protocol.wire import WHOLE

__all__ = ["SlotOutput"]

_CHUNK = 64 * 1024  # as much as a pipe holds
_LONGEST = 1024 * 1024  # a line that is longer is cut there


class SlotOutput:
    """Reads the pipes of one slot.

    Parameters
    ----------
    loop
        The agent's loop.
    fds
        Reading ends of the slot's stdout and stderr; they belong to this object from now on.
    emit
        Called with the stream's number (1 or 2), whole lines or a piece of one, and whether the next call brings more
        of its last line.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, fds: tuple[int, int], emit: Callable[[int, bytes, bool], None]
    ) -> None:
        self._loop = loop
        self._emit = emit
        self._fds = {1: fds[0], 2: fds[1]}
        self._partial = {1: bytearray(), 2: bytearray()}
        self._paused = True
        self._poll = select.poll()
        for fd in fds:
            os.set_blocking(fd, False)
            self._poll.register(fd, select.POLLIN)

    def __repr__(self) -> str:
        return f"<SlotOutput {sorted(self._fds)}{' paused' if self._paused else ''}>"

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

    def flush(self, *, whole_lines: bool) -> None:
        """A task has ended: all that it has printed goes out now.

        With `whole_lines`, only whole lines: another task runs in the slot already, and what has no end may be a line of its.
        """
        if self._poll.poll(0):  # most tasks print nothing, and this is asked after each
            for stream in tuple(self._fds):
                self._read(stream)
        for stream, partial in self._partial.items() if not whole_lines else ():
            self._send(stream, partial)
            partial.clear()

    def close(self) -> None:
        """The slot is dead: take what is left and let the pipes go, though a grandchild may hold them."""
        for stream in (1, 2):
            for _ in range(16):  # a megabyte, for one that writes faster than we read
                if stream not in self._fds or not self._read(stream):
                    break
        self.flush(whole_lines=False)
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
        if end or len(partial) + len(data) >= _LONGEST:
            self._send(stream, partial + data[: end or None])
            partial.clear()
            data = data[end:] if end else b""
        partial += data
        return True

    def _send(self, stream: int, text: bytes | bytearray) -> None:
        """Emit text in pieces that end with a line where they can."""
        at = 0
        while at < len(text):
            end = len(text)
            if end - at > WHOLE:
                end = text.rfind(b"\n", at, at + WHOLE) + 1 or at + WHOLE
            self._emit(stream, bytes(text[at:end]), end < len(text) and text[end - 1] != 10)  # 10 is a newline
            at = end

    def _drop(self, stream: int) -> None:
        fd = self._fds.pop(stream)
        self._poll.unregister(fd)
        with contextlib.suppress(OSError):
            self._loop.remove_reader(fd)
            os.close(fd)
