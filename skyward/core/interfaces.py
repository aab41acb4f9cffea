"""What core asks of others, as Protocols. Each docstring is the contract.

A provider has machines, a transport reaches them, a plugin changes how a pool is set up. Our own and foreign ones come
through the registry and keep the same contracts; the suites in `skyward.testing` check them.
"""

from __future__ import annotations

import concurrent.futures
import enum
import mmap
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar, runtime_checkable

from skyward.core.spec import Endpoint, Image, Machine, MachineId, Offer, Order, Resources

if TYPE_CHECKING:
    from skyward.core.events import Event

__all__ = [
    "Channel",
    "Check",
    "Inspectable",
    "Link",
    "Listener",
    "OpenPool",
    "Output",
    "Plugin",
    "Provider",
    "Rental",
    "Shell",
    "StreamShell",
    "Trait",
    "Transport",
]

_T = TypeVar("_T")


class Trait(enum.Enum):
    """What some providers can and others can't; core and the shipped suites ask for the trait, never for the name."""

    BATCH = "batch"  # creates several machines in one call
    SPOT = "spot"  # has offers that may be taken back
    DESTROYS = "destroys"  # destroy really ends the machine (a host list only forgets it)
    RENTED = "rented"  # machines cost money and outlive the driver: ledger, reaper, keys of our own, time to boot
    SAFE_CREATE = "safe-create"  # the same order twice makes machines once
    STRANGERS = "strangers"  # machines belong to people whom the provider only introduces: their results are data
    DRIVER_ENVIRONMENT = "driver-environment"  # nodes use the driver's own interpreter and packages


@runtime_checkable
class Provider(Protocol):
    """A source of machines.

    All methods are synchronous, may block, and are called from worker threads, several at a time. They raise
    `ProvisioningError` (or a subclass, by which core decides what to try next), with foreign errors mapped `from` the
    cause.
    """

    name: ClassVar[str]
    traits: ClassVar[frozenset[Trait]]

    def offers(self, resources: Resources) -> Sequence[Offer]:
        """Kinds of machines that can be had. May leave out what does not meet `resources`; core chooses and sorts.

        Where one of several places (regions) refuses, those of the others are given all the same, as `Offers` with the
        error in its ``refused``. An error is raised when none can be asked.
        """
        ...

    def create(self, order: Order) -> Sequence[Machine]:
        """Begin up to ``order.count`` machines; returns once their ids are known and tag and name are on them.

        Fewer than asked is allowed; none is an error. Not repeated by core after a success.

        Raises
        ------
        NoCapacity, QuotaExceeded, AuthFailed, NotFound, ProvisioningError
            Nothing was made. Its `scope` says which other offers would be refused too, if the provider knows.
        CloudError
            It is not known whether something was made; `machines` will tell.
        """
        ...

    def machines(self, tag: str) -> Sequence[Machine]:
        """All machines that carry the tag, in any state (those that are gone may be left out). May be repeated."""
        ...

    def destroy(self, ids: Sequence[MachineId]) -> None:
        """End these machines. Idempotent: an unknown id counts as ended. Returns when they are ended or will be."""
        ...


@runtime_checkable
class Rental(Provider, Protocol):
    """A provider whose machines cost money and outlive the driver (``Trait.RENTED``)."""

    patience: ClassVar[float]
    """Seconds from a machine's creation until it must answer; then it is given back."""
    listing_delay: ClassVar[float]
    """Seconds after which `machines` surely shows what was created."""
    poll: ClassVar[float]
    """Seconds between two looks at machines that boot or end."""

    def all_machines(self) -> Sequence[Machine]:
        """The machines of all pools, ours and other drivers'; each with its tag."""
        ...

    def clear(self, tag: str) -> None:
        """Remove whatever else carries the tag (security groups, scripts, keys, volumes). Idempotent.

        Called when the machines are gone; raises `CloudError` while something can't be removed yet.
        """
        ...

    def settings(self) -> dict[str, object]:
        """Arguments that make an equal provider later, without secrets; JSON can hold them.

        What was left to the environment (region, project, profile) is among them, as that may be another one then.
        """
        ...


@dataclass(frozen=True, slots=True)
class Check:
    """One finding of ``skyward doctor``.

    Attributes
    ----------
    what
        What was checked.
    ok
        Whether it is as it should be; None for what is not set up, which is no fault.
    detail
        What was found.
    advice
        What to do about it, unless it is ok.
    """

    what: str
    ok: bool | None
    detail: str
    advice: str = ""


@runtime_checkable
class Inspectable(Protocol):
    """A rental that the command line can ask about its account. Optional; `CloudProvider` implements it.

    A `Rental` without it counts as set up once it can be made without arguments, has one account, is asked with its
    usual patience, and is checked by counting its machines.
    """

    @classmethod
    def found(cls) -> Sequence[Self]:
        """Providers for the accounts that the environment has credentials for, where one class serves several clouds.

        Empty where a class has one account, which is what it makes without arguments.
        """
        return ()

    def check_credentials(self) -> None:
        """Look for credentials without using them. Raises `AuthFailed` if there are none."""

    def hurried(self, seconds: float) -> Self:
        """The same provider, which retries a call for at most so many seconds."""
        return self

    def examination(self) -> Sequence[Check]:
        """Check credentials, quotas and permissions. May block; problems are findings, not errors."""
        ...


class Channel(Protocol):
    """A stream of bytes both ways. Used from the event loop that made it; one reader and one writer."""

    async def read(self) -> bytes:
        """The next bytes, as many as there are; ``b""`` at the end of the stream, also after an error of the link."""
        ...

    def write(self, buffers: Sequence[bytes | bytearray | memoryview | mmap.mmap]) -> None:
        """Queue bytes in order. Never blocks. After the stream ended it does nothing. Buffers must not change."""
        ...

    async def drain(self) -> None:
        """Wait until little enough is queued that writing more makes sense, or the stream has ended."""
        ...

    @property
    def congested(self) -> bool:
        """Whether `drain` would wait."""
        ...

    def close(self) -> None:
        """End the stream; what was queued is still sent where the link allows. May be repeated."""
        ...


@dataclass(frozen=True, slots=True)
class Output:
    """What a command on a machine gave."""

    status: int
    stdout: str
    stderr: str


class Shell(Protocol):
    """Commands and files on a machine. Used from the event loop that made it; calls may overlap."""

    async def run(self, command: str, *, input: bytes | None = None, timeout: float | None = None) -> Output:
        """Run a POSIX sh command line and wait for it, whatever the user's login shell is.

        A status other than 0 is no error here. Raises `LinkError` when the link breaks and `TimeoutError` after
        `timeout` seconds.
        """
        ...

    async def put(self, data: bytes, path: str) -> None:
        """Write a file, whole or not at all; folders must exist. A leading ``~/`` is the login's home."""
        ...


@runtime_checkable
class StreamShell(Shell, Protocol):
    """A shell that can make a stream of a command, for machines that let nobody open a channel to the agent."""

    async def stream(self, command: str) -> Channel:
        """Run a POSIX sh command line whose standard input and output are the stream.

        The command prints the line in ``$SKYWARD_READY`` once it stands; what comes before that is no part of the
        stream. Raises `LinkError` when the link breaks, or the command ends before.
        """
        ...


class Link(Protocol):
    """One connection to a machine."""

    @property
    def shell(self) -> Shell | None:
        """Commands on the machine; None where the transport has none."""
        ...

    async def open_channel(self, address: str) -> Channel:
        """A stream to the agent that listens at `address` there (a socket's path, or host:port). Raises `LinkError`."""
        ...

    async def close(self) -> None:
        """End the connection and all its channels. May be repeated."""
        ...


class Transport(Protocol):
    """A way to reach machines. Made without arguments; holds no connection itself."""

    name: ClassVar[str]
    striped: ClassVar[bool]
    """Whether several channels to a machine carry more than one does, as over a long line. Then large messages are
    spread over channels of further connections."""

    async def connect(self, endpoint: Endpoint, timeout: float) -> Link:
        """Connect and authenticate within `timeout` seconds.

        Raises
        ------
        HostUnreachable, HostKeyError, LoginRefused
            As their names say; never another type.
        """
        ...


class Listener(Protocol):
    """Hears what happens in a pool: the console, a dashboard.

    A class, or any callable, with an entry point in the group ``skyward.listeners``. It is called as each pool is
    entered, in that thread, with ``live=`` (the pool's ``console=``; more may be added, so take ``**others``).
    """

    def handle(self, event: Event) -> None:
        """Something has happened. Called from any thread, several at a time; must neither block nor call the pool."""
        ...

    def close(self) -> None:
        """The pool has ended, and nothing more is heard. Called once, from the thread that closes it; may block."""
        ...


class OpenPool(Protocol):
    """An open pool as a plugin sees it; it is a `sky.Compute`. Used from any thread."""

    @property
    def name(self) -> str:
        """Unique name of the pool; everything it rents is tagged with it."""
        ...

    @property
    def is_active(self) -> bool:
        """Whether tasks can be submitted now."""
        ...

    @property
    def total_slots(self) -> int:
        """Slots of the nodes that are ready: nodes x concurrency."""
        ...

    @property
    def node_names(self) -> list[str]:
        """Names of the nodes that are ready, in order."""
        ...

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[_T]:
        """Run ``fn(*args, **kwargs)`` on a node. Raises `PoolNotActive` where the pool is not open."""
        ...


class Plugin:
    """A change to a pool: a frozen value with hooks, all of which do nothing unless overridden.

    Third parties subclass it (public as `sky.Plugin`). Hooks of several plugins run in the order they are given.
    """

    def transform_image(self, image: Image, *, driver_environment: bool) -> Image:
        """The image with what this plugin needs. Called once, before any node exists.

        With `driver_environment` the nodes use the driver's own packages, and nothing is installed.
        """
        return image

    def around_client(self, pool: OpenPool) -> AbstractContextManager[object] | None:
        """A context manager held in the thread that entered the pool, from when its nodes are ready until it exits."""
        return None

    def around_worker(self) -> str | None:
        """``"package.module:function"``: a context manager without arguments that wraps the life of each slot process.

        It is named and not pickled, since it must be importable on the node before any task is.
        """
        return None
