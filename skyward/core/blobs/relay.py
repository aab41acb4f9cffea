"""Decides which node gets a blob from where, so that each blob leaves the driver about once. Pure; only names.

Nodes that want the same blob form a tree below the first one, which the driver feeds. A node passes on what it has
while the rest still arrives, so each level of the tree adds a short delay and not another transfer. Invariants:

* A node that needs a blob gets it once, from the driver or from one peer. Only a failed transfer is followed by another
  one, in which the driver itself sends the missing bytes; nothing is retried forever.
* No node is asked to serve a blob that it neither has nor is receiving, nor to serve more than `FANOUT` at once.
* Only pairs of nodes known to reach each other are used. A pair that failed is not used again.

From the first command for a blob on a node until `Free`, that node must keep what it has of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, Union

__all__ = ["FANOUT", "GRACE", "TELLING", "UNLINKED", "Command", "Drop", "Fetch", "Free", "Give", "Relay"]

FANOUT = 2  # nodes served by one node at once: with more, each would get less than from the driver itself
TELLING = 32 * 1024  # bytes; what is smaller takes a round trip, and says nothing of how fast the driver's line is
GRACE = 2.0  # seconds that a blob may take beyond what it would take from the driver
UNLINKED = 2.0  # seconds that fetches from a node continue after the driver lost its link to it
_ACQUAINTED = 16  # nodes that a new node is introduced to: enough for a tree, and few among thousands


class Give(NamedTuple):
    """The driver sends the node the blob's bytes from `offset` on."""

    node: str
    blob: bytes
    offset: int


class Fetch(NamedTuple):
    """The node fetches the blob from a peer, which must keep it until `Free`."""

    node: str
    blob: bytes
    peer: str


class Drop(NamedTuple):
    """The node aborts a fetch that takes too long and reports the bytes it has; `Relay.failed` is expected."""

    node: str
    blob: bytes


class Free(NamedTuple):
    """The node need no longer keep the blob for a transfer. One for each `Give` from `want`, and for each `Fetch`."""

    node: str
    blob: bytes


Command: TypeAlias = Union[Give, Fetch, Drop, Free]


@dataclass(slots=True)
class _Transfer:
    """A blob on its way to a node."""

    peer: str | None  # None: from the driver
    size: int
    began: float
    depth: int  # hops from the driver, or from a node that has the complete blob
    share: int = 1  # nodes that wanted the blob at the same time and would share the driver's bandwidth
    dropped: bool = False
    fallback: int | None = None  # offset at which the driver continued after a failure


class Relay:
    """The plan for one pool. Times are in seconds on any monotonic clock."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}  # participating node -> number of nodes it was introduced to
        self._reach: dict[str, set[str]] = {}  # node -> peers that it can fetch from
        self._holders: dict[bytes, dict[str, None]] = {}  # blob -> nodes that have all of it, in order
        self._moving: dict[bytes, dict[str, _Transfer]] = {}
        self._serving: dict[str, Counter[str]] = {}  # peer -> nodes that fetch from it -> how many blobs
        self._unlinked: dict[str, float] = {}  # nodes without a link to the driver -> since when
        self._seconds_per_byte: float | None = None  # measured on transfers from the driver

    def __repr__(self) -> str:
        moving = sum(map(len, self._moving.values()))
        between = sum(nodes.total() for nodes in self._serving.values())
        return f"<Relay {len(self._known)} peers, {moving} moving, {between} of them between nodes>"

    @property
    def busy(self) -> bool:
        """Whether any node is getting a blob from another one, so `late` has to be called periodically."""
        return bool(self._serving or self._unlinked)

    # --- who reaches whom ---

    def introduce(self, node: str) -> list[str]:
        """Add a node that accepts connections from peers; return the nodes that it and they are to be introduced to."""
        others = sorted(self._known, key=lambda other: self._known[other])[:_ACQUAINTED]
        for other in others:
            self._known[other] += 1
        self._known[node] = len(others)
        return others

    def reached(self, node: str, peers: Collection[str]) -> None:
        """Record that a node has found that it reaches these peers."""
        self._reach.setdefault(node, set()).update(peer for peer in peers if peer in self._known and peer != node)

    # --- blobs ---

    def want(self, node: str, blob: bytes, size: int, now: float) -> Command:
        """Plan how a node gets a blob that it needs and neither has nor is receiving.

        Parameters
        ----------
        node, blob
            The node and the blob.
        size
            Bytes of the blob.
        now
            The time.
        """
        moving = self._moving.setdefault(blob, {})
        peer = self._source(node, blob)
        depth = 1 if peer is None or peer not in moving else moving[peer].depth + 1
        moving[node] = _Transfer(peer, size, now, depth)
        for transfer in moving.values():
            transfer.share = max(transfer.share, len(moving))
        if peer is None:
            return Give(node, blob, 0)
        self._serving.setdefault(peer, Counter())[node] += 1
        return Fetch(node, blob, peer)

    def _source(self, node: str, blob: bytes) -> str | None:
        """Return the peer with the fewest hops, the least busy of several; None for the driver."""
        moving = self._moving.get(blob, {})
        peers = [*self._holders.get(blob, ()), *moving]
        reach = self._reach.get(node, set())
        able = [peer for peer in peers if peer in reach and peer not in self._unlinked and self._may_serve(peer, node)]
        depths = {peer: moving[peer].depth if peer in moving else 0 for peer in able}
        return min(able, key=lambda peer: (depths[peer], self._serving.get(peer, Counter()).total()), default=None)

    def _may_serve(self, peer: str, node: str) -> bool:
        served = self._serving.get(peer, Counter())
        return node in served or len(served) < FANOUT

    def holds(self, node: str, blobs: Iterable[bytes]) -> None:
        """Record that a node has these blobs already, from an earlier pool."""
        for blob in blobs:
            self._holders.setdefault(blob, {})[node] = None

    def kept(self, node: str, blob: bytes, now: float) -> list[Command]:
        """Record that a node has all of a blob.

        Parameters
        ----------
        node, blob
            The node and the blob.
        now
            The time.
        """
        transfer = self._end(node, blob)
        if transfer is None:
            return []
        self._holders.setdefault(blob, {})[node] = None
        if transfer.peer is None and transfer.fallback is None and transfer.size >= TELLING:
            self._seconds_per_byte = (now - transfer.began) / transfer.size
        return [Free(node, blob), *self._part(node, blob, transfer)]

    def failed(self, node: str, blob: bytes, offset: int) -> list[Command]:
        """Record that a fetch failed or was dropped; the driver sends the rest.

        Parameters
        ----------
        node, blob
            The node that fetched, and the blob.
        offset
            Bytes that it has.
        """
        transfer = self._moving.get(blob, {}).get(node)
        if transfer is None or (transfer.peer is None and not transfer.fallback):
            return []  # transfers from the driver alone do not fail
        if transfer.peer is not None:
            self._reach.get(node, set()).discard(transfer.peer)
        transfer.fallback, transfer.depth = offset, 1
        return [Give(node, blob, offset), *self._part(node, blob, transfer)]

    def forgotten(self, node: str, blob: bytes) -> None:
        """Record that a node is about to evict a blob, which is not in transit to or from it."""
        holders = self._holders.get(blob, {})
        holders.pop(node, None)
        if not holders:
            self._holders.pop(blob, None)

    def node_down(self, node: str) -> list[Command]:
        """Remove a node that is gone for good; fetches from it are dropped."""
        commands: list[Command] = []
        for blob in [blob for blob, moving in self._moving.items() if node in moving]:
            transfer = self._end(node, blob)
            assert transfer is not None
            commands += self._part(node, blob, transfer)
        for blob in [blob for blob, holders in self._holders.items() if node in holders]:
            self.forgotten(node, blob)
        self._known.pop(node, None)
        self._reach.pop(node, None)
        self._unlinked.pop(node, None)
        for reach in self._reach.values():
            reach.discard(node)
        return commands + self._drop(lambda transfer: transfer.peer == node)

    def late(self, now: float, unlinked: Collection[str]) -> list[Command]:
        """Drop fetches that the driver itself would have completed by now, or from nodes unlinked for too long."""
        self._unlinked = {node: self._unlinked.get(node, now) for node in unlinked}

        def is_late(transfer: _Transfer) -> bool:
            if transfer.peer in self._unlinked:
                return now - self._unlinked[transfer.peer] > UNLINKED
            return self._seconds_per_byte is not None and (
                now - transfer.began > transfer.share * transfer.size * self._seconds_per_byte + GRACE
            )

        return self._drop(is_late)

    def _drop(self, condition: Callable[[_Transfer], bool]) -> list[Command]:
        commands: list[Command] = []
        for blob, moving in self._moving.items():
            for node, transfer in moving.items():
                if transfer.peer is not None and not transfer.dropped and condition(transfer):
                    transfer.dropped = True
                    commands.append(Drop(node, blob))
        return commands

    def _end(self, node: str, blob: bytes) -> _Transfer | None:
        moving = self._moving.get(blob, {})
        transfer = moving.pop(node, None)
        if not moving:
            self._moving.pop(blob, None)
        return transfer

    def _part(self, node: str, blob: bytes, transfer: _Transfer) -> list[Command]:
        """Free the peer, if any, that served a transfer."""
        peer, transfer.peer = transfer.peer, None
        if peer is None:
            return []
        served = self._serving[peer]
        served[node] -= 1
        if not served[node]:
            del served[node]
        if not served:
            del self._serving[peer]
        return [Free(peer, blob)]
