"""Limits of this machine and of its paths, in the same run as the peers: copying memory, plain TCP, OpenSSH.

Each does the part of a workload that nobody can leave out, which is to move its bytes. No joblib is involved.
"""

from __future__ import annotations

import contextlib
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import flow
from benchmarks.meter import Lap
from benchmarks.model import Figures, Opener, Peer, Place, Setting, Stage

__all__ = ["PEERS"]

_SOURCE = Path(flow.__file__)
_Address = tuple[str, int]


@dataclass
class _Paths(Stage):
    """A stage without workers: one address for each node, where `flow` answers. None: nothing leaves the process."""

    addresses: list[_Address] = field(default_factory=list)

    def move(self, way: str, mb: int) -> Lap:
        """Move so much, shared out over the nodes at the same time."""
        if not self.addresses:
            return self._copy(mb)
        share = mb * 1_000_000 // len(self.addresses)
        with self.timed() as lap, ThreadPoolExecutor(len(self.addresses)) as pool:
            list(pool.map(lambda address: flow.carry(address, way, share), self.addresses))
        return lap

    def _copy(self, mb: int) -> Lap:
        whole = memoryview(bytearray(b"\1" * 8_000_000))
        target = bytearray(len(whole))  # in pieces into the same place: fresh memory would cost page faults too
        with self.timed() as lap:
            for _ in range(max(1, mb // 8)):
                target[:] = whole
        return lap


def _payload_in(stage: _Paths, run: int, count: int, mb: int) -> Figures:
    return _rate(stage.move("up", count * mb), count * mb)


def _payload_out(stage: _Paths, run: int, count: int, mb: int) -> Figures:
    return _rate(stage.move("down", count * mb), count * mb)


def _shared(stage: _Paths, run: int, count: int, mb: int) -> Figures:
    # In memory one copy serves all nodes; over a network each gets its own.
    return stage.move("up", mb * (len(stage.addresses) or 1)).costs(count)


def _upload(stage: _Paths, run: int, mb: int) -> Figures:
    return _rate(stage.move("up", mb), mb)


def _rate(lap: Lap, mb: int) -> Figures:
    return {"mb_per_s": mb / lap.wall_s, **lap.costs(1)}


@contextlib.contextmanager
def _memcpy(setting: Setting) -> Iterator[Stage]:
    yield _Paths(setting, 1)


@contextlib.contextmanager
def _loopback(setting: Setting) -> Iterator[Stage]:
    with contextlib.ExitStack() as stack:
        command = [sys.executable, str(_SOURCE), "127.0.0.1"]
        ports = [stack.enter_context(_server(command)) for _ in range(setting.nodes)]
        yield _Paths(setting, 1, addresses=[("127.0.0.1", port) for port in ports])


@contextlib.contextmanager
def _hosts(setting: Setting, *, forward: bool) -> Iterator[Stage]:
    from benchmarks.hosts import hosts

    script = f"exec python3.{sys.version_info.minor} -c {shlex.quote(_SOURCE.read_text())} 0.0.0.0"
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(hosts(setting))
        addresses = []
        for host in lab.all:
            port = stack.enter_context(_server([*lab.ssh(host), script]))
            if forward:
                addresses.append(stack.enter_context(_forward(lab.ssh(host), port)))
            else:
                addresses.append((host.address, port))
        yield _Paths(setting, 1, meter=lab.meter, addresses=addresses)


@contextlib.contextmanager
def _server(command: list[str]) -> Iterator[int]:
    """`flow` somewhere, as long as the block lasts; its port."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())


@contextlib.contextmanager
def _forward(ssh: list[str], port: int) -> Iterator[_Address]:
    """A port here that OpenSSH leads to a port there."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address: _Address = probe.getsockname()
    command = [*ssh[:-1], "-N", "-o", "ExitOnForwardFailure=yes", "-L", f"{address[1]}:127.0.0.1:{port}", ssh[-1]]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as client:
        try:
            _wait_for(address)
            yield address
        finally:
            client.terminate()


def _wait_for(address: _Address) -> None:
    end = time.monotonic() + 10
    while True:
        try:
            return flow.carry(address, "down", 1)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def _open_on_hosts(forward: bool) -> Opener:
    return lambda setting: _hosts(setting, forward=forward)


_BULK: dict[str, Callable[..., Figures]] = {
    "payload_in": _payload_in,
    "payload_out": _payload_out,
    "shared": _shared,
}
_LAB: Place = "lab"

PEERS = (
    Peer("memcpy", "limit: copying the same bytes in memory", _memcpy, instead=_BULK),
    Peer("tcp", "limit: the same bytes over plain TCP on loopback", _loopback, instead=_BULK),
    Peer(
        "tcp-lab",
        "limit: the same bytes over plain TCP to the lab's hosts",
        _open_on_hosts(forward=False),
        place=_LAB,
        instead=_BULK | {"wan_upload": _upload},
    ),
    Peer(
        "ssh-forward",
        "limit: the same bytes through ssh -L (aes128-gcm) to the lab's hosts",
        _open_on_hosts(forward=True),
        place=_LAB,
        instead=_BULK | {"wan_upload": _upload},
    ),
)
