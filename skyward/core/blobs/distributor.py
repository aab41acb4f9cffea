"""Sends blobs to nodes, from here or from one node to another, as `Relay` decides; knows which node holds which.

It belongs to the event loop. A blob in transit is held at both ends, so that no store evicts it meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from skyward.core.blobs import relay
from skyward.core.blobs.holdings import NodeHoldings
from skyward.core.blobs.snapshots import Snapshot
from skyward.core.events import Events, Transferred
from skyward.core.nodes.session import Session
from skyward.core.payload.shared_file import SharedFile
from skyward.core.protocol import messages
from skyward.core.protocol.messages import Message
from skyward.core.protocol.wire import Buffer
from skyward.core.visible import shown

__all__ = ["ABOUT_BLOBS", "Distributor", "LateBlob"]

ABOUT_BLOBS = (messages.Kept, messages.Listening, messages.Reached)
"""The messages of nodes that `Distributor` handles."""

_log = logging.getLogger("skyward.distributor")

_STORE_SHARE = 0.25  # share of a node's memory that may hold blobs which no task needs at the moment
_PART = 2 * 2**20  # bytes of one message, the unit in which a node passes blobs on
_CHECK_EVERY = 0.5  # seconds between two checks for late transfers


class LateBlob:
    """A blob that is read when it is needed here, and not kept.

    Parameters
    ----------
    size
        Bytes of it.
    load
        Reads it.
    """

    def __init__(self, size: int, load: Callable[[], Awaitable[Buffer]]) -> None:
        self._size = size
        self.load = load

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        return f"<LateBlob of {self._size:,} bytes>"


@dataclass(slots=True, eq=False)
class _Coming:
    """A blob in transit, in case it does not arrive."""

    data: Snapshot | LateBlob
    since: float
    peer: str = ""


@dataclass(slots=True, eq=False)
class _Receiver:
    session: Session
    blobs: NodeHoldings
    using: dict[int, Sequence[bytes]] = field(default_factory=dict)  # by task that is out there, its blobs
    coming: dict[bytes, _Coming] = field(default_factory=dict)
    awaited: dict[bytes, asyncio.Future[None]] = field(default_factory=dict)  # of these, those that `bring` brings
    shared: set[bytes] = field(default_factory=set)  # of these, blobs to be read from one of our files
    blind: bool = False  # it failed to open one of our files


class Distributor:
    """Distributes blobs to the nodes of one pool.

    Parameters
    ----------
    events
        Gets an event for each blob that has arrived.
    """

    def __init__(self, events: Events) -> None:
        self._events = events
        self._nodes: dict[str, _Receiver] = {}
        self._listening: dict[str, tuple[Session, list[Any]]] = {}
        self._relay = relay.Relay()
        self._timer: asyncio.TimerHandle | None = None
        self._loading: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Distributor over {len(self._nodes)} nodes; {self._relay}>"

    @property
    def sessions(self) -> dict[str, Session]:
        """The sessions of the nodes that accept blobs, by node."""
        return {name: node.session for name, node in self._nodes.items()}

    def node_up(self, session: Session) -> None:
        """Add a node that accepts blobs from now on. No effect if repeated."""
        if (known := self._nodes.get(session.node)) is not None and known.session is session:
            return
        budget = int(session.facts.get("memory", 0) * _STORE_SHARE)
        self._nodes[session.node] = _Receiver(session, NodeHoldings(budget))

    def node_down(self, name: str) -> None:
        """Remove a node that is gone for good."""
        node = self._nodes.pop(name, None)
        for arrival in node.awaited.values() if node is not None else ():
            arrival.cancel()
        self._listening.pop(name, None)
        self._carry_out(self._relay.node_down(name))

    def use(self, name: str, task: int, blobs: Mapping[bytes, Snapshot]) -> None:
        """Make sure that a node has the blobs of a task that is about to be sent there.

        Parameters
        ----------
        name, task
            The node and the task.
        blobs
            The task's blobs, by digest.
        """
        node = self._nodes[name]
        node.using[task] = list(blobs)
        missing, forgotten = node.blobs.use({blob: len(data) for blob, data in blobs.items()})
        for blob in forgotten:
            self._relay.forgotten(name, blob)
        if forgotten:
            node.session.send(messages.Forget(forgotten))
        now = asyncio.get_running_loop().time()
        for blob in missing:
            node.coming[blob] = _Coming(blobs[blob], now)
            self._hold(name, blob, len(blobs[blob]))
            self._carry_out([self._relay.want(name, blob, len(blobs[blob]), now)])

    def holds(self, name: str, blobs: Collection[bytes]) -> None:
        """Record that a node has these blobs on its disk, so that others may fetch them there."""
        if (node := self._nodes.get(name)) is not None:
            node.blobs.use(dict.fromkeys(blobs, 0))
            node.blobs.release(blobs)
            self._relay.holds(name, blobs)

    def bring(self, name: str, blob: bytes, data: LateBlob) -> asyncio.Future[None]:
        """Bring a blob to a node that keeps it on its disk, where it takes no memory.

        Parameters
        ----------
        name, blob, data
            The node, the blob's digest, and the blob.

        Returns
        -------
        asyncio.Future
            Completed when it is there; cancelled if the node is lost, failed if the blob can't be read.
        """
        loop = asyncio.get_running_loop()
        if (node := self._nodes.get(name)) is None:
            lost: asyncio.Future[None] = loop.create_future()
            lost.cancel()
            return lost
        if (coming := node.awaited.get(blob)) is not None:
            return coming
        arrival = node.awaited[blob] = loop.create_future()
        node.coming[blob] = _Coming(data, now := loop.time())
        node.blobs.use({blob: 0})
        self._carry_out([self._relay.want(name, blob, len(data), now)])
        return arrival

    def release(self, name: str, task: int) -> None:
        """Release the blobs of a task that is over on a node."""
        if (node := self._nodes.get(name)) is not None:
            node.blobs.release(node.using.pop(task, ()))

    def received(self, session: Session, message: Message) -> None:
        """Handle one of `ABOUT_BLOBS`, also from a node that does not accept tasks yet."""
        self._MESSAGES[type(message)](self, session, message)

    def _kept(self, session: Session, message: messages.Kept) -> None:
        node = self._nodes.get(session.node)
        if message.error is not None:
            self._not_kept(session.node, node, message)
        elif node is not None:
            now = asyncio.get_running_loop().time()
            coming = node.coming.pop(message.digest, None)
            if coming is not None and message.digest not in node.shared:
                name, size = session.node, len(coming.data)
                self._events.emit(Transferred(name, size, coming.peer, coming.since, now - coming.since))
            node.shared.discard(message.digest)
            if (arrival := node.awaited.pop(message.digest, None)) is not None and not arrival.done():
                arrival.set_result(None)
            self._carry_out(self._relay.kept(session.node, message.digest, now))

    def _not_kept(self, name: str, node: _Receiver | None, message: messages.Kept) -> None:
        _log.info("%s: a blob did not arrive from elsewhere: %s", name, shown(str(message.error)))
        if node is not None and message.digest in node.shared:
            node.blind = True
            self._give(node, message.digest, node.coming[message.digest].data, 0)
        else:
            self._carry_out(self._relay.failed(name, message.digest, message.size))

    def _reached(self, session: Session, message: messages.Reached) -> None:
        self._relay.reached(session.node, message.peers)

    def _introduce(self, session: Session, message: messages.Listening) -> None:
        place = [message.port, *message.addresses]
        others = {name: self._listening[name] for name in self._relay.introduce(session.node)}
        self._listening[session.node] = session, place
        if others:
            session.send(messages.Peers({name: place for name, (_, place) in others.items()}))
        for other, _ in others.values():
            other.send(messages.Peers({session.node: place}))

    _MESSAGES: ClassVar[dict[type[Any], Callable[[Distributor, Session, Any], None]]] = {
        messages.Kept: _kept,
        messages.Listening: _introduce,
        messages.Reached: _reached,
    }

    # --- carrying out the plan ---

    def _carry_out(self, commands: Iterable[relay.Command]) -> None:
        for command in commands:
            if (node := self._nodes.get(command.node)) is not None:
                self._COMMANDS[type(command)](self, node, command)
        if self._timer is None and self._relay.busy:
            self._timer = asyncio.get_running_loop().call_later(_CHECK_EVERY, self._drop_late)

    def _give_rest(self, node: _Receiver, command: relay.Give) -> None:
        coming = node.coming[command.blob]
        coming.peer = ""
        self._give(node, command.blob, coming.data, command.offset)

    def _fetch(self, node: _Receiver, command: relay.Fetch) -> None:
        coming = node.coming[command.blob]
        coming.peer, size = command.peer, len(coming.data)
        self._hold(command.peer, command.blob, size)
        node.session.send(messages.Fetch(command.blob, size, command.peer))

    def _drop(self, node: _Receiver, command: relay.Drop) -> None:
        node.session.send(messages.Fetch(command.blob, 0, None))

    def _free(self, node: _Receiver, command: relay.Free) -> None:
        node.blobs.release([command.blob])

    _COMMANDS: ClassVar[dict[type[Any], Callable[[Distributor, _Receiver, Any], None]]] = {
        relay.Give: _give_rest,
        relay.Fetch: _fetch,
        relay.Drop: _drop,
        relay.Free: _free,
    }

    def _give(self, node: _Receiver, blob: bytes, data: Snapshot | LateBlob, offset: int) -> None:
        if isinstance(data, LateBlob):
            task = asyncio.create_task(self._give_late(node, blob, data, offset))
            self._loading.add(task)
            task.add_done_callback(self._loading.discard)
            return
        if isinstance(data, SharedFile) and node.session.shares and not node.blind:
            node.shared.add(blob)
            node.session.send(messages.Share(blob, data.path, data.inode, len(data)))
            return
        node.shared.discard(blob)
        self._send(node, blob, data.map() if isinstance(data, SharedFile) else data, offset)

    @staticmethod
    async def _give_late(node: _Receiver, blob: bytes, data: LateBlob, offset: int) -> None:
        try:
            content = await data.load()
        except Exception as error:  # who waits for it would wait forever
            if (arrival := node.awaited.get(blob)) is not None and not arrival.done():
                arrival.set_exception(error)
        else:
            Distributor._send(node, blob, content, offset)

    @staticmethod
    def _send(node: _Receiver, blob: bytes, data: Buffer, offset: int) -> None:
        view = memoryview(data)
        for start in range(offset, max(1, len(view)), _PART):  # an empty blob has one part too
            node.session.send(messages.Blob(blob, len(view), start), [view[start : start + _PART]])

    def _drop_late(self) -> None:
        self._timer = None
        unlinked = [name for name, node in self._nodes.items() if not node.session.linked]
        self._carry_out(self._relay.late(asyncio.get_running_loop().time(), unlinked))

    def _hold(self, name: str, blob: bytes, size: int) -> None:
        self._nodes[name].blobs.use({blob: size})
