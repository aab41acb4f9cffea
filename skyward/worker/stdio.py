"""Joins standard input and output to the agent's socket: the way in where a host's sshd forwards nothing.

Started through a shell by the owner, with the socket's path. Once that is connected it prints the line in
$SKYWARD_READY, and from then on only what comes from the agent. It ends with either side.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading

__all__ = ["join", "main"]

_PIECE = 256 * 1024  # bytes read at a time


def join(sock: socket.socket, source: int, sink: int) -> None:
    """Pass on bytes both ways until the socket's end, or until nobody takes them."""
    inward = threading.Thread(target=_inward, args=(source, sock), name="skyward-inward", daemon=True)
    inward.start()
    with contextlib.suppress(OSError):  # the owner's connection is gone, or the agent is
        while data := sock.recv(_PIECE):
            view = memoryview(data)
            while view:
                view = view[os.write(sink, view) :]


def _inward(source: int, sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := os.read(source, _PIECE):
            sock.sendall(data)
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)  # half a stream is of no use


def main() -> None:
    """Be the way to one agent."""
    (path,) = sys.argv[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(path)
        except OSError as error:
            raise SystemExit(f"{path}: {error.strerror}") from error
        os.write(1, f"{os.environ['SKYWARD_READY']}\n".encode())
        join(sock, 0, 1)


if __name__ == "__main__":
    main()
