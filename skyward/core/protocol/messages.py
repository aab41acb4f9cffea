"""What owner and worker can say to each other: one NamedTuple for each kind of message, and nothing that acts.

Fields may be int, float, str, bytes, bool, None, or list and dict of those. Bulk goes into the message's buffers; what
they hold is said in the message's docstring.
"""

import enum
from typing import Any, NamedTuple, Union, get_args, get_type_hints

__all__ = [
    "CODES",
    "FIELDS",
    "HEARD_FILE",
    "MESSAGES",
    "ORDERED",
    "THREAD_VARIABLES",
    "Ack",
    "Began",
    "Blob",
    "Bye",
    "Cancel",
    "Done",
    "Failed",
    "Failure",
    "Fetch",
    "Forget",
    "Hello",
    "Inquire",
    "Kept",
    "Listening",
    "Message",
    "Missing",
    "Output",
    "Peers",
    "Ping",
    "Pong",
    "Proof",
    "Reached",
    "Ready",
    "Run",
    "Setup",
    "StreamClose",
    "StreamData",
    "StreamOpen",
    "Welcome",
]


THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
"""The variables that joblib sets. Libraries read them when they are loaded, so they are set before that."""

HEARD_FILE = "/run/skyward-heard"
"""Touched on a rented node whenever the owner is heard; the node's watchdog ends the machine when it grows old."""


class Hello(NamedTuple):
    """Owner's first word. `received` counts the numbered messages it already has from this session.

    `link` is empty, or the nonce of that Hello to whose link this connection shall belong as a stripe.
    """

    version: int
    session: str
    nonce: bytes
    received: int
    link: bytes = b""


class Welcome(NamedTuple):
    """Worker's answer, with its proof that it knows the secret. `facts` are about the machine (cores, pid, ...)."""

    version: int
    nonce: bytes
    proof: bytes
    received: int
    facts: dict[str, Any]


class Proof(NamedTuple):
    """Owner's proof; from here on both ends may say anything."""

    proof: bytes


class Ping(NamedTuple):
    """Heartbeat; `stamp` comes back unchanged in a `Pong`."""

    stamp: float


class Pong(NamedTuple):
    """Answer to `Ping`."""

    stamp: float


class Ack(NamedTuple):
    """All numbered messages up to `received` have arrived."""

    received: int


class Bye(NamedTuple):
    """The conversation is over for good: a worker ends its slots and itself, and says nothing more."""


class Setup(NamedTuple):
    """Owner to agent, once per session: how tasks run on this node.

    Attributes
    ----------
    node
        The node's name, for messages and the environment variable ``SKYWARD_NODE``.
    concurrency
        Tasks at a time, isolated and shared ones together.
    isolated
        Whether the slots that are started ahead are processes of one task each; else one process with threads.
    threads
        BLAS/OpenMP threads of each slot; None: cores // concurrency, at least 1.
    env
        Environment variables of the slots.
    path
        Folders put before ``sys.path``; for nodes that share the driver's file system.
    cwd
        Working directory of tasks; None leaves it.
    preload
        Modules that the fork server tries to import; one that is missing is no error.
    around
        ``module:function`` context managers around the life of each slot process.
    orphan_timeout
        Seconds without an owner after which the agent ends its slots and itself.
    shares
        The owner's processes are on this machine and open our files, as we theirs.
    identity
        What the node shows and asks of its peers: ``authority`` and ``certificate`` (with its key) in PEM, and the
        ``host`` by which the owner reaches the node. None: it neither listens to peers nor asks them.
    argv
        The owner's ``sys.argv``, which modules that tasks import may read.
    depth
        Of how many tasks, one in another, the owner is a part itself.
    data
        The owner reads results as data: what it has sent by value comes back by name.
    """

    node: str
    concurrency: int
    isolated: bool
    threads: int | None
    env: dict[str, str]
    path: list[str]
    cwd: str | None
    preload: list[str]
    around: list[str]
    orphan_timeout: float
    shares: bool = False
    identity: dict[str, str] | None = None
    argv: list[str] = []  # noqa: RUF012 - nobody changes it
    depth: int = 0
    data: bool = False


class Ready(NamedTuple):
    """Agent to owner: `slots` slots take tasks from now on; or `error` says why there will be none, or no more.

    When there are no more, all tasks that had begun were answered before this was said.
    """

    slots: int
    error: str | None


class Run(NamedTuple):
    """Run a task. Buffers: pickle head, then its out-of-band buffers except those named in `blobs`.

    `blobs` maps the index of an out-of-band buffer to the digest of a blob that was sent, or will be, as `Blob`.
    `isolated`: in a process of its own. `timeout`: seconds from when it starts. `threads`: BLAS/OpenMP threads.
    `authkey`: the owner's ``multiprocessing.current_process().authkey``, where the call has proxies of its Managers.
    """

    task: int
    isolated: bool
    timeout: float | None
    threads: int | None
    blobs: dict[int, bytes]
    authkey: bytes = b""


class Cancel(NamedTuple):
    """Forget a waiting task, stop a running one. Answered by `Failed(CANCELLED)` if the task was still there.

    Unless `running`, a task that has begun goes on, and this is not answered.
    """

    task: int
    running: bool = True


class Began(NamedTuple):
    """These tasks have begun. Said of those that run for a moment, so of most short ones never."""

    tasks: list[int]


class Inquire(NamedTuple):
    """Which of these tasks are neither here nor answered? Always answered by `Missing`, perhaps with none.

    Owner to agent, and agent to slot. Only about tasks whose `Run` is known to have arrived, or can't be overtaken.
    """

    tasks: list[int]


class Missing(NamedTuple):
    """Of the tasks of an `Inquire`, those that are not here, and whose answer has not been on its way since."""

    tasks: list[int]


class Recall(NamedTuple):
    """Give back tasks that have not begun, the newest first. Answered by `Returned`.

    So many at most, and none that will begin in `within` seconds anyway.
    """

    most: int
    within: float


class Returned(NamedTuple):
    """These tasks have not begun and will not: the node has forgotten them."""

    tasks: list[int]


class Done(NamedTuple):
    """The task returned after `seconds` of running. Buffers: the result's pickle head and out-of-band buffers.

    `files` are paths of files that hold an out-of-band buffer, by its index; only where `Setup.shares` is set.
    """

    task: int
    seconds: float
    files: dict[int, bytes] = {}  # noqa: RUF012 - nobody changes it


class Failure(enum.Enum):
    """Why a task did not return."""

    RAISED = "raised"  # its own exception; buffers: a pickled exception
    UNLOADABLE = "unloadable"  # the call could not be unpickled; buffers: a pickled exception
    CRASHED = "crashed"  # its process died while it ran alone there; `detail` says how
    SHARED_CRASH = "shared-crash"  # its process died while it ran other tasks too: not known which one did it
    TIMEOUT = "timeout"  # ran longer than its limit
    CANCELLED = "cancelled"  # as the owner asked
    REFUSED = "refused"  # the node could not start it; `detail` says why


class Failed(NamedTuple):
    """The task did not return. `reason` is a `Failure` value. Buffers: see `Failure`.

    `missing` is the module that could not be imported, if that was why: one that the node lacks, or with its package's
    name before it one that the node's package lacks.
    """

    task: int
    seconds: float
    reason: str
    detail: str
    missing: str = ""


class Output(NamedTuple):
    """What tasks printed. `stream` is 1 or 2; one buffer of any bytes: whole lines, or what is left of one at its end.

    Where a line is longer than a message that keeps its place, `more` of it is in the very next `Output`.
    """

    stream: int
    more: bool = False


class Blob(NamedTuple):
    """A large buffer by the digest of its content, or a part of it. One buffer: its bytes from `offset` on."""

    digest: bytes
    size: int
    offset: int


class Fetch(NamedTuple):
    """Get a blob from a peer, by name; from None: end the fetch. Both are answered by `Kept`."""

    digest: bytes
    size: int
    peer: str | None


class Share(NamedTuple):
    """A blob as a `SharedFile` of the owner's, who is on the same machine. Answered by `Kept`."""

    digest: bytes
    path: str
    inode: int
    size: int


class Kept(NamedTuple):
    """A blob is here; or, with an `error`, a fetch has ended after `size` bytes of it, or a file can't be shared."""

    digest: bytes
    size: int
    error: str | None


class Listening(NamedTuple):
    """The node serves its peers on a port of any of these addresses."""

    port: int
    addresses: list[str]


class Peers(NamedTuple):
    """Nodes of the pool, by name, as they said in `Listening`: find out which of them can be reached."""

    peers: dict[str, list[Any]]


class Reached(NamedTuple):
    """These peers can be reached from here."""

    peers: list[str]


class Forget(NamedTuple):
    """The owner will not name these blobs again."""

    digests: list[bytes]


class StreamOpen(NamedTuple):
    """A slot asks for a byte stream to `address`, the path of a listening socket in the owner's process."""

    stream: int
    address: str


class StreamData(NamedTuple):
    """Bytes of a bridged stream, either way. One buffer."""

    stream: int


class StreamClose(NamedTuple):
    """One end of a bridged stream has closed it, or it could not be opened; `error` says why."""

    stream: int
    error: str | None


Message = Union[
    Hello, Welcome, Proof, Ping, Pong, Ack, Bye, Setup, Ready, Run, Cancel, Done, Failed, Output, Blob, Forget,
    StreamOpen, StreamData, StreamClose, Recall, Returned, Fetch, Share, Kept, Listening, Peers, Reached,
    Began, Inquire, Missing,
]  # fmt: skip

MESSAGES: tuple[type[Any], ...] = get_args(Message)
"""Every kind of message; a kind's place in this tuple is its code on the wire."""

ORDERED: frozenset[type[Any]] = frozenset({Output, StreamData})
"""Kinds with buffers that must arrive in the order in which they were sent: a wire refuses those that are large.

Messages without buffers always keep their place among each other; any other kind may overtake, and be overtaken.
"""

CODES: dict[type[Any], int] = {kind: code for code, kind in enumerate(MESSAGES)}


def _accepts(hint: Any) -> tuple[type, ...]:
    """The run-time types that a field's annotation allows (ints are fine where floats are)."""
    types: list[type] = []
    for part in get_args(hint) if type(None) in get_args(hint) else (hint,):
        types.append(getattr(part, "__origin__", part))
    return (*types, int) if float in types else tuple(types)


FIELDS: tuple[tuple[tuple[type, ...], ...], ...] = tuple(
    tuple(_accepts(hint) for hint in get_type_hints(kind).values()) for kind in MESSAGES
)
