"""What a slot prints: read from its two pipes and split into whole lines.

The messages are small enough to keep their order on the wire, so no text overtakes what was printed before it. A longer
line is sent in several messages, one right after another.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
from collections.abc import Callable

from skyward.core.protocol.wire import WHOLE

__all__ = ["SlotOutput"]

_CHUNK = 64 * 1024  # bytes; as much as a pipe holds
_LONGEST = 1024 * 1024  # bytes; a longer line is cut there


class SlotOutput:
    """Reads the pipes of one slot.

    Parameters
    ----------
    loop
        The agent's loop.
    fds
        Read ends of the slot's stdout and stderr; this object closes them.
    emit
        Called with the stream's number (1 or 2), whole lines or a part of one, and whether the next call continues the
        last line.
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
        """Stop or resume reading; a slot that prints into a full pipe blocks."""
        if paused == self._paused:
            return
        self._paused = paused
        for stream, fd in self._fds.items():
            if paused:
                self._loop.remove_reader(fd)
            else:
                self._loop.add_reader(fd, self._read, stream)

    def flush(self, *, whole_lines: bool) -> None:
        """Emit all that a task has printed, since it has ended.

        With `whole_lines`, emit only whole lines: another task runs in the slot already, and the rest may be its own.
        """
        if self._poll.poll(0):  # most tasks print nothing, and this runs after each
            for stream in tuple(self._fds):
                self._read(stream)
        for stream, partial in self._partial.items() if not whole_lines else ():
            if partial:
                self._send(stream, partial)
                partial.clear()

    def close(self) -> None:
        """Read what a dead slot has left, and close the pipes, even if a grandchild still holds them."""
        for stream in (1, 2):
            for _ in range(16):  # a megabyte, in case something writes faster than this reads
                if stream not in self._fds or not self._read(stream):
                    break
        self.flush(whole_lines=False)
        for stream in tuple(self._fds):
            self._drop(stream)

    def _read(self, stream: int) -> bool:
        """Read once; returns whether there may be more."""
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
        """Emit text in pieces that end at a line break where possible."""
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
