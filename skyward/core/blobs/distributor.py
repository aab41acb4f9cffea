"""Brings blobs to nodes, from here or from one node to another, as `Relay` decides; knows which node holds which.

Lives in the event loop. A blob that is on its way is held at both of its ends, so that no store forgets it meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from skyward.core.blobs import relay
from skyward.core.blobs.holdings import NodeHoldings
from skyward.core.blobs.snapshots import Snapshot
from skyward.core.nodes.session import Session
from skyward.core.payload.shared_file import SharedFile
from skyward.core.protocol import messages
from skyward.core.visible import shown

__all__ = ["ABOUT_BLOBS", "Distributor"]

ABOUT_BLOBS = (messages.Kept, messages.Listening, messages.Reached)
"""What nodes say that is `Distributor`'s business."""

_log = logging.getLogger("skyward.distributor")

_STORE_SHARE = 0.25  # of a node's memory may hold blobs that no task needs at the moment
_PART = 2 * 2**20  # bytes of one message: what a node passes on as a whole
_LOOK = 0.5  # seconds between two looks for transfers that are late


@dataclass(slots=True, eq=False)
class _Node:
    session: Session
    blobs: NodeHoldings
    using: dict[int, Sequence[bytes]] = field(default_factory=dict)  # blobs of the tasks that are out there
    coming: dict[bytes, Snapshot] = field(default_factory=dict)  # all of what is on its way, in case it does not come
    shared: set[bytes] = field(default_factory=set)  # of these, what it was told to find in a file of ours
    blind: bool = False  # it could not open one


class Distributor:
    """The blobs of one pool's nodes."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Node] = {}
        self._listening: dict[str, tuple[Session, list[Any]]] = {}
        self._relay = relay.Relay()
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Distributor over {len(self._nodes)} nodes; {self._relay}>"

    def node_up(self, session: Session) -> None:
        """A node takes tasks from now on."""
        budget = int(session.facts.get("memory", 0) * _STORE_SHARE)
        self._nodes[session.node] = _Node(session, NodeHoldings(budget))

    def node_down(self, name: str) -> None:
        """A node is gone for good."""
        self._nodes.pop(name, None)
        self._listening.pop(name, None)
        self._carry_out(self._relay.node_down(name))

    def use(self, name: str, task: int, blobs: Mapping[bytes, Snapshot]) -> None:
        """A task that needs these blobs goes to a node."""
        node = self._nodes[name]
        node.using[task] = list(blobs)
        missing, forgotten = node.blobs.use({blob: len(data) for blob, data in blobs.items()})
        for blob in forgotten:
            self._relay.forgotten(name, blob)
        if forgotten:
            node.session.send(messages.Forget(forgotten))
        now = asyncio.get_running_loop().time()
        for blob in missing:
            node.coming[blob] = blobs[blob]
            self._hold(name, blob, len(blobs[blob]))
            self._carry_out([self._relay.want(name, blob, len(blobs[blob]), now)])

    def release(self, name: str, task: int) -> None:
        """A task is over on a node."""
        if (node := self._nodes.get(name)) is not None:
            node.blobs.release(node.using.pop(task, ()))

    def received(self, session: Session, message: messages.Kept | messages.Listening | messages.Reached) -> None:
        """A node's word, also of one that does not take tasks yet."""
        name = session.node
        if isinstance(message, messages.Kept):
            node = self._nodes.get(name)
            if message.error is not None:
                _log.info("%s: a blob did not come from elsewhere: %s", name, shown(message.error))
                if node is not None and message.digest in node.shared:
                    node.blind = True
                    self._give(node, message.digest, node.coming[message.digest], 0)
                else:
                    self._carry_out(self._relay.failed(name, message.digest, message.size))
            elif node is not None:
                node.coming.pop(message.digest, None)
                node.shared.discard(message.digest)
                self._carry_out(self._relay.kept(name, message.digest, asyncio.get_running_loop().time()))
        elif isinstance(message, messages.Reached):
            self._relay.reached(name, message.peers)
        else:
            self._introduce(session, [message.port, *message.addresses])

    def _introduce(self, session: Session, place: list[Any]) -> None:
        others = {name: self._listening[name] for name in self._relay.introduce(session.node)}
        self._listening[session.node] = session, place
        if others:
            session.send(messages.Peers({name: place for name, (_, place) in others.items()}))
        for other, _ in others.values():
            other.send(messages.Peers({session.node: place}))

    # --- doing what the plan says ---

    def _carry_out(self, commands: Iterable[relay.Command]) -> None:
        for command in commands:
            node = self._nodes.get(command.node)
            if node is None:
                continue
            blob = command.blob
            if isinstance(command, relay.Give):
                self._give(node, blob, node.coming[blob], command.offset)
            elif isinstance(command, relay.Fetch):
                size = len(node.coming[blob])
                self._hold(command.peer, blob, size)
                node.session.send(messages.Fetch(blob, size, command.peer))
            elif isinstance(command, relay.Drop):
                node.session.send(messages.Fetch(blob, 0, None))
            else:
                node.blobs.release([blob])
        if self._timer is None and self._relay.busy:
            self._timer = asyncio.get_running_loop().call_later(_LOOK, self._look)

    @staticmethod
    def _give(node: _Node, blob: bytes, data: Snapshot, offset: int) -> None:
        if isinstance(data, SharedFile) and node.session.shares and not node.blind:
            node.shared.add(blob)
            node.session.send(messages.Share(blob, data.path, data.inode, len(data)))
            return
        node.shared.discard(blob)
        view = memoryview(data.map() if isinstance(data, SharedFile) else data)
        for start in range(offset, max(1, len(view)), _PART):  # an empty one is a part too
            node.session.send(messages.Blob(blob, len(view), start), [view[start : start + _PART]])

    def _look(self) -> None:
        self._timer = None
        unlinked = [name for name, node in self._nodes.items() if not node.session.linked]
        self._carry_out(self._relay.late(asyncio.get_running_loop().time(), unlinked))

    def _hold(self, name: str, blob: bytes, size: int) -> None:
        self._nodes[name].blobs.use({blob: size})
