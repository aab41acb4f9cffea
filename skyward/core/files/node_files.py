"""The files of one pool: folders on their way to nodes, and what nodes are asked about their files."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from skyward.core.blobs.distributor import Distributor
from skyward.core.errors import DownloadFailed
from skyward.core.files.bucket_supply import BucketSupply
from skyward.core.files.download import download
from skyward.core.files.folder import Folder
from skyward.core.files.requests import Requests
from skyward.core.files.supply import FolderSupply
from skyward.core.nodes.session import Session
from skyward.core.volumes import LocalVolume

__all__ = ["NodeFiles"]


class NodeFiles:
    """Files between driver and nodes. Belongs to the event loop.

    Parameters
    ----------
    distributor
        Sends chunks.
    """

    def __init__(self, distributor: Distributor) -> None:
        self._distributor = distributor
        self._supply: FolderSupply | None = None
        self._buckets: BucketSupply | None = None
        self.requests = Requests()

    def __repr__(self) -> str:
        return f"<NodeFiles {self._supply or 'without folders'}, {self.requests}>"

    def mount(self, volumes: Sequence[tuple[LocalVolume, Folder]]) -> None:
        """Bring these folders to every node before it gets tasks; begins to read them."""
        self._supply = FolderSupply(self._distributor, self.requests, volumes)
        self._supply.begin()

    def attach(self, make: Callable[[Requests], BucketSupply]) -> None:
        """Have every node fetch buckets before it gets tasks."""
        self._buckets = make(self.requests)
        self._buckets.begin()

    def bring(self, session: Session, report: Callable[[str], object]) -> Callable[[], Awaitable[None]] | None:
        """Return what brings folders and buckets to a node whose slots have started; None if there are none.

        Parameters
        ----------
        session
            The node's.
        report
            Called with a few words on how far it is, if that takes a while.

        Returns
        -------
        callable or None
            Raises `VolumeFailed` or `NodeLost` if they can't be brought there, or the node was lost meanwhile.
        """
        if self._supply is None and self._buckets is None:
            return None
        self._distributor.node_up(session)
        return functools.partial(self._bring, session, report)

    async def _bring(self, session: Session, report: Callable[[str], object]) -> None:
        if self._supply is not None:
            await self._supply.bring(session, report)
        if self._buckets is not None:
            await self._buckets.bring(session, report)

    def node_down(self, name: str, reason: str) -> None:
        """Give up the requests to a node that is gone for good."""
        self.requests.node_down(name, reason)
        if self._buckets is not None:
            self._buckets.node_down(name)

    async def download(
        self, pattern: str, to: str, *, overwrite: bool, shared: bool, report: Callable[[str], object]
    ) -> list[Path]:
        """Fetch files of the nodes that are ready.

        Parameters
        ----------
        pattern, to, overwrite
            See `Compute.download`.
        shared
            Whether the nodes run tasks in one and the same folder, so that one of them has what all have.
        report
            Called with a few words on how far it is, if that takes a while.

        Raises
        ------
        DownloadFailed
            That is not possible; no file here has changed.
        """
        sessions = self._distributor.sessions
        if shared:
            sessions = dict(list(sessions.items())[:1])
        if not sessions:
            raise DownloadFailed("no node is ready")
        return await download(self.requests, sessions, pattern, to, overwrite=overwrite, report=report)

    async def flush(self) -> list[str]:
        """Have all nodes save what tasks have written to buckets; returns what can't be saved, and why."""
        return [] if self._buckets is None else await self._buckets.flush()

    def stop(self) -> None:
        """The pool ends: read nothing more."""
        if self._supply is not None:
            self._supply.stop()
        if self._buckets is not None:
            self._buckets.stop()
