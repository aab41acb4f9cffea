"""Mounts or copies buckets on the pool's nodes before these get tasks, and has nodes save what tasks have written.

A node gets the buckets' addresses, and does both itself.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from skyward.core.errors import NodeLost, VolumeFailed
from skyward.core.files.requests import RequestRefused, Requests
from skyward.core.nodes.session import Session
from skyward.core.protocol.buckets import Bucket, BucketKeys
from skyward.core.protocol.messages import Attach, Flush, Renew
from skyward.core.volumes import S3Volume

__all__ = ["BucketSource", "BucketSupply"]

_HALF = 0.5  # of the time that keys are good for
_RETRY = 30.0  # seconds until a failed request for new keys is retried
_LOOK = 60.0  # seconds between looks at the clock: the loop's own time stands still while the computer is suspended


class BucketSource(Protocol):
    """What a volume refers to. Its methods block, are called from worker threads, and raise errors of ours."""

    def check(self) -> Bucket:
        """Find out whether nodes will be able to use it; called once, before anything is bought."""
        ...

    def keys(self) -> BucketKeys:
        """Return new keys for nodes; called before the last ones expire."""
        ...


class BucketSupply:
    """Brings buckets to the nodes of one pool. Belongs to the event loop.

    Parameters
    ----------
    requests
        Asks nodes.
    volumes
        Each with its store and what was found there.
    warn
        Called with warnings for the user.
    wall
        The time in seconds since 1970, by which keys expire.
    """

    def __init__(
        self,
        requests: Requests,
        volumes: Sequence[tuple[S3Volume, BucketSource, Bucket]],
        warn: Callable[[str], object],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._requests = requests
        self._wall = wall
        self._volumes = volumes
        self._warn = warn
        self._keys: list[BucketKeys] = [bucket.keys for _, _, bucket in volumes]
        self._attached: dict[str, tuple[Session, list[int]]] = {}  # node -> its session, and the requests' numbers
        self._renewing: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"<BucketSupply of {len(self._volumes)} buckets>"

    def begin(self) -> None:
        """Renew keys from now on."""
        for index, keys in enumerate(self._keys):
            if keys.expires is not None:
                self._renewing.append(asyncio.ensure_future(self._renew(index)))

    def stop(self) -> None:
        """Stop renewing keys."""
        for task in self._renewing:
            task.cancel()

    async def bring(self, session: Session, report: Callable[[str], object]) -> None:
        """Have a node mount all buckets that tasks may only read, if it can, and copy the others.

        Parameters
        ----------
        session
            The node's.
        report
            Called with a few words on what is done.

        Raises
        ------
        VolumeFailed
            That is not possible.
        NodeLost
            The node was lost meanwhile.
        """
        numbers: list[int] = []
        self._attached[session.node] = session, numbers
        for index, (volume, _, bucket) in enumerate(self._volumes):
            reason = ""
            if volume.read_only:
                report(f"mounting {bucket.url}")
                refusal = await self._attach(session, index, numbers, mounted=True)
                if refusal is None:
                    continue
                numbers.pop()
                reason = f" (it can't be mounted: {refusal})"
            report(f"copying {bucket.url}: {bucket.size / 1e6:,.0f} MB{reason}")
            if (refusal := await self._attach(session, index, numbers, mounted=False)) is not None:
                raise VolumeFailed(f"volume {bucket.url} on {session.node}: {refusal}") from refusal

    async def _attach(
        self, session: Session, index: int, numbers: list[int], *, mounted: bool
    ) -> RequestRefused | None:
        """Have a node bring a volume to its tasks, in one of two ways; returns why it can't."""
        volume, _, bucket = self._volumes[index]
        packed = bucket.with_keys(self._keys[index]).pack()
        attach = partial(Attach, place=os.fsencode(volume.path), writable=not volume.read_only, mounted=mounted)
        number, reply = self._requests.ask(session, attach, [packed])
        numbers.append(number)
        try:
            await reply
        except RequestRefused as refusal:
            return refusal
        return None

    async def flush(self) -> list[str]:
        """Have all nodes save what was written; returns what can't be saved, and why."""
        if all(volume.read_only for volume, _, _ in self._volumes):
            return []
        replies = {session.node: self._requests.ask(session, Flush)[1] for session, _ in list(self._attached.values())}
        problems = []
        for node, reply in replies.items():
            try:
                await reply
            except RequestRefused as refusal:
                problems.append(f"{node}: {refusal}")
            except NodeLost:
                continue  # no task of it has been reported done whose files are not saved
        return problems

    async def _renew(self, index: int) -> None:
        """Give all nodes new keys for a bucket, each time that half of the time of the last ones has passed."""
        _, store, bucket = self._volumes[index]
        loop = asyncio.get_running_loop()
        wait = self._keys[index].left(self._wall()) * _HALF
        while True:
            await self._pass(wait)
            try:
                keys = await loop.run_in_executor(None, store.keys)
                self._hand_out(index, keys)
            except Exception as error:  # whatever it is, those that the nodes have end, unless this goes on
                self._warn(f"{bucket.url}: no new keys for the nodes yet, whose own end in time: {error}")
                wait = _RETRY
            else:
                left = keys.left(self._wall())
                wait = left * _HALF if left > 0 else _RETRY

    async def _pass(self, seconds: float) -> None:
        """Wait until the clock on the wall, which goes on while this computer is suspended, shows so much more."""
        end = self._wall() + seconds
        while (left := end - self._wall()) > 0:  # noqa: ASYNC110  nobody tells of time
            await asyncio.sleep(min(left, _LOOK))

    def _hand_out(self, index: int, keys: BucketKeys) -> None:
        """Give a bucket's new keys to all nodes that use it, and to those to come."""
        self._keys[index] = keys
        for session, numbers in self._attached.values():
            if index < len(numbers):
                session.send(Renew(numbers[index]), [keys.pack()])

    def node_down(self, name: str) -> None:
        """Forget a node."""
        self._attached.pop(name, None)
