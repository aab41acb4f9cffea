"""What core requires of providers, transports, listeners and plugins, as Protocols. Each docstring is the contract.

A provider has machines, a transport reaches them, a plugin changes how a pool is set up. Ours and third parties' are
loaded through the registry and meet the same contracts; the suites in `skyward.testing` check them.
"""

from __future__ import annotations

import concurrent.futures
import enum
import mmap
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar, runtime_checkable

from skyward.core.image import Image
from skyward.core.spec import Endpoint, Machine, MachineId, Offer, Order, Resources

if TYPE_CHECKING:
    from skyward.core.events import Event

__all__ = [
    "Channel",
    "Check",
    "CommandOutput",
    "Dashboard",
    "Inspectable",
    "Limited",
    "Link",
    "Listener",
    "OpenPool",
    "Plugin",
    "Preparable",
    "Provider",
    "Rental",
    "Shell",
    "StreamShell",
    "Timed",
    "Trait",
    "Transport",
]

_T = TypeVar("_T")


class Trait(enum.Enum):
    """What some providers support and others don't. Core and the shipped suites check the trait, never the name."""

    BATCH = "batch"  # creates several machines in one call
    SPOT = "spot"  # has spot offers, whose machines may be preempted
    DESTROYS = "destroys"  # destroy terminates the machine (a list of hosts only forgets it)
    RENTED = "rented"  # machines cost money and outlive the driver: ledger, reaper, keys of our own, time to boot
    SAFE_CREATE = "safe-create"  # creating the same order twice makes its machines only once
    STRANGERS = "strangers"  # machines belong to third parties on a marketplace: results are read as data
    DRIVER_ENVIRONMENT = "driver-environment"  # nodes use the driver's own interpreter and packages


@runtime_checkable
class Provider(Protocol):
    """A source of machines.

    All methods are synchronous, may block, and are called from worker threads, several at once. They raise
    `ProvisioningError` (or a subclass, by which core decides what to try next), with foreign errors mapped `from` the
    cause.
    """

    name: ClassVar[str]
    traits: ClassVar[frozenset[Trait]]

    def offers(self, resources: Resources) -> Sequence[Offer]:
        """List the machine types on offer. May omit those that don't meet `resources`; core filters and sorts.

        If some of several regions fail, the offers of the others are returned as `Offers`, with the errors in its
        ``refused``. Raises only if all fail.
        """
        ...

    def create(self, order: Order) -> Sequence[Machine]:
        """Start up to ``order.count`` machines; returns once their ids are known and they are tagged.

        Fewer than requested is allowed; none is an error. Core does not repeat the call after a success.

        Raises
        ------
        NoCapacity, QuotaExceeded, AuthFailed, NotFound, ProvisioningError
            Nothing was created. The error's `scope` says which other offers would be refused too, if known.
        CloudError
            Something may have been created; `machines` will show it.
        """
        ...

    def machines(self, tag: str) -> Sequence[Machine]:
        """List all machines with this tag, in any state; those that are gone may be omitted. May be repeated."""
        ...

    def destroy(self, ids: Sequence[MachineId]) -> None:
        """Terminate machines. Idempotent: unknown ids count as terminated. May return before they have ended."""
        ...


@runtime_checkable
class Rental(Provider, Protocol):
    """A provider whose machines cost money and outlive the driver (``Trait.RENTED``)."""

    patience: ClassVar[float]
    """Seconds from a machine's creation until it must answer; after that it is terminated."""
    listing_delay: ClassVar[float]
    """Seconds after which `machines` is certain to show what was created."""
    poll: ClassVar[float]
    """Seconds between two polls of machines that are booting or ending."""

    def all_machines(self) -> Sequence[Machine]:
        """List the machines of all pools, of this driver and others, each with its tag."""
        ...

    def clear(self, tag: str) -> None:
        """Remove everything else with this tag (security groups, scripts, keys, volumes). Idempotent.

        Called once the machines are gone. Raises `CloudError` while something can't be removed yet.
        """
        ...

    def settings(self) -> dict[str, object]:
        """Arguments that make an equal provider later, JSON-serializable and without secrets.

        They include what comes from the environment (region, project, profile), which may have changed by then.
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
        Whether it is as it should be; None if it is not set up, which is not an error.
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
class Preparable(Protocol):
    """A provider that can begin with an order before `Provider.create`, at no cost. Optional.

    A pool calls `prepare` first of all, and loads the rest of skyward meanwhile. Called from the thread that opens or
    closes the pool.
    """

    def prepare(self, order: Order) -> None:
        """Begin with an order for all of a pool's machines; returns at once.

        Raises nothing: a `create` with the same tag finishes what was begun, starts anew if that is not what it is
        asked for, and raises what is wrong.
        """
        ...

    def discard(self, tag: str) -> None:
        """End what was begun for this tag and never created. Idempotent, and quick."""
        ...


@runtime_checkable
class Timed(Protocol):
    """A provider that says how long its machines take to start. Optional; for others `sky.explain` assumes 100 s."""

    usual_start: ClassVar[float]
    """Seconds that a machine usually takes until it is a node."""


@runtime_checkable
class Limited(Protocol):
    """A provider with a fixed number of machines. Optional; a pool that needs more of them is refused at once."""

    @property
    def max_machines(self) -> int:
        """How many it has, whether they are free or in use. Does not block."""
        ...


@runtime_checkable
class Inspectable(Protocol):
    """A rental that the command line can ask about its account. Optional; `CloudProvider` implements it.

    A `Rental` without it counts as set up if it can be created without arguments, has one account, is queried with its
    usual retries, and is checked by counting its machines.
    """

    @classmethod
    def found(cls) -> Sequence[Self]:
        """Providers for the accounts that the environment has credentials for, where one class serves several clouds.

        Empty where a class has one account, the one it uses when created without arguments.
        """
        return ()

    def check_credentials(self) -> None:
        """Look for credentials without using them. Raises `AuthFailed` if there are none."""

    def hurried(self, seconds: float) -> Self:
        """The same provider, which retries a failing call for at most `seconds`."""
        return self

    def examination(self) -> Sequence[Check]:
        """Check credentials, quotas and permissions. May block; problems are findings, not errors."""
        ...


class Channel(Protocol):
    """A bidirectional stream of bytes. Used from the event loop that made it; one reader and one writer."""

    async def read(self) -> bytes:
        """Return the bytes that have arrived; ``b""`` at the end of the stream, including after a link error."""
        ...

    def write(self, buffers: Sequence[bytes | bytearray | memoryview | mmap.mmap]) -> None:
        """Queue bytes in order. Never blocks; does nothing once the stream has ended. Buffers must not change."""
        ...

    async def drain(self) -> None:
        """Wait until the queue is short enough to write more, or the stream has ended."""
        ...

    @property
    def congested(self) -> bool:
        """Whether `drain` would wait."""
        ...

    def close(self) -> None:
        """End the stream; what was queued is still sent if the link allows. May be repeated."""
        ...


@dataclass(frozen=True, slots=True)
class CommandOutput:
    """Exit status and output of a command on a machine."""

    status: int
    stdout: str
    stderr: str


class Shell(Protocol):
    """Commands and files on a machine. Used from the event loop that made it; calls may overlap."""

    async def run(self, command: str, *, input: bytes | None = None, timeout: float | None = None) -> CommandOutput:
        """Run a POSIX sh command line, whatever the user's login shell is, and wait for it.

        Parameters
        ----------
        command
            The command line. A status other than 0 is not an error here.
        input
            What it reads from standard input; None for nothing.
        timeout
            Seconds after which it is killed; None for no limit.

        Raises
        ------
        LinkError
            The link broke.
        TimeoutError
            The command took longer than `timeout`.
        """
        ...

    async def put(self, data: bytes, path: str) -> None:
        """Write a file atomically; its folder must exist. A leading ``~/`` means the login user's home."""
        ...


@runtime_checkable
class StreamShell(Shell, Protocol):
    """A shell that can turn a command into a stream, for machines where no channel to the agent can be opened."""

    async def stream(self, command: str) -> Channel:
        """Run a POSIX sh command line whose standard input and output are the stream.

        The command prints the line in ``$SKYWARD_READY`` once it is connected; output before that is not part of the
        stream. Raises `LinkError` if the link breaks, or the command ends before it is ready.
        """
        ...


class Link(Protocol):
    """One connection to a machine."""

    @property
    def shell(self) -> Shell | None:
        """Commands on the machine; None where the transport has none."""
        ...

    async def open_channel(self, address: str) -> Channel:
        """Connect to the agent listening at `address` there (a socket's path, or host:port). Raises `LinkError`."""
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
    """Receives the events of a pool: the console, a dashboard.

    A class, or any callable, with an entry point in the group ``skyward.listeners``. It is called when a pool is
    entered, in that thread, with ``live=`` (the pool's ``console=``) and ``facts=`` (a `skyward.core.facts.Facts`: any
    thread may call its ``status()`` at any time); accept ``**others``, as more may be added. A listener that has an
    attribute ``kinds``, a tuple of event classes, receives only those, and costs nothing for the others.
    """

    def handle(self, event: Event) -> None:
        """Handle an event. Called from any thread, several at once; must neither block nor call the pool."""
        ...

    def close(self) -> None:
        """The pool has ended; no more events follow. Called once, from the thread that closes it; may block."""
        ...


class Dashboard(Protocol):
    """Shows one pool to browsers: what ``Compute(dashboard=...)`` asks for.

    The only one is ours, ``page`` in the group ``skyward.dashboards``; it is registered so that core need not import it
    or its server. It is called with the pool's name, a port (0 for any) and a `skyward.core.facts.Facts` before
    anything is rented, and raises `ConfigError` if it can't listen there. Like a listener, it may have ``kinds``.
    """

    @property
    def link(self) -> str:
        """Address for a browser. From any thread."""
        ...

    def start(self) -> None:
        """Start serving. Called once; must not block for long."""
        ...

    def handle(self, event: Event) -> None:
        """See `Listener.handle`."""
        ...

    def save(self, path: str) -> None:
        """Write all that was recorded to one file. From any thread, also after `close`; may raise `OSError`."""
        ...

    def close(self) -> None:
        """The pool has ended. May be called without `start`, and repeated; may block for seconds."""
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
        """Number of slots on the nodes that are ready: nodes x concurrency."""
        ...

    @property
    def node_names(self) -> list[str]:
        """Names of the nodes that are ready, in order."""
        ...

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[_T]:
        """Run ``fn(*args, **kwargs)`` on a node.

        Parameters
        ----------
        fn
            Any function that cloudpickle can pickle.
        args, kwargs
            Its arguments.

        Raises
        ------
        PoolNotActive
            The pool is not open.
        """
        ...


class Plugin:
    """A change to a pool: a frozen value with hooks, which do nothing unless overridden.

    Subclass it to write your own (it is public as `sky.Plugin`). The hooks of several plugins run in the order given.
    """

    def transform_image(self, image: Image, *, driver_environment: bool) -> Image:
        """Add what this plugin needs to the image. Called once, before any node exists.

        With `driver_environment`, nodes use the driver's own packages and nothing is installed.
        """
        return image

    def around_client(self, pool: OpenPool) -> AbstractContextManager[object] | None:
        """Return a context manager, entered in the pool's thread once its nodes are ready and left when it exits."""
        return None

    def around_worker(self) -> str | None:
        """Name a context manager that wraps the life of each slot's process, as ``"package.module:function"``.

        It takes no arguments. It is named rather than pickled, since it must be importable on the node before any task.
        """
        return None
