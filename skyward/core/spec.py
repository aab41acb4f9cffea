"""The values that users and providers speak in: frozen, checked when they are made, and knowing no cloud.

A bad value raises `ConfigError` at once, with the argument's name, what was given and what is allowed.
"""

from __future__ import annotations

import enum
import ipaddress
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from skyward.core import requirements
from skyward.core.errors import ConfigError, SkywardError

__all__ = [
    "Allocation",
    "Endpoint",
    "Executor",
    "Image",
    "KeyPair",
    "Machine",
    "MachineId",
    "MachineState",
    "Nodes",
    "Offer",
    "Offers",
    "Order",
    "Resources",
    "S3Volume",
    "Volume",
    "Worker",
    "parse_address",
    "parse_count",
    "parse_memory",
    "parse_price",
    "parse_seconds",
]

Executor: TypeAlias = Literal["auto", "thread", "process"]
Allocation: TypeAlias = Literal["spot-if-available", "always-spot", "on-demand", "cheapest"]
MachineId: TypeAlias = str

EXECUTORS: tuple[Executor, ...] = ("auto", "thread", "process")
ALLOCATIONS: tuple[Allocation, ...] = ("spot-if-available", "always-spot", "on-demand", "cheapest")

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_MEMORY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", re.IGNORECASE)

_ADDRESS = re.compile(
    r"(?:([^@\s:/][^\s:/]*)@)?"  # user, which may hold an @ itself
    r"(?:\[([^\s\]]+)\]|([^\s:@\[\]]*:[^\s:@\[\]]*:[^\s@\[\]]*)|(\w[\w.-]*))"  # [IPv6], IPv6, or a name or IPv4
    r"(?::(\d{1,9}))?",
    re.ASCII,
)


def parse_memory(value: object, name: str = "memory") -> int:
    """Bytes from a number of bytes or a text such as ``"32GB"`` (10**9) or ``"16GiB"`` (2**30).

    Raises
    ------
    ConfigError
        It is neither, or not positive.
    """
    if isinstance(value, str):
        match = _MEMORY.fullmatch(value)
        if match:
            number, unit, binary = match.groups()
            size = float(number) * (_BINARY if binary and unit else _UNITS)[unit.upper()]
            if size >= 1:
                return int(size)
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and 1 <= value < math.inf:
        return int(value)
    raise ConfigError(f'{name}={value!r} is not an amount of memory; write for example "32GB", "16GiB" or bytes')


def parse_count(value: object, name: str, least: int = 1) -> int:
    """Parse a whole number of at least `least`, from an int or anything with ``__index__`` (numpy's ints too).

    Raises
    ------
    ConfigError
        It is not.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        count = value.__index__()  # type: ignore[attr-defined]
    except (AttributeError, TypeError):
        raise ConfigError(f"{name}={value!r} is not a whole number; give one of at least {least}") from None
    if count < least:
        raise ConfigError(f"{name}={value!r} is too small; give a whole number of at least {least}")
    return int(count)


def parse_seconds(value: object, name: str) -> float | None:
    """A positive number of seconds, or None for no limit.

    Raises
    ------
    ConfigError
        It is neither.
    """
    if value is None:
        return None
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < float(value):  # type: ignore[arg-type]
        raise ConfigError(f"{name}={value!r} is not a number of seconds; give a positive number, or None for no limit")
    return None if math.isinf(float(value)) else float(value)  # type: ignore[arg-type]


def parse_price(value: object, name: str = "max_price") -> float | None:
    """A price in US dollars per hour, or None for no limit.

    Raises
    ------
    ConfigError
        It is neither.
    """
    if value is None:
        return None
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= float(value) < math.inf:  # type: ignore[arg-type]
        raise ConfigError(
            f"{name}={value!r} is not a price; give US dollars per hour and machine, or None for no limit"
        )
    return float(value)  # type: ignore[arg-type]


def parse_address(text: object, name: str) -> tuple[str | None, str, int | None]:
    """User, host and port from ``"10.0.0.5"``, ``"user@box:2222"`` or ``"[::1]:22"``; None for what is left out.

    Raises
    ------
    ConfigError
        It is none of these.
    """
    match = _ADDRESS.fullmatch(text) if isinstance(text, str) else None
    user, bracketed, bare, plain, port = match.groups() if match else (None,) * 5
    if not plain:
        try:
            ipaddress.IPv6Address(bracketed or bare or "")
        except ValueError:
            raise ConfigError(
                f'{name}={text!r} is not a host; write for example "10.0.0.5", "user@box:2222" or "[::1]:22"'
            ) from None
    if port and not 0 < int(port) < 65536:
        raise ConfigError(f"{name}={text!r}: port {port} is not between 1 and 65535")
    return user, str(bracketed or bare or plain), int(port) if port else None


def _strings(value: object, name: str) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"{name}={value!r} is not a list of strings")
    return tuple(value)


def _texts(value: object, name: str) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(text, str) for item in value.items() for text in item):
        raise ConfigError(f"{name}={value!r} is not a mapping of strings to strings")
    return dict(value)


def _one_of(value: object, name: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name}={value!r} is unknown; it is one of {', '.join(map(repr, allowed))}")


@dataclass(frozen=True, slots=True)
class Worker:
    """How each node runs tasks.

    Parameters
    ----------
    concurrency
        Slots of each node: how many tasks run there at a time.
    executor
        ``"process"``, which ``"auto"`` means too: each slot is a process of its own, so that tasks share no globals and
        no interpreter lock. ``"thread"``: the slots are threads of one process, for tasks that mostly wait or that
        share memory.
    attempts
        How many times a task is started at most, in all, when its process or node dies; with 1 it is never started
        again. A task that raised an exception of its own is never started again.
    threads
        BLAS and OpenMP threads of each slot; None means the node's cores // concurrency, but at least 1.

    Raises
    ------
    ConfigError
        A value is out of range.
    """

    concurrency: int = 1
    executor: Executor = "auto"
    attempts: int = 4
    threads: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "concurrency", parse_count(self.concurrency, "concurrency"))
        object.__setattr__(self, "attempts", parse_count(self.attempts, "attempts"))
        if self.threads is not None:
            object.__setattr__(self, "threads", parse_count(self.threads, "threads"))
        _one_of(self.executor, "executor", EXECUTORS)


@dataclass(frozen=True, slots=True)
class Image:
    """What a node's environment holds.

    Parameters
    ----------
    python
        Minor version such as ``"3.12"``; None means the driver's. Any other is an error, since pickled functions do not
        cross minor versions.
    pip
        Requirements as pip spells them, with hashes where wanted. On `Local`, where the driver's own environment is
        used, they must be installed already.
    apt
        Debian packages, for nodes where the login user is root.
    env
        Environment variables of every task, and of the installation of packages.
    index
        Address of the package index; None means whatever the node's own configuration says.
    extra_index
        Further package indexes to look in.
    preload
        Modules that the slots' fork server imports once, so that no task has to.
    requirements
        Path of a requirements file, or of a ``pyproject.toml`` whose dependencies are meant. It is read at once: its
        lines are added to `pip` and `constraints`, its indexes to `index` and `extra_index`.
    constraints
        Requirements that limit the versions of whatever is installed, and install nothing by themselves.

    Raises
    ------
    ConfigError
        A value is of the wrong kind, a file can't be read, or nodes could not install what is named (a path of this
        machine, say).
    """

    python: str | None = None
    pip: Sequence[str] = ()
    apt: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    index: str | None = None
    extra_index: Sequence[str] = ()
    preload: Sequence[str] = ()
    requirements: str | os.PathLike[str] | None = None
    constraints: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("pip", "apt", "extra_index", "preload", "constraints"):
            object.__setattr__(self, name, _strings(getattr(self, name), f"Image {name}"))
        for name in ("pip", "constraints"):
            lines = tuple(requirements.check(line, f"Image {name}={line!r}") for line in getattr(self, name))
            object.__setattr__(self, name, lines)
        self._read_requirements()
        object.__setattr__(self, "env", _texts(self.env, "Image env"))
        driver = f"{sys.version_info.major}.{sys.version_info.minor}"
        if self.python not in (None, driver):
            raise ConfigError(
                f"Image python={self.python!r}, but this is Python {driver}: pickled functions do not cross minor "
                f"versions. Leave python out, or run the driver with Python {self.python}"
            )

    def _read_requirements(self) -> None:
        """Take over what the file says, once: an image that is made of this one does not read it again."""
        if self.requirements is None:
            return
        if not isinstance(self.requirements, (str, os.PathLike)):
            raise ConfigError(f"Image requirements={self.requirements!r} is not the path of a file")
        wanted = requirements.read(self.requirements)
        object.__setattr__(self, "pip", (*self.pip, *wanted.pip))
        object.__setattr__(self, "constraints", (*self.constraints, *wanted.constraints))
        object.__setattr__(self, "index", self.index or wanted.index)
        object.__setattr__(self, "extra_index", (*self.extra_index, *wanted.extra_index))
        object.__setattr__(self, "requirements", None)

    @property
    def python_version(self) -> str:
        """Minor version of Python on the nodes, such as ``"3.11"``: the driver's."""
        return f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True, slots=True)
class Volume:
    """Storage that every node shows at `path`. Not in this version: a pool that is given one raises `ConfigError`."""

    path: str


@dataclass(frozen=True, slots=True)
class S3Volume(Volume):
    """Objects of an S3 bucket, under a prefix, as files at `path` on every node. Not in this version; see `Volume`.

    Parameters
    ----------
    path
        Where the nodes show it, such as ``"/data"``.
    bucket
        Name of the bucket.
    prefix
        Only objects whose keys begin with it.
    read_only
        Whether tasks can't write there.
    """

    bucket: str
    prefix: str = ""
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class Resources:
    """What each node must have.

    Parameters
    ----------
    machine
        Exact machine type.
    accelerator
        Such as ``"A100"`` or ``"H100:8"``.
    vcpus
        Minimum number of cores.
    memory
        Minimum memory: bytes, or a text such as ``"32GB"``.
    max_price
        Maximum price per machine, in US dollars per hour; machines whose price is not known are left out then.

    Raises
    ------
    ConfigError
        A value is out of range.
    """

    machine: str | None = None
    accelerator: str | None = None
    vcpus: int | None = None
    memory: int | str | None = None
    max_price: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_price", parse_price(self.max_price))
        for name in ("machine", "accelerator"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value.strip()):
                raise ConfigError(f"{name}={value!r} is not a name")
        if self.accelerator is not None:
            count = self.accelerator.partition(":")[2]
            if ":" in self.accelerator and not (count.strip().isdecimal() and int(count) > 0):
                raise ConfigError(f'accelerator={self.accelerator!r} is not a model or model:count, such as "H100:8"')
        if self.vcpus is not None:
            object.__setattr__(self, "vcpus", parse_count(self.vcpus, "vcpus"))
        if self.memory is not None:
            object.__setattr__(self, "memory", parse_memory(self.memory))


@dataclass(frozen=True, slots=True)
class Nodes:
    """How many nodes: at least `least` before work begins, `most` wanted."""

    least: int
    most: int

    @classmethod
    def parse(cls, value: object) -> Nodes:
        """From ``nodes=4`` or ``nodes=(2, 8)``.

        Raises
        ------
        ConfigError
            It is neither.
        """
        if isinstance(value, (tuple, list)):
            if len(value) != 2:
                raise ConfigError(f"nodes={value!r} is not a pair (min, max)")
            least, most = (parse_count(item, "nodes") for item in value)
            if least > most:
                raise ConfigError(f"nodes={value!r}: the least number comes first; write nodes=({most}, {least})")
            return cls(least, most)
        count = parse_count(value, "nodes")
        return cls(count, count)


@dataclass(frozen=True, slots=True)
class Offer:
    """A kind of machine that a provider has, in one place and at one price.

    Attributes
    ----------
    machine
        The provider's name of the kind.
    vcpus, memory
        Cores, and bytes of memory; None where the provider does not say.
    accelerator, accelerators
        Model as the provider spells it, and how many of them.
    accelerator_memory
        Bytes of memory of each accelerator.
    region
        Region, zone or country, as the provider calls it.
    spot
        Whether the machine may be taken back.
    price
        US dollars per hour of the whole machine; None when it is not known.
    extra
        What the provider itself needs to create it; nobody else looks into it.
    zone_of
        Where `region` is a zone: the region that it belongs to. What is refused for a region is refused for its zones.
    """

    machine: str
    vcpus: int | None = None
    memory: int | None = None
    accelerator: str | None = None
    accelerators: int = 0
    accelerator_memory: int | None = None
    region: str | None = None
    spot: bool = False
    price: float | None = None
    extra: Mapping[str, object] = field(default_factory=dict, compare=False, repr=False)
    zone_of: str | None = None

    def __str__(self) -> str:
        price = "price unknown" if self.price is None else f"${self.price:.4g}/h"
        return f"{self.machine}{' spot' if self.spot else ''}{f' in {self.region}' if self.region else ''}, {price}"


class Offers(list[Offer]):
    """Offers, and why some of a provider's places gave none.

    Attributes
    ----------
    refused
        One error for each place (a region, say) that could not be asked; those of the others can be had all the same.
    """

    def __init__(self, offers: Iterable[Offer] = (), refused: Iterable[SkywardError] = ()) -> None:
        super().__init__(offers)
        self.refused = tuple(refused)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An SSH key: the private half in OpenSSH's format, and the public half as one line."""

    private: str = field(repr=False)
    public: str


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a machine is reached, and how.

    Attributes
    ----------
    transport
        Name of a registered transport: ``"tcp"``, ``"ssh"``, ``"memory"``.
    host, port
        Address.
    user
        Login name; None leaves it to the transport's configuration.
    options
        What the one transport needs besides (keys, known hosts, ...); only the transport looks into it.
    """

    transport: str
    host: str
    port: int | None = None
    user: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        port = f":{self.port}" if self.port else ""
        return f"{user}{self.host}{port}"


class MachineState(enum.Enum):
    """What a provider says of a machine."""

    STARTING = "starting"
    RUNNING = "running"
    FAILED = "failed"  # it will not run any more, and may still cost
    TAKEN_BACK = "taken back"  # the provider ended or stopped a spot machine; it may still cost
    GONE = "gone"  # it exists no more and costs nothing


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine that a provider made or has.

    Attributes
    ----------
    id
        The provider's name for it.
    endpoint
        Where it is reached; None until that is known. A rented machine's needs no keys: core adds those of its order.
    name
        What people call it; shown in output and errors.
    agent
        Address of an agent that already runs there, for a transport's `open_channel`; None when it has to be
        bootstrapped over a shell.
    secret
        What the running agent and we prove to know.
    state
        What the provider says of it.
    order
        Name of the order that it was made for, as it stands on the machine itself.
    tag
        Name of the pool that it belongs to, as it stands on the machine itself.
    detail
        Why it failed or ended, in the provider's words.
    python, prelude
        For one that has to be bootstrapped: the interpreter to use there, and lines for a login shell that make the
        environment of all that is run. Empty for what is found, and none.
    """

    id: MachineId
    endpoint: Endpoint | None
    name: str
    agent: str | None = None
    secret: bytes = field(default=b"", repr=False)
    state: MachineState = MachineState.RUNNING
    order: str = ""
    tag: str = ""
    detail: str = ""
    python: str = ""
    prelude: str = ""


@dataclass(frozen=True, slots=True)
class Order:
    """What a provider is asked to create.

    Attributes
    ----------
    tag
        Name of the pool; to be put on everything that is made.
    count
        Machines wanted; 1 where the provider lacks ``Trait.BATCH``.
    resources, allocation
        What the user asked for.
    orphan_timeout
        Seconds after which a machine that has heard nothing ends by itself.
    name
        Name of this order, of letters, digits and hyphens, at most 50; to be put on the machines too.
    offer
        Which of the provider's offers to take; None where it makes none.
    host_key
        The SSH host key that the machine must show; None for providers whose machines are not rented.
    user_key
        Public key line of who may log in.
    """

    tag: str
    count: int
    resources: Resources
    allocation: Allocation = "spot-if-available"
    orphan_timeout: float = 600.0
    name: str = ""
    offer: Offer | None = None
    host_key: KeyPair | None = None
    user_key: str = ""

    def __post_init__(self) -> None:
        _one_of(self.allocation, "allocation", ALLOCATIONS)
