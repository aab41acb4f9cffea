"""The messages between owner and agent: one NamedTuple for each kind, and no behaviour.

Fields may be int, float, str, bytes, bool, None, or lists and dicts of those. Bulk goes into the message's buffers; the
message's docstring says what they hold.
"""

import enum
from typing import Any, NamedTuple, Union, get_args

__all__ = [
    "CODES",
    "FIELDS",
    "GPU_VARIABLES",
    "HEARD_FILE",
    "MESSAGES",
    "ORDERED",
    "THREAD_VARIABLES",
    "Ack",
    "Attach",
    "Began",
    "Blob",
    "Build",
    "Bye",
    "Cancel",
    "Code",
    "Done",
    "Failed",
    "Failure",
    "Fetch",
    "Find",
    "Flush",
    "Forget",
    "Gpus",
    "Hello",
    "Inquire",
    "Kept",
    "Listening",
    "Load",
    "Message",
    "Missing",
    "Mount",
    "Output",
    "Peers",
    "Ping",
    "Pong",
    "Proof",
    "Reached",
    "Read",
    "Ready",
    "Recall",
    "Renew",
    "Reply",
    "Returned",
    "Run",
    "Setup",
    "Share",
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
"""The variables that joblib sets. Libraries read them when they are loaded, so they must be set before."""

GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
"""The variables by which a slot sees only its own GPUs. Drivers read them once, at their first use."""

HEARD_FILE = "/run/skyward-heard"
"""Touched on a rented node whenever the owner is heard; the node's watchdog ends the machine when it gets too old."""


class Hello(NamedTuple):
    """The owner's greeting. `received` is the last numbered message of this session that it has.

    `link` is empty, or the nonce of the Hello whose link this connection is to join as a stripe.
    """

    version: int
    session: str
    nonce: bytes
    received: int
    link: bytes = b""


class Welcome(NamedTuple):
    """The agent's answer, with its proof that it knows the secret. `facts` describe the machine (cores, pid, ...)."""

    version: int
    nonce: bytes
    proof: bytes
    received: int
    facts: dict[str, Any]


class Proof(NamedTuple):
    """The owner's proof; from here on, both ends may send anything."""

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
    """The conversation is over for good: an agent ends its slots and itself, and sends nothing more.

    The owner says it, and the agent answers with the same. An owner that hears no answer says it again on another link.
    """


class Setup(NamedTuple):
    """Owner to agent, once per session: how tasks run on this node.

    Attributes
    ----------
    node
        The node's name, for messages and the environment variable ``SKYWARD_NODE``.
    concurrency
        Maximum number of tasks at once, isolated and shared ones together; 0: as many as there are GPUs for.
    isolated
        Whether the slots started in advance are processes that run one task each; otherwise threads of one process.
    threads
        BLAS/OpenMP threads per slot; None: cores // concurrency, and at least 1.
    env
        Environment variables of the slots.
    path
        Folders put before ``sys.path``; for nodes that share the driver's file system.
    cwd
        Working directory of tasks; None: a folder of the node's own, which is removed when the agent ends.
    preload
        Modules that the fork server tries to import; a missing one is not an error.
    around
        ``module:function`` names of context managers that wrap the life of each slot process.
    orphan_timeout
        Seconds without an owner after which the agent ends its slots and itself.
    shares
        Whether the owner is on this machine, so that each can open the other's files.
    identity
        What the node presents to its peers and expects of them: ``authority`` and ``certificate`` (with its key) in
        PEM, and the ``host`` by which the owner reaches the node. None: it neither listens to peers nor asks them.
    argv
        The owner's ``sys.argv``, since modules that tasks import may read it.
    depth
        Number of tasks, nested in each other, that the owner itself runs in.
    data
        Whether the owner reads results as data: classes that it sent by value come back by name.
    gpus
        How many GPUs each slot sees, or 1/n for a GPU that n slots share; 0: each sees all.
    part
        Number, from 0, and count of the owner's nodes on this machine, among which its GPUs are divided.
    code
        Whether the versions of code that tasks name are sent, as `Code`; otherwise they say when slots must be new.
    conventions
        The owner's time zone and locale, see `core.system.conventions`; empty: the node's own.
    load
        Seconds between two reports of the node's `Load`; 0: there are none.
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
    gpus: float = 0.0
    part: list[int] = [0, 1]  # noqa: RUF012 - nobody changes it
    code: bool = False
    conventions: dict[str, str] = {}  # noqa: RUF012 - nobody changes it
    load: float = 15.0


class Ready(NamedTuple):
    """Agent to owner: `slots` slots accept tasks from now on; or `error` says why there are none, or no more.

    If there are no more, all tasks that had begun were answered before this message was sent.
    """

    slots: int
    error: str | None


class Gpus(NamedTuple):
    """The GPUs that slots have been given, before `Ready`; or `error` says why none can be seen.

    Of each its id, name, memory and memory in use, in bytes, and the share of time it is busy; or None for the last
    three. See `skyward.core.gpus.Gpu`.
    """

    found: list[list[Any]]
    error: str | None


class Load(NamedTuple):
    """How the node is used, a few times a minute; see `skyward.core.events.NodeLoad`. `gpus` are as in `Gpus`."""

    cpu: float | None
    cores: int | None
    memory_used: int | None
    memory_total: int | None
    disk_free: int | None
    gpus: list[list[Any]] = []  # noqa: RUF012 - nobody changes it
    problem: str = ""


class Run(NamedTuple):
    """Run a task. Buffers: the pickle's head, then its out-of-band buffers except those named in `blobs`.

    `blobs` maps the index of an out-of-band buffer to the digest of a blob that was sent, or will be, as `Blob`.
    `isolated`: in a process of its own. `timeout`: seconds from its start. `threads`: BLAS/OpenMP threads.
    `authkey`: the owner's ``multiprocessing.current_process().authkey``, if the call holds proxies of its Managers.
    `code`: the version of the user's own code that it runs with, 0 for any. `since`: the first version to which later
    ones have only added modules, up to that; a slot that has seen one before it does not run the task.
    """

    task: int
    isolated: bool
    timeout: float | None
    threads: int | None
    blobs: dict[int, bytes]
    authkey: bytes = b""
    code: int = 0
    since: int = 0


class Code(NamedTuple):
    """A version of the user's own code. One buffer: which files it has, see `core.code.bundles`.

    `bundles` are the digests of the blobs that hold them, in the order that the buffer means. Tasks may arrive before.
    """

    version: int
    bundles: list[bytes]


class Cancel(NamedTuple):
    """Drop a waiting task, or stop a running one. Answered by `Failed(CANCELLED)` if the task was still there.

    Unless `running` is set, a task that has begun goes on, and there is no answer.
    """

    task: int
    running: bool = True


class Began(NamedTuple):
    """These tasks have begun. Sent once they have run for a moment, so never for most short tasks.

    `slots` has the slot of each, as in `Done`; 0 if the agent does not know it.
    """

    tasks: list[int]
    slots: list[int]


class Inquire(NamedTuple):
    """Ask which of these tasks are neither here nor answered. Always answered by `Missing`, perhaps an empty one.

    Owner to agent, and agent to slot. Only for tasks whose `Run` is known to have arrived, or can't be overtaken.
    """

    tasks: list[int]


class Missing(NamedTuple):
    """The tasks of an `Inquire` that are not here and have not been answered."""

    tasks: list[int]


class Recall(NamedTuple):
    """Return tasks that have not begun, the newest first. Answered by `Returned`.

    At most `limit`, and none that will begin within `within` seconds anyway.
    """

    limit: int
    within: float


class Returned(NamedTuple):
    """These tasks have not begun and will not: the node has dropped them."""

    tasks: list[int]


class Done(NamedTuple):
    """The task returned after `seconds`. Buffers: the head and the out-of-band buffers of its pickled result.

    `files` maps the index of an out-of-band buffer to the path of a file that holds it; only if `Setup.shares` is set.
    `slot` is the number of the slot that ran it, from 1; 0 if there is none.
    """

    task: int
    seconds: float
    files: dict[int, bytes] = {}  # noqa: RUF012 - nobody changes it
    slot: int = 0


class Failure(enum.Enum):
    """Why a task did not return."""

    RAISED = "raised"  # its own exception; buffers: a pickled exception
    UNLOADABLE = "unloadable"  # the call could not be unpickled; buffers: a pickled exception
    CRASHED = "crashed"  # its process died while running only this task; `detail` says how
    SHARED_CRASH = "shared-crash"  # its process died while it also ran other tasks; which one caused it is not known
    TIMEOUT = "timeout"  # it ran longer than its limit
    CANCELLED = "cancelled"  # at the owner's request
    UNSAVED = "unsaved"  # it returned, but what was written can't be brought to its bucket; `detail` says why
    REFUSED = "refused"  # the node could not start it; `detail` says why


class Failed(NamedTuple):
    """The task did not return. `reason` is a `Failure` value. Buffers: see `Failure`. `slot` as in `Done`.

    `missing` is the module that could not be imported, if that was the cause; it is prefixed with its package's name if
    the node has the package, and the package lacks the module.
    """

    task: int
    seconds: float
    reason: str
    detail: str
    missing: str = ""
    slot: int = 0


class Output(NamedTuple):
    """What tasks printed. `stream` is 1 or 2. One buffer: whole lines, or the unfinished last line when a task ends.

    If a line is longer than the largest message that keeps its order, `more` of it follows in the very next `Output`.
    """

    stream: int
    more: bool = False


class Blob(NamedTuple):
    """A large buffer, or part of one, named by the digest of its content. One buffer: its bytes from `offset` on."""

    digest: bytes
    size: int
    offset: int


class Fetch(NamedTuple):
    """Fetch a blob from the named peer; with None, end the fetch. Both are answered by `Kept`."""

    digest: bytes
    size: int
    peer: str | None


class Share(NamedTuple):
    """A blob in a `SharedFile` of the owner, which is on the same machine. Answered by `Kept`."""

    digest: bytes
    path: str
    inode: int
    size: int


class Kept(NamedTuple):
    """A blob is here; or, with an `error`, its fetch ended after `size` bytes, or its file can't be shared."""

    digest: bytes
    size: int
    error: str | None


class Listening(NamedTuple):
    """The node serves its peers on this port of each of these addresses."""

    port: int
    addresses: list[str]


class Peers(NamedTuple):
    """Nodes of the pool, by name, with what they reported in `Listening`: find out which of them can be reached."""

    peers: dict[str, list[Any]]


class Reached(NamedTuple):
    """These peers can be reached from here."""

    peers: list[str]


class Forget(NamedTuple):
    """The owner will not refer to these blobs again."""

    digests: list[bytes]


class StreamOpen(NamedTuple):
    """A slot asks for a byte stream to `address`, the path of a listening socket in the owner's process."""

    stream: int
    address: str


class StreamData(NamedTuple):
    """Bytes of a bridged stream, in either direction. One buffer."""

    stream: int


class StreamClose(NamedTuple):
    """One end of a bridged stream has closed it, or it could not be opened, for the reason in `error`."""

    stream: int
    error: str | None


class Mount(NamedTuple):
    """Build a folder of the owner's. One buffer: its `Manifest`. The `Reply` names the chunks that are not here.

    `place` is where tasks find it: in their working directory, or an absolute path. Unless it is `writable`, they may
    only read it.
    """

    request: int
    place: bytes
    writable: bool


class Build(NamedTuple):
    """Build what the `Mount` with this number described, once its chunks are here: they are on their way as blobs.

    The `Reply` is empty; or it names chunks whose content was wrong, and nothing was built.
    """

    request: int
    mount: int


class Attach(NamedTuple):
    """Bring the content of a bucket here. One buffer: what it is and how to reach it, see `core.protocol.buckets`.

    `place` and `writable` as in `Mount`. If it is to be `mounted`, nothing is copied in advance. The `Reply` is empty.
    """

    request: int
    place: bytes
    writable: bool
    mounted: bool


class Renew(NamedTuple):
    """New credentials for what the `Attach` with this number brought. One buffer: they are as there. No reply."""

    attach: int


class Flush(NamedTuple):
    """Bring what was written to all writable buckets there. The `Reply` is empty once that is done."""

    request: int


class Find(NamedTuple):
    """Find the files of tasks that match a pattern. The `Reply` lists them."""

    request: int
    pattern: bytes


class Read(NamedTuple):
    """Read a part of a file, which must have the size and the time of its last change that were listed."""

    request: int
    path: bytes
    offset: int
    length: int
    size: int
    changed: int


class Reply(NamedTuple):
    """What came of a request about files. One buffer, or none if there is an `error`."""

    request: int
    error: str | None


Message = Union[
    Hello, Welcome, Proof, Ping, Pong, Ack, Bye, Setup, Ready, Run, Cancel, Done, Failed, Output, Blob, Forget,
    StreamOpen, StreamData, StreamClose, Recall, Returned, Fetch, Share, Kept, Listening, Peers, Reached,
    Began, Inquire, Missing, Load, Gpus, Code, Mount, Build, Find, Read, Reply, Attach, Renew, Flush,
]  # fmt: skip

MESSAGES: tuple[type[Any], ...] = get_args(Message)
"""Every kind of message; its index in this tuple is its code on the wire."""

ORDERED: frozenset[type[Any]] = frozenset({Output, StreamData})
"""Kinds with buffers that must arrive in the order in which they were sent: a wire refuses them when they are large.

Messages without buffers always keep their order among themselves; any other kind may overtake and be overtaken.
"""

CODES: dict[type[Any], int] = {kind: code for code, kind in enumerate(MESSAGES)}


def _accepts(hint: Any) -> tuple[type, ...]:
    """Return the run-time types that a field's annotation allows (an int is accepted as a float)."""
    types: list[type] = []
    for part in get_args(hint) if type(None) in get_args(hint) else (hint,):
        types.append(getattr(part, "__origin__", part))
    return (*types, int) if float in types else tuple(types)


FIELDS: tuple[tuple[tuple[type, ...], ...], ...] = tuple(
    tuple(_accepts(hint) for hint in kind.__annotations__.values()) for kind in MESSAGES
)
