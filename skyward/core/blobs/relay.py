"""Decides who gets a blob from whom, so that each leaves the driver about once. Pure: nodes and blobs are names.

Nodes that want the same blob form a tree below the first one, which the driver feeds. A node passes on what it has
while the rest still arrives, so a level of the tree costs a moment and not another transfer. What always holds:

* a node that needs a blob gets it once, from the driver or from one node; only a transfer that failed is followed by
  another one, by the driver itself, for the bytes that are missing: nothing is tried without end;
* nobody is asked to serve what it neither has nor is getting, nor more than `FANOUT` nodes at a time;
* only pairs of which it is known that one reaches the other are used. One that failed is not used again.

From the first command for a blob on a node until `Free`, that node must keep what it has of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, Union

__all__ = ["FANOUT", "GRACE", "UNLINKED", "Command", "Drop", "Fetch", "Free", "Give", "Relay"]

FANOUT = 2  # nodes that one serves at a time: with more, each gets less than the driver itself could give
GRACE = 2.0  # seconds that a blob may take longer than it would from the driver
UNLINKED = 2.0  # seconds for which those that are served wait for a node that the driver lost sight of
_ACQUAINTED = 16  # nodes that a new one is introduced to: enough for a tree, and few where there are thousands


class Give(NamedTuple):
    """The driver sends the node the blob's bytes from `offset` on."""

    node: str
    blob: bytes
    offset: int


class Fetch(NamedTuple):
    """The node shall get the blob from a peer, which must keep it until `Free`."""

    node: str
    blob: bytes
    peer: str


class Drop(NamedTuple):
    """The node shall end a fetch that takes too long, and say how far it came: `Relay.failed` is expected."""

    node: str
    blob: bytes


class Free(NamedTuple):
    """The node need not keep the blob for a transfer any more, once for each `Give` after `want` and each `Fetch`."""

    node: str
    blob: bytes


Command: TypeAlias = Union[Give, Fetch, Drop, Free]


@dataclass(slots=True)
class _Transfer:
    """A blob on its way to a node."""

    peer: str | None  # None: from the driver
    size: int
    began: float
    depth: int  # hops from the driver, or from a node that has it whole
    share: int = 1  # how many wanted the blob at that time: the driver's line would be shared by them
    dropped: bool = False
    fallback: int | None = None  # where the driver went on after a failure


class Relay:
    """The plan for one pool. Times are seconds on any steady clock."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}  # node that can take part -> how many it was introduced to
        self._reach: dict[str, set[str]] = {}  # node -> peers that it can fetch from
        self._holders: dict[bytes, dict[str, None]] = {}  # blob -> nodes that have it whole, in order
        self._moving: dict[bytes, dict[str, _Transfer]] = {}
        self._serving: Counter[str] = Counter()
        self._unlinked: dict[str, float] = {}  # nodes that the driver does not reach -> since when
        self._seconds_per_byte: float | None = None  # seconds that the driver takes for a byte

    def __repr__(self) -> str:
        moving = sum(map(len, self._moving.values()))
        return f"<Relay {len(self._known)} peers, {moving} moving, {self._serving.total()} of them between nodes>"

    @property
    def busy(self) -> bool:
        """Whether any node gets a blob from another one, so that `late` is to be asked now and then."""
        return bool(self._serving or self._unlinked)

    # --- who reaches whom ---

    def introduce(self, node: str) -> list[str]:
        """A node listens to others from now on: whom it is to be made acquainted with, and they with it."""
        others = sorted(self._known, key=lambda other: self._known[other])[:_ACQUAINTED]
        for other in others:
            self._known[other] += 1
        self._known[node] = len(others)
        return others

    def reached(self, node: str, peers: Collection[str]) -> None:
        """The node has found that it reaches these."""
        self._reach.setdefault(node, set()).update(peer for peer in peers if peer in self._known and peer != node)

    # --- blobs ---

    def want(self, node: str, blob: bytes, size: int, now: float) -> Command:
        """The node needs the blob, and neither has it nor is getting it."""
        moving = self._moving.setdefault(blob, {})
        peer = self._source(node, blob)
        depth = 1 if peer is None or peer not in moving else moving[peer].depth + 1
        moving[node] = _Transfer(peer, size, now, depth)
        for transfer in moving.values():
            transfer.share = max(transfer.share, len(moving))
        if peer is None:
            return Give(node, blob, 0)
        self._serving[peer] += 1
        return Fetch(node, blob, peer)

    def _source(self, node: str, blob: bytes) -> str | None:
        """The peer with the fewest hops before it, and of those the one with the least to do; None: the driver."""
        moving = self._moving.get(blob, {})
        peers = [*self._holders.get(blob, ()), *moving]
        reach = self._reach.get(node, set())
        able = [peer for peer in peers if peer in reach and peer not in self._unlinked and self._serving[peer] < FANOUT]
        depths = {peer: moving[peer].depth if peer in moving else 0 for peer in able}
        return min(able, key=lambda peer: (depths[peer], self._serving[peer]), default=None)

    def kept(self, node: str, blob: bytes, now: float) -> list[Command]:
        """The node has it whole."""
        transfer = self._end(node, blob)
        if transfer is None:
            return []
        self._holders.setdefault(blob, {})[node] = None
        if transfer.peer is None and transfer.fallback is None:
            self._seconds_per_byte = (now - transfer.began) / max(1, transfer.size)
        return [Free(node, blob), *self._part(blob, transfer)]

    def failed(self, node: str, blob: bytes, offset: int) -> list[Command]:
        """A fetch failed, or was dropped, after so many bytes: the driver sends the rest."""
        transfer = self._moving.get(blob, {}).get(node)
        if transfer is None or (transfer.peer is None and not transfer.fallback):
            return []  # what came from the driver alone does not fail
        if transfer.peer is not None:
            self._reach.get(node, set()).discard(transfer.peer)
        transfer.fallback, transfer.depth = offset, 1
        return [Give(node, blob, offset), *self._part(blob, transfer)]

    def forgotten(self, node: str, blob: bytes) -> None:
        """The node will have it no more; nothing moves it to or from there."""
        holders = self._holders.get(blob, {})
        holders.pop(node, None)
        if not holders:
            self._holders.pop(blob, None)

    def node_down(self, node: str) -> list[Command]:
        """The node is gone for good. Who got something from it is asked how far that came."""
        commands: list[Command] = []
        for blob in [blob for blob, moving in self._moving.items() if node in moving]:
            transfer = self._end(node, blob)
            assert transfer is not None
            commands += self._part(blob, transfer)
        for blob in [blob for blob, holders in self._holders.items() if node in holders]:
            self.forgotten(node, blob)
        self._known.pop(node, None)
        self._reach.pop(node, None)
        self._unlinked.pop(node, None)
        for reach in self._reach.values():
            reach.discard(node)
        return commands + self._drop(lambda transfer: transfer.peer == node)

    def late(self, now: float, unlinked: Collection[str]) -> list[Command]:
        """Drop what would by now have come from the driver itself, or comes from a node that it lost sight of."""
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

    def _part(self, blob: bytes, transfer: _Transfer) -> list[Command]:
        """The transfer's peer, if it has one, has served it."""
        peer, transfer.peer = transfer.peer, None
        if peer is None:
            return []
        self._serving[peer] -= 1
        if not self._serving[peer]:
            del self._serving[peer]
        return [Free(peer, blob)]
