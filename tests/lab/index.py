"""A package index for the hosts: ``python -m tests.lab.index WHEELS ADDRESS LOG`` prints its URL.

It listens on the lab's gateway only, on a port of the system's choice, and lists the folder anew
for each request, so wheels may be added while it runs. LOG is the folder of a file, called like its
port, with a line for each request: who asks, and for what.
"""

from __future__ import annotations

import sys
from pathlib import Path
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import pypiserver  # type: ignore[import-untyped]

__all__ = ["main"]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    log = Path()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the output belongs to the lab's owner."""

    def log_request(self, *_: object) -> None:
        """Note a request that is answered."""
        with (self.log / str(self.server.server_port)).open("a") as file:  # type: ignore[attr-defined]
            file.write(f"{self.client_address[0]} {self.path}\n")

    def address_string(self) -> str:
        """The bare address; looking up its name would wait for a resolver."""
        return str(self.client_address[0])


def main(folder: str, address: str, log: str) -> None:
    """Serve until killed."""
    _Quiet.log = Path(log)
    app = pypiserver.app(roots=[folder], disable_fallback=True, backend_arg="simple-dir")
    server = make_server(address, 0, app, server_class=_Server, handler_class=_Quiet)
    print(f"http://{address}:{server.server_port}/simple/", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:4])
