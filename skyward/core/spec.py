"""The values that users and providers exchange: frozen, validated when constructed, and independent of any cloud.

A bad value raises `ConfigError` immediately, naming the argument, what was given and what is allowed.
"""

from __future__ import annotations

import enum
import ipaddress
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from skyward.core.billing import BY_THE_SECOND, Billing
from skyward.core.errors import ConfigError, SkywardError
from skyward.core.gpus import parse_gpus
from skyward.core.tables import html_table, text_table
from skyward.core.visible import in_html, shown

__all__ = [
    "Allocation",
    "Endpoint",
    "Executor",
    "KeyPair",
    "Machine",
    "MachineId",
    "MachineState",
    "Nodes",
    "Offer",
    "Offers",
    "Order",
    "Resources",
    "Worker",
    "parse_address",
    "parse_budget",
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


def parse_memory(value: object) -> int:
    """Parse an amount of memory into bytes: a number of bytes, ``"32GB"`` (10**9) or ``"16GiB"`` (2**30).

    Raises
    ------
    ConfigError
        `value` is neither, or is not positive.
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
    raise ConfigError(
        f'memory={value!r} is not an amount of memory; use, for example, "32GB", "16GiB" or a number of bytes'
    )


def parse_count(value: object, name: str, minimum: int = 1) -> int:
    """Parse a whole number, from an int or anything with ``__index__`` (numpy's ints too).

    Parameters
    ----------
    value
        The value to parse.
    name
        Name of the argument, for the error message.
    minimum
        Smallest value allowed.

    Raises
    ------
    ConfigError
        `value` is not a whole number, or is below `minimum`.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        count = value.__index__()  # type: ignore[attr-defined]
    except (AttributeError, TypeError):
        raise ConfigError(f"{name}={value!r} is not a whole number; it must be an integer, {minimum} or more") from None
    if count < minimum:
        raise ConfigError(f"{name}={value!r} is too small; it must be {minimum} or more")
    return int(count)


def parse_seconds(value: object, name: str) -> float | None:
    """Parse a positive number of seconds; None and infinity mean no limit.

    Raises
    ------
    ConfigError
        `value` is neither.
    """
    if value is None:
        return None
    seconds = _number(value)
    if not seconds > 0:
        raise ConfigError(f"{name}={value!r} is not a number of seconds; it must be positive, or None for no limit")
    return None if math.isinf(seconds) else seconds


def parse_price(value: object) -> float | None:
    """Parse a price in US dollars per hour; None means no limit.

    Raises
    ------
    ConfigError
        `value` is neither.
    """
    if value is None:
        return None
    price = _number(value)
    if not 0 <= price < math.inf:
        raise ConfigError(f"max_price={value!r} is not a price; give US dollars per hour, or None for no limit")
    return price


def parse_budget(value: object) -> float | None:
    """Parse a positive amount of US dollars; None means no limit.

    Raises
    ------
    ConfigError
        `value` is neither.
    """
    if value is None:
        return None
    amount = _number(value)
    if not 0 < amount < math.inf:
        raise ConfigError(
            f"budget={value!r} is not an amount of money; give US dollars for the whole pool, such as 3.0"
        )
    return amount


def _number(value: object) -> float:
    """The number that `value` is, or NaN, which compares with nothing."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def parse_address(text: object, name: str) -> tuple[str | None, str, int | None]:
    """Split ``"10.0.0.5"``, ``"user@box:2222"`` or ``"[::1]:22"`` into user, host and port; None for missing parts.

    Raises
    ------
    ConfigError
        `text` has none of these forms.
    """
    match = _ADDRESS.fullmatch(text) if isinstance(text, str) else None
    user, bracketed, bare, plain, port = match.groups() if match else (None,) * 5
    if not plain:
        try:
            ipaddress.IPv6Address(bracketed or bare or "")
        except ValueError:
            raise ConfigError(
                f'{name}={text!r} is not a host; use, for example, "10.0.0.5", "user@box:2222" or "[::1]:22"'
            ) from None
    if port and not 0 < int(port) < 65536:
        raise ConfigError(f"{name}={text!r}: port {port} is not between 1 and 65535")
    return user, str(bracketed or bare or plain), int(port) if port else None


def _one_of(value: object, name: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name}={value!r} is unknown; it must be one of {', '.join(map(repr, allowed))}")


@dataclass(frozen=True, slots=True)
class Worker:
    """How each node runs tasks.

    Parameters
    ----------
    concurrency
        Slots per node: how many tasks a node runs at once. With `gpus`, the default is ``"auto"``: as many as the
        node's GPUs allow. Otherwise it is 1.
    executor
        ``"process"``, or its synonym ``"auto"``: each slot is a separate process, so tasks share neither globals nor
        the interpreter lock. ``"thread"``: all slots are threads of one process, for tasks that mostly wait or that
        share memory.
    attempts
        Maximum number of times a task is started when its process or node dies; 1 means no retries. A task that raises
        an exception is never retried.
    threads
        BLAS and OpenMP threads per slot; None means the node's cores // concurrency, with a minimum of 1.
    gpus
        GPUs per slot, which sees only these; or 1/n, such as 0.5, for n slots that share one. None: each slot sees all.

    Raises
    ------
    ConfigError
        A value is out of range, or `gpus` is combined with ``executor="thread"``.
    """

    concurrency: int | Literal["auto"] | None = None
    executor: Executor = "auto"
    attempts: int = 4
    threads: int | None = None
    gpus: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "gpus", None if self.gpus is None else parse_gpus(self.gpus))
        object.__setattr__(self, "concurrency", self._checked_concurrency())
        object.__setattr__(self, "attempts", parse_count(self.attempts, "attempts"))
        if self.threads is not None:
            object.__setattr__(self, "threads", parse_count(self.threads, "threads"))
        _one_of(self.executor, "executor", EXECUTORS)
        if self.gpus is not None and self.executor == "thread":
            raise ConfigError(
                f"gpus={self.gpus!r} with executor='thread': threads of one process all see the same GPUs; leave out "
                "executor, so that slots are processes, or gpus"
            )

    @property
    def slots(self) -> int:
        """Slots per node; 0 means as many as its GPUs allow."""
        return self.concurrency if isinstance(self.concurrency, int) else 0

    def _checked_concurrency(self) -> int | Literal["auto"]:
        if self.concurrency in (None, "auto") and self.gpus is not None:
            return "auto"
        if self.concurrency == "auto":
            raise ConfigError("concurrency='auto' follows from the nodes' GPUs: give gpus=..., or a number of slots")
        return 1 if self.concurrency is None else parse_count(self.concurrency, "concurrency")


@dataclass(frozen=True, slots=True)
class Resources:
    """What each node must have.

    Parameters
    ----------
    machine
        Exact machine type.
    accelerator
        Model and optionally count, such as ``"A100"`` or ``"H100:8"``.
    vcpus
        Minimum number of cores.
    memory
        Minimum memory: bytes, or a string such as ``"32GB"``.
    max_price
        Maximum price per machine, in US dollars per hour. Excludes machines of unknown price.
    gpus
        Minimum number of GPUs, of whatever model.

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
    gpus: int = 0

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
    """How many nodes: the block starts once `min` are ready; `max` are requested."""

    min: int
    max: int

    @classmethod
    def parse(cls, value: object) -> Nodes:
        """Parse ``nodes=4`` or ``nodes=(2, 8)``.

        Raises
        ------
        ConfigError
            `value` is neither.
        """
        if isinstance(value, (tuple, list)):
            if len(value) != 2:
                raise ConfigError(f"nodes={value!r} is not a pair (min, max)")
            low, high = (parse_count(item, "nodes") for item in value)
            if low > high:
                raise ConfigError(f"nodes={value!r}: the minimum comes first; write nodes=({high}, {low})")
            return cls(low, high)
        count = parse_count(value, "nodes")
        return cls(count, count)


@dataclass(frozen=True, slots=True)
class Offer:
    """A machine type that a provider offers, in one place and at one price.

    Attributes
    ----------
    machine
        The provider's name for the type.
    vcpus, memory
        Number of cores, and memory in bytes; None if the provider does not say.
    accelerator, accelerators
        Model as the provider spells it, and how many.
    accelerator_memory
        Memory of each accelerator, in bytes.
    region
        Region, zone or country, as the provider names it: where `create` places the machine. A zone where offers differ
        by zone, as AWS's do; `zone_of` is then its region.
    spot
        Whether the provider may preempt the machine.
    price
        US dollars per hour for the whole machine, with its disk and its public address; None if unknown.
    extra
        What the provider needs to create the machine; opaque to everyone else.
    zone_of
        If `region` is a zone, the region it belongs to. A refusal for a region covers its zones.
    usable
        How many of the accelerators are GPUs that ``Worker(gpus=...)`` can assign to slots; None means all of them.
    architecture
        As ``uname -m`` prints it on such machines, ``"x86_64"`` or ``"aarch64"``; None if the provider does not say.
    billing
        The minimum time billed, and the billing unit.
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
    usable: int | None = None
    architecture: str | None = None
    billing: Billing = BY_THE_SECOND

    @property
    def gpus(self) -> int:
        """How many GPUs its slots can have."""
        return self.accelerators if self.usable is None else self.usable

    def __str__(self) -> str:
        price = "price unknown" if self.price is None else f"${self.price:.4g}/h"
        return f"{self.machine}{' spot' if self.spot else ''}{f' in {self.region}' if self.region else ''}, {price}"

    def _repr_html_(self) -> str:
        """How notebooks show it."""
        return html_table(_OFFER, [_cells(self)])


_OFFER = "machine", "cores", "memory", "accelerators", "region", "price"


def _cells(offer: Offer) -> list[str]:
    count = f"{offer.accelerators} x " if offer.accelerators > 1 else ""
    return [
        f"{offer.machine}{' spot' if offer.spot else ''}",
        "?" if offer.vcpus is None else str(offer.vcpus),
        "?" if offer.memory is None else f"{offer.memory / 2**30:.4g} GiB",
        f"{count}{offer.accelerator}" if offer.accelerator else "",
        offer.region or "",
        "?" if offer.price is None else f"${offer.price:.4g}/h",
    ]


class Offers(list[Offer]):
    """Offers, which print as a table, and why some of a provider's regions returned none.

    Attributes
    ----------
    refused
        One error for each place (a region, say) that could not be queried. The offers of the others are still valid.
    """

    def __init__(self, offers: Iterable[Offer] = (), refused: Iterable[SkywardError] = ()) -> None:
        super().__init__(offers)
        self.refused = tuple(refused)

    def __repr__(self) -> str:
        refusals = [f"refused: {error}" for error in self.refused]
        return shown("\n".join([*text_table(_OFFER, self._rows()), *refusals]) or "no offers")

    def _repr_html_(self) -> str:
        """How notebooks show them."""
        refusals = "".join(f"<br>refused: {in_html(str(error))}" for error in self.refused)
        return (html_table(_OFFER, self._rows()) + refusals) or "no offers"

    def _rows(self) -> list[list[str]]:
        return [_cells(offer) for offer in self]


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An SSH key: the private key in OpenSSH's format, and the public key as one line."""

    private: str = field(repr=False)
    public: str


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where and how to reach a machine.

    Attributes
    ----------
    transport
        Name of a registered transport: ``"tcp"``, ``"ssh"``, ``"memory"``.
    host, port
        Address.
    user
        Login name; None leaves it to the transport's configuration.
    options
        Anything else this transport needs (keys, known hosts, ...); opaque to everyone else.
    """

    transport: str
    host: str
    port: int | None = None
    user: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def is_loopback(self) -> bool:
        """Whether `host` is this machine's loopback interface."""
        return self.host in ("127.0.0.1", "::1", "localhost")

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        port = f":{self.port}" if self.port else ""
        return f"{user}{self.host}{port}"


class MachineState(enum.Enum):
    """The state of a machine, as its provider reports it."""

    STARTING = "starting"
    RUNNING = "running"
    FAILED = "failed"  # it will never run again, but may still be billed
    PREEMPTED = "preempted"  # a spot machine that the provider stopped or terminated; it may still be billed
    GONE = "gone"  # it no longer exists and costs nothing


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine that a provider created or knows.

    Attributes
    ----------
    id
        The provider's identifier.
    endpoint
        Where to reach it; None until known. A rented machine's endpoint needs no keys: core adds those of its order.
    name
        Human-readable name, shown in output and errors.
    agent
        Address of an agent that already runs there, for a transport's `open_channel`; None if it has to be
        bootstrapped over a shell.
    secret
        Shared secret with which the running agent and the owner authenticate each other.
    state
        What the provider reports.
    order
        Name of the order it was created for, read from the machine's own tags.
    tag
        Name of the pool it belongs to, read from the machine's own tags.
    detail
        Why it failed or ended, in the provider's words.
    python, prelude
        For a machine that has to be bootstrapped: the interpreter to use, and lines for a login shell that set up the
        environment of everything run there. Empty means: find an interpreter, and no such lines.
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
        Name of the pool; the provider tags everything it creates with it.
    count
        Number of machines; 1 if the provider lacks ``Trait.BATCH``.
    resources, allocation
        What the user asked for.
    orphan_timeout
        Seconds without contact after which a machine terminates itself.
    name
        Name of this order: up to 50 letters, digits and hyphens. The machines are tagged with it too.
    offer
        Which of the provider's offers to take; None if it has none.
    host_key
        The SSH host key that the machine must present; None for providers whose machines are not rented.
    user_key
        Public key allowed to log in, as one line.
    deadline
        When each machine terminates itself because its share of the budget is used up, in seconds since 1970; None
        means never.
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
    deadline: float | None = None

    def __post_init__(self) -> None:
        _one_of(self.allocation, "allocation", ALLOCATIONS)
