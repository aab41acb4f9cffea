"""Connects standard input and output to the agent's socket, for hosts whose sshd does not forward sockets.

The owner starts it through a shell, with the socket's path. Once it is connected it prints the line in $SKYWARD_READY,
and from then on only what the agent sends. It ends when either side does.
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
    """Copy bytes both ways until the socket ends, or until nobody reads them.

    Parameters
    ----------
    sock
        A connected socket.
    source, sink
        File descriptors to read from and to write to.
    """
    inward = threading.Thread(target=_inward, args=(source, sock), name="skyward-inward", daemon=True)
    inward.start()
    with contextlib.suppress(OSError):  # the owner's connection is gone, or the agent
        while data := sock.recv(_PIECE):
            view = memoryview(data)
            while view:
                view = view[os.write(sink, view) :]


def _inward(source: int, sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := os.read(source, _PIECE):
            sock.sendall(data)
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)  # one direction alone is of no use


def main() -> None:
    """Connect to the agent whose socket is the argument."""
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
