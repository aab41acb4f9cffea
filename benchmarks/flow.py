"""Bytes one way through one TCP connection. It stands alone: hosts get its source, and it runs without the package.

``python flow.py ADDRESS`` listens, prints its port, and ends when its standard input does. A client sends ``up N`` or
``down N`` and a line feed; then N bytes go that way, and after those that went up a byte comes back.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading

__all__ = ["carry", "serve"]

_CHUNK = 1 << 20


def carry(address: tuple[str, int], way: str, size: int) -> None:
    """Be the client: move the bytes, and return when the last has arrived."""
    with socket.create_connection(address, timeout=60) as line:
        line.sendall(f"{way} {size}\n".encode())
        if way == "up":
            _send(line, size)
            size = 1
        _receive(line, size)


def serve(address: str) -> None:
    """Answer clients until standard input ends."""
    with socket.create_server((address, 0)) as server:
        print(server.getsockname()[1], flush=True)
        threading.Thread(target=_accept, args=(server,), daemon=True).start()
        sys.stdin.read()


def _accept(server: socket.socket) -> None:
    with contextlib.suppress(OSError):  # closed: the end
        while True:
            line, _ = server.accept()
            threading.Thread(target=_answer, args=(line,), daemon=True).start()


def _answer(line: socket.socket) -> None:
    with line, contextlib.suppress(OSError):
        order = b""
        while not order.endswith(b"\n"):
            order += line.recv(1)
        way, size = order.split()
        if way == b"down":
            _send(line, int(size))
        else:
            _receive(line, int(size))
            line.sendall(b"k")


def _send(line: socket.socket, size: int) -> None:
    chunk = memoryview(bytes(_CHUNK))
    while size > 0:
        size -= line.send(chunk[:size])


def _receive(line: socket.socket, size: int) -> None:
    buffer = bytearray(_CHUNK)
    while size > 0:
        got = line.recv_into(buffer, min(size, _CHUNK))
        if not got:
            raise ConnectionError("the other end closed before all had arrived")
        size -= got


if __name__ == "__main__":
    serve(sys.argv[1])
