"""A node in this loop: its real file service and store, joined to the driver's half without a wire."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from skyward.core.blobs.distributor import Distributor
from skyward.core.files.requests import Requests
from skyward.core.protocol.messages import Blob, Fetch, Forget, Kept, Message, Reply
from skyward.worker.blob_store import Store
from skyward.worker.file_service import FileService
from skyward.worker.own_folders import OwnFolders, own_folders
from skyward.worker.task_blobs import TaskBlobs

__all__ = ["NearNode", "in_loop"]


class NearNode:
    """A node, and its session as the driver's half knows it."""

    shares = False
    linked = True

    def __init__(self, name: str, place: Path, distributor: Distributor, requests: Requests) -> None:
        self.node = name
        self.facts = {"memory": 10**9}
        self.sent: list[Message] = []
        self.blob_bytes = 0
        self.peers: dict[str, NearNode] = {}
        self._distributor, self._requests = distributor, requests
        self.folders: OwnFolders = own_folders(str(place / "run"), str(place), str(place / "agent"))
        self.store = Store([str(place)])
        self.blobs = TaskBlobs(self.store, self._post, print, print)
        self.service = FileService(asyncio.get_running_loop(), self.blobs, self.folders, self.folders.work, self._post)
        self.harm: Callable[[Message], object] = lambda _: None
        distributor.node_up(self)  # type: ignore[arg-type]

    @property
    def work(self) -> Path:
        """The tasks' working directory."""
        return Path(self.folders.work)

    def send(self, message: Message, buffers: Sequence[Any] = ()) -> int:
        """What a session does, and what an agent then does."""
        self.sent.append(message)
        copies = [bytes(buffer) for buffer in buffers]
        asyncio.get_running_loop().call_soon(self._take, message, copies)
        return len(self.sent)

    def _take(self, message: Any, buffers: list[bytes]) -> None:
        self.harm(message)
        if isinstance(message, Blob):
            self.blob_bytes += len(buffers[0])
            self.blobs.keep(message, buffers[0])
        elif isinstance(message, Forget):
            self.store.forget(message.digests)
        elif isinstance(message, Fetch):
            self._fetch(message)
        else:
            self.service.hear(message, buffers)

    def _fetch(self, message: Fetch) -> None:
        """What a peer exchange does, once the peer has all of it."""
        if message.peer is None:
            self._post(Kept(message.digest, 0, "dropped"))
        elif message.digest in (store := self.peers[message.peer].store):
            data = store.read(message.digest, 0, message.size)
            self.blobs.keep(Blob(message.digest, message.size, 0), data, True)
        else:
            asyncio.get_running_loop().call_later(0.005, self._fetch, message)

    def _post(self, message: Any, buffers: Sequence[Any] = ()) -> None:
        asyncio.get_running_loop().call_soon(self._heard, message, list(buffers))

    def _heard(self, message: Any, buffers: list[Any]) -> None:
        if isinstance(message, Reply):
            self._requests.received(self, message, buffers)  # type: ignore[arg-type]
        else:
            self._distributor.received(self, message)  # type: ignore[arg-type]

    def lose(self) -> None:
        """What a runner does when a node is gone."""
        self._distributor.node_down(self.node)
        self._requests.node_down(self.node, "unplugged")

    def close(self) -> None:
        """What an agent does at its end."""
        self.service.close()
        self.store.close()
        self.folders.close()


def in_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """A test that is a coroutine, with a time limit."""

    def run(tmp_path: Path) -> None:
        asyncio.run(asyncio.wait_for(test(tmp_path), 60))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run
