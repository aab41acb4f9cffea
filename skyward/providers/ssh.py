"""Machines that already exist, by address. Nothing here speaks SSH; the transport "ssh" does."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from skyward.core.errors import ConfigError, ProvisioningError
from skyward.core.interfaces import Trait
from skyward.core.spec import Endpoint, Machine, MachineId, Offer, Offers, Order, Resources, parse_address

__all__ = ["SSH"]


@dataclass(frozen=True)
class SSH:
    """Hosts that are reached over SSH.

    A host is at most one node, of one pool, at any time. Its host key must be known (known_hosts), as with the ssh
    command; ``~/.ssh/config`` and ssh-agent are used in the same way. On the host, a private environment with the
    driver's minor version of Python is created under ``~/.cache/skyward``.

    Parameters
    ----------
    hosts
        For example ``["10.0.0.5", "user@box:2222", "[::1]:22", "alias-in-ssh-config"]``.
    user
        Login name where the host names none.
    key
        Path of a private key, or several; tried before those of ssh-agent.
    known_hosts
        Path of a known_hosts file, or a list of lines in its format; None: what ~/.ssh/config says.
    jump
        Jump host, or several separated by commas, as ``ssh -J`` takes them.
    config
        Path of a configuration file to use instead of ~/.ssh/config.
    agent_forwarding
        Whether tasks may use the driver's ssh-agent.
    python
        Interpreter to use on the hosts, a path or a name; None: one with the driver's minor version is searched for.
    prelude
        Lines that a login shell (bash where there is one) runs first on each host, such as
        ``"module load python/3.12"``. What they set applies to the installation and to all tasks.

    Raises
    ------
    ConfigError
        A value is wrong, a host is named twice, or a file does not exist.
    """

    name: ClassVar[str] = "ssh"
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.BATCH})
    usual_start: ClassVar[float] = 5.0

    hosts: Sequence[str] = field(metadata={"example": "hosts=[box1,box2]"})
    user: str | None = None
    key: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None
    known_hosts: str | os.PathLike[str] | Sequence[str] | None = None
    jump: str | None = None
    config: str | os.PathLike[str] | None = None
    agent_forwarding: bool = False
    python: str | os.PathLike[str] | None = None
    prelude: str | None = None
    _reservations: _Reservations = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.hosts, str) or not isinstance(self.hosts, Sequence):
            raise ConfigError(
                f'SSH hosts={self.hosts!r} is not a list of hosts; write for example hosts=["10.0.0.5"], '
                "or on the command line 'ssh:hosts=[10.0.0.5]'"
            )
        object.__setattr__(self, "hosts", tuple(self.hosts))
        if not self.hosts:
            raise ConfigError("SSH hosts is empty; name at least one host")
        for option in ("user", "jump", "prelude"):
            value = getattr(self, option)
            if value is not None and (not isinstance(value, str) or not value.strip()):
                what = "is not a string of shell commands" if option == "prelude" else "is not a name"
                raise ConfigError(f"SSH {option}={value!r} {what}")
        python: object = self.python
        if python is not None and not (isinstance(python, (str, os.PathLike)) and str(python).strip()):
            raise ConfigError(f"SSH python={python!r} is neither a path nor the name of a program on the hosts")
        for hop in (self.jump or "").split(",") if self.jump not in (None, "none") else ():
            parse_address(hop.strip(), "SSH jump")
        options = self._options()
        machines: dict[tuple[str | None, str, int], Machine] = {}
        for text in self.hosts:
            user, host, port = parse_address(text, "SSH hosts")
            user = user or self.user
            place = (user, host.lower(), port or 22)
            if place in machines:
                raise ConfigError(f"SSH hosts names {machines[place].name!r} and {text!r}, which are the same host")
            endpoint = Endpoint(self.name, host, port, user, options)
            machines[place] = Machine(
                f"ssh:{endpoint}",
                endpoint,
                text,
                python="" if self.python is None else os.fspath(self.python),
                prelude=self.prelude or "",
            )
        object.__setattr__(self, "_reservations", _Reservations(machines.values()))

    def _options(self) -> Mapping[str, object]:
        options: dict[str, object] = {"agent_forwarding": bool(self.agent_forwarding)}
        if self.key is not None:
            options["keys"] = [_file(key, "key") for key in _several(self.key)]
        if self.known_hosts is not None:
            a_path = isinstance(self.known_hosts, (str, os.PathLike))
            options["known_hosts"] = (
                _file(self.known_hosts, "known_hosts") if a_path else [str(line) for line in _several(self.known_hosts)]
            )
        if self.jump is not None:
            options["jump"] = self.jump
        if self.config is not None:
            options["config"] = _file(self.config, "config")
        return options

    @property
    def max_machines(self) -> int:
        """How many hosts there are."""
        return len(self.hosts)

    def offers(self, resources: Resources) -> Sequence[Offer]:
        """Return an empty list: hosts are given, not chosen by offer."""
        return Offers()

    def create(self, order: Order) -> Sequence[Machine]:
        """Hand out free hosts, the least recently released first.

        Raises
        ------
        ProvisioningError
            All are in use.
        """
        machines = self._reservations.take(order.count, order.tag)
        if not machines:
            raise ProvisioningError(
                f"all {len(self.hosts)} host(s) of SSH are in use; name more hosts or ask for fewer nodes"
            )
        return machines

    def machines(self, tag: str) -> Sequence[Machine]:
        """List the hosts that a pool has in use."""
        return self._reservations.taken(tag)

    def destroy(self, ids: Sequence[MachineId]) -> None:
        """Release hosts, which can be handed out again. The hosts themselves are left as they are."""
        self._reservations.release(ids)


class _Reservations:
    """Which hosts are free, and which pool has which."""

    def __init__(self, machines: Iterable[Machine]) -> None:
        self._lock = threading.Lock()  # guards both tables; create and destroy come from several threads
        self._free: deque[Machine] = deque(machines)
        self._taken: dict[MachineId, tuple[str, Machine]] = {}

    def take(self, count: int, tag: str) -> list[Machine]:
        with self._lock:
            machines = [self._free.popleft() for _ in range(min(count, len(self._free)))]
            self._taken.update((machine.id, (tag, machine)) for machine in machines)
            return machines

    def taken(self, tag: str) -> list[Machine]:
        with self._lock:
            return [machine for holder, machine in self._taken.values() if holder == tag]

    def release(self, ids: Sequence[MachineId]) -> None:
        with self._lock:
            for machine_id in ids:
                if machine_id in self._taken:
                    # At the end of the queue: a host that just failed is the last to be tried again.
                    self._free.append(self._taken.pop(machine_id)[1])


def _several(value: object) -> Sequence[object]:
    return [value] if isinstance(value, (str, os.PathLike)) or not isinstance(value, Sequence) else value


def _file(value: object, name: str) -> str:
    if not isinstance(value, (str, os.PathLike)):
        raise ConfigError(f"SSH {name}={value!r} is not a path")
    path = Path(os.fspath(value)).expanduser()
    if not path.is_file():
        raise ConfigError(f"SSH {name}={str(value)!r}: there is no such file ({path.absolute()})")
    return str(path)
