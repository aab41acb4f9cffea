"""Nodes on this machine: each is an agent, in a child process of the driver."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, ClassVar, NamedTuple

from skyward.core.errors import ProvisioningError
from skyward.core.interfaces import Trait
from skyward.core.spec import Endpoint, Machine, MachineId, Offer, Offers, Order, Resources
from skyward.providers.local_agents import Process, greet, start

__all__ = ["Local"]

_locals: weakref.WeakSet[Local] = weakref.WeakSet()
_END = 5.0  # seconds for an agent to exit by itself once its lifeline is cut


class _Started(NamedTuple):
    """Agents that were started at once, the file where they write errors, and the variables that they have."""

    processes: Sequence[Process]
    errors: IO[bytes]
    variables: Mapping[str, str]

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
        self.errors.close()


@dataclass(frozen=True, eq=False)
class Local:
    """Nodes on this machine, with the driver's own Python and packages. Needs no account and no setup.

    Notes
    -----
    The agents exit with the driver, however it ends: each watches a pipe that the driver holds open.
    """

    name: ClassVar[str] = "local"
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.BATCH, Trait.DESTROYS, Trait.DRIVER_ENVIRONMENT})
    usual_start: ClassVar[float] = 0.5

    _agents: dict[MachineId, tuple[str, Process]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _prepared: dict[str, _Started] = field(default_factory=dict, init=False, repr=False, compare=False)  # by tag
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)
    _ids: itertools.count[int] = field(default_factory=itertools.count, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _locals.add(self)

    def offers(self, resources: Resources) -> Sequence[Offer]:
        """Return this machine, at no cost."""
        return Offers([Offer("local", vcpus=os.cpu_count(), region="here", price=0.0)])

    def prepare(self, order: Order) -> None:
        """Start the agents, which import what they need while the driver does the same."""
        with contextlib.suppress(ProvisioningError):  # `create` meets it again, and raises it
            started = _start(order.count)
            with self._lock:
                self._prepared[order.tag] = started

    def discard(self, tag: str) -> None:
        """Kill the agents that `create` has not used."""
        if (started := self._take(tag)) is not None:
            started.kill()

    def _take(self, tag: str) -> _Started | None:
        with self._lock:
            return self._prepared.pop(tag, None)

    def create(self, order: Order) -> Sequence[Machine]:
        """Start agents, all at once, unless they are prepared."""
        started = self._take(order.tag)
        # A plugin may have set variables since, for all tasks.
        if started is not None and (len(started.processes) != order.count or started.variables != dict(os.environ)):
            started.kill()
            started = None
        started = started or _start(order.count)
        with started.errors:
            return self._create(order, started)

    def _create(self, order: Order, started: _Started) -> Sequence[Machine]:
        machines = []
        try:
            for process in started.processes:
                secret = os.urandom(32)
                address = greet(process, secret, order.orphan_timeout, started.errors, cache=_cache())
                id = f"local-{next(self._ids)}-{process.pid}"
                with self._lock:
                    self._agents[id] = (order.tag, process)
                machines.append(Machine(id, Endpoint("tcp", "127.0.0.1"), "local", address, secret))
        except BaseException:
            started.kill()
            raise
        return machines

    def machines(self, tag: str) -> Sequence[Machine]:
        """List the pool's agents that are still running."""
        with self._lock:
            alive = [id for id, (owner, process) in self._agents.items() if owner == tag and process.is_alive]
        return [Machine(id, Endpoint("tcp", "127.0.0.1"), "local") for id in alive]

    def destroy(self, ids: Sequence[MachineId]) -> None:
        """End these agents, all at once, and wait for them."""
        with self._lock:
            ending = [process for _, process in (self._agents.pop(id) for id in ids if id in self._agents)]
        for process in ending:
            process.let_go()
        for process in ending:
            process.end(_END)


def _start(count: int) -> _Started:
    variables = dict(os.environ)
    try:
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - no pipe either: nobody reads it unless an agent does not start
    except OSError as error:
        raise ProvisioningError(f"can't start an agent on this machine: {error}") from error
    try:
        return _Started(start(count, errors), errors, variables)
    except BaseException:
        errors.close()
        raise


def _cache() -> str:
    """The folder for what agents keep between pools, the same as on other hosts."""
    import platformdirs  # noqa: PLC0415 - loaded while the agent starts

    return platformdirs.user_cache_dir("skyward")


def _let_go() -> None:
    """Close the lifelines in a fork of the driver, which must not keep agents alive when the driver has died."""
    for provider in list(_locals):
        # no lock: its holder may not exist here
        prepared = [process for started in list(provider._prepared.values()) for process in started.processes]  # noqa: SLF001
        for process in [*prepared, *(process for _, process in list(provider._agents.values()))]:  # noqa: SLF001
            with contextlib.suppress(OSError):
                process.lifeline.close()


os.register_at_fork(after_in_child=_let_go)
