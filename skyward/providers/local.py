"""Nodes on this machine: each is an agent that is a child process of the driver."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import selectors
import struct
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, ClassVar

import msgpack

from skyward.core.errors import ProvisioningError
from skyward.core.interfaces import Trait
from skyward.core.spec import Endpoint, Machine, MachineId, Offer, Order, Resources

__all__ = ["Local"]

_locals: weakref.WeakSet[Local] = weakref.WeakSet()
_START = 30.0  # seconds that an agent may take until it listens
_END = 5.0  # seconds that it may take to end by itself once its lifeline is cut


@dataclass(frozen=True, eq=False)
class Local:
    """Nodes on this machine, with the driver's own Python and packages. Needs no account and no set-up.

    Notes
    -----
    The agents end with the driver however it ends: each watches a pipe that the driver holds.
    """

    name: ClassVar[str] = "local"
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.BATCH, Trait.DESTROYS, Trait.DRIVER_ENVIRONMENT})

    _agents: dict[MachineId, tuple[str, subprocess.Popen[bytes]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)
    _ids: itertools.count[int] = field(default_factory=itertools.count, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _locals.add(self)

    def offers(self, resources: Resources) -> Sequence[Offer]:
        """This machine, for nothing."""
        return [Offer("local", vcpus=os.cpu_count(), region="here", price=0.0)]

    def create(self, order: Order) -> Sequence[Machine]:
        """Start agents, all at the same time."""
        with tempfile.TemporaryFile() as errors:  # not a pipe: nobody reads it unless an agent fails to start
            return self._create(order, errors)

    def _create(self, order: Order, errors: IO[bytes]) -> Sequence[Machine]:
        started = [(os.urandom(32), self._start(errors)) for _ in range(order.count)]
        machines = []
        try:
            for secret, process in started:
                id = f"local-{next(self._ids)}-{process.pid}"
                with self._lock:
                    self._agents[id] = (order.tag, process)
                endpoint = Endpoint("tcp", "127.0.0.1")
                address = _greet(process, secret, order.orphan_timeout, errors)
                machines.append(Machine(id, endpoint, "local", address, secret))
        except BaseException:
            for _, process in started:
                process.kill()
                process.wait()
            raise
        return machines

    def _start(self, errors: IO[bytes]) -> subprocess.Popen[bytes]:
        # The agent must find skyward even where the driver runs from a checkout that is not installed.
        package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        try:
            return subprocess.Popen(
                [sys.executable, "-m", "skyward.worker.agent"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C is the driver's to handle
            )
        except OSError as error:
            raise ProvisioningError(f"can't start an agent on this machine: {error}") from error

    def machines(self, tag: str) -> Sequence[Machine]:
        """Agents of the pool that still run."""
        with self._lock:
            alive = [id for id, (owner, process) in self._agents.items() if owner == tag and process.poll() is None]
        return [Machine(id, Endpoint("tcp", "127.0.0.1"), "local") for id in alive]

    def destroy(self, ids: Sequence[MachineId]) -> None:
        """End these agents, all at the same time, and wait for them."""
        with self._lock:
            ending = [process for _, process in (self._agents.pop(id) for id in ids if id in self._agents)]
        for process in ending:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        for process in ending:
            try:
                process.wait(_END)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _greet(process: subprocess.Popen[bytes], secret: bytes, orphan_timeout: float, errors: IO[bytes]) -> str:
    """Tell a new agent what it must know, and learn where it listens."""
    assert process.stdin is not None
    assert process.stdout is not None
    start = msgpack.packb({"listen": "tcp", "secret": secret, "lifeline": True, "orphan_timeout": orphan_timeout})
    line = b""
    with contextlib.suppress(BrokenPipeError), selectors.DefaultSelector() as ready:
        process.stdin.write(struct.pack("!I", len(start)) + start)
        process.stdin.flush()
        ready.register(process.stdout, selectors.EVENT_READ)
        if ready.select(_START):
            line = process.stdout.readline()
    try:
        return str(json.loads(line)["listening"])
    except (ValueError, KeyError, TypeError) as error:
        process.kill()
        process.wait()
        errors.seek(0)
        said = errors.read().decode(errors="replace")[-2000:]
        raise ProvisioningError(
            f"an agent on this machine did not start ({sys.executable} -m skyward.worker.agent); it said:\n{said}"
        ) from error


def _let_go() -> None:
    """A fork of the driver holds the agents' lifelines too: it must not keep them alive when the driver has died."""
    for provider in list(_locals):
        for _, process in list(provider._agents.values()):  # noqa: SLF001  no lock: its holder may be no more
            if process.stdin is not None:
                with contextlib.suppress(OSError):
                    process.stdin.close()


os.register_at_fork(after_in_child=_let_go)
