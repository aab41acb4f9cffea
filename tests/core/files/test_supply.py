"""Folders arrive at nodes whole, once, and only what is new is sent."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from skyward.core.blobs.distributor import Distributor
from skyward.core.errors import NodeLost, VolumeFailed
from skyward.core.events import Events
from skyward.core.files.folder import scan
from skyward.core.files.requests import RequestRefused, Requests
from skyward.core.files.supply import FolderSupply
from skyward.core.protocol import messages
from skyward.core.protocol.manifest import CHUNK, FolderFile, Manifest, chunk_size
from skyward.core.volumes import LocalVolume
from tests.core.files.near_node import NearNode, in_loop
from tests.worker.test_folder_build import content

pytestmark = pytest.mark.slow


class Driver:
    """The driver's half."""

    def __init__(self, *volumes: LocalVolume) -> None:
        self.distributor, self.requests = Distributor(Events()), Requests()
        folders = [(volume, scan(os.fspath(volume.source))) for volume in volumes]
        self.supply = FolderSupply(self.distributor, self.requests, folders)
        self.said: list[str] = []
        self.spoke = asyncio.Event()

    def node(self, name: str, place: Path) -> NearNode:
        place.mkdir(exist_ok=True)
        return NearNode(name, place, self.distributor, self.requests)

    async def bring(self, node: NearNode) -> None:
        await self.supply.bring(node, self._say)  # type: ignore[arg-type]

    def _say(self, text: str) -> None:
        self.said.append(text)
        self.spoke.set()

    def introduce(self, *nodes: NearNode) -> None:
        """Nodes that reach each other."""
        names = [node.node for node in nodes]
        for node in nodes:
            node.peers = {other.node: other for other in nodes}
            self.distributor.received(node, messages.Listening(1, ["10.0.0.1"]))  # type: ignore[arg-type]
        for node in nodes:
            self.distributor.received(node, messages.Reached(names))  # type: ignore[arg-type]


def source(tmp_path: Path, chunks: int = 4) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    with (folder / "large").open("wb") as file:
        for number in range(chunks):
            file.seek(number * CHUNK)
            file.write(os.urandom(64))
        file.truncate(chunks * CHUNK)
    for number in range(20):
        (folder / f"small{number}").write_bytes(b"x" * number)
    return folder


@in_loop
async def test_a_folder_arrives(tmp_path: Path) -> None:
    folder = source(tmp_path)
    driver = Driver(LocalVolume("deep/data", folder))
    node = driver.node("n1", tmp_path / "n1")
    await driver.bring(node)
    assert content(node.work / "deep" / "data") == content(folder)
    assert node.blob_bytes == scan(str(folder)).size
    assert not driver.distributor._nodes["n1"].coming
    assert not driver.distributor._nodes["n1"].blobs._users


@in_loop
async def test_a_chunk_that_is_read_for_a_node_that_is_gone_is_not_kept(tmp_path: Path) -> None:
    """The distributor may be about to send it as the node is given up, and so may others be."""
    driver = Driver(LocalVolume("data", source(tmp_path)))
    await driver.bring(driver.node("n1", tmp_path / "n1"))
    (volume,) = driver.supply._contents
    manifest, _ = await volume.manifest()
    name = manifest.chunks[0]
    assert len(await volume.chunk(name).load()) == chunk_size(name)
    assert not volume._recent


@in_loop
async def test_the_second_start_sends_what_has_changed(tmp_path: Path) -> None:
    folder = source(tmp_path)
    first = Driver(LocalVolume("data", folder))
    node = first.node("n1", tmp_path / "n1")
    await first.bring(node)
    node.close()
    (folder / "new").write_bytes(b"new" * 100)
    with (folder / "large").open("r+b") as file:
        file.seek(2 * CHUNK)
        file.write(b"changed")
    second = Driver(LocalVolume("data", folder))
    node = second.node("n1", tmp_path / "n1")
    await second.bring(node)
    assert content(node.work / "data") == content(folder)
    assert CHUNK <= node.blob_bytes < CHUNK + 1000
    third = Driver(LocalVolume("elsewhere", folder))
    node = third.node("n2", tmp_path / "n1")
    await third.bring(node)
    assert node.blob_bytes == 0


@in_loop
async def test_nodes_get_chunks_from_each_other(tmp_path: Path) -> None:
    """Also from one that has them of an earlier pool, though the driver's files have changed since."""
    folder = source(tmp_path)
    driver = Driver(LocalVolume("data", folder))
    nodes = [driver.node(f"n{number}", tmp_path / f"n{number}") for number in range(3)]
    driver.introduce(*nodes)
    await asyncio.gather(*map(driver.bring, nodes))
    assert sum(node.blob_bytes for node in nodes) == scan(str(folder)).size
    before = content(folder)
    later = driver.node("n4", tmp_path / "n4")
    driver.introduce(*nodes, later)
    (folder / "large").unlink()
    await driver.bring(later)
    assert content(later.work / "data") == before
    assert later.blob_bytes == 0


@in_loop
async def test_a_wrong_chunk_of_the_cache_is_sent_again(tmp_path: Path) -> None:
    folder = source(tmp_path)
    driver = Driver(LocalVolume("data", folder))
    node = driver.node("n1", tmp_path / "n1")
    await driver.bring(node)
    node.close()
    chunk = next(
        path for path in (tmp_path / "n1" / "chunks").rglob("*") if path.is_file() and path.stat().st_size == CHUNK
    )
    chunk.write_bytes(bytes(CHUNK))
    again = Driver(LocalVolume("data", folder))
    node = again.node("n1", tmp_path / "n1")
    await again.bring(node)
    assert content(node.work / "data") == content(folder)
    assert node.blob_bytes == CHUNK


@in_loop
async def test_a_folder_that_changes_while_it_is_sent_is_an_error(tmp_path: Path) -> None:
    folder = source(tmp_path, chunks=14)
    driver = Driver(LocalVolume("data", folder))
    node = driver.node("n1", tmp_path / "n1")

    def change(message: messages.Message) -> None:
        if isinstance(message, messages.Blob):
            os.utime(folder / "large")

    node.harm = change
    with pytest.raises(VolumeFailed, match="large has changed since") as caught:
        await driver.bring(node)
    assert caught.value.everywhere
    assert list(node.work.iterdir()) == []


@in_loop
async def test_a_node_without_room_says_so_at_once(tmp_path: Path) -> None:
    """Before anything is sent."""
    driver = Driver()
    node = driver.node("n1", tmp_path / "n1")
    room = os.statvfs(tmp_path)
    count = room.f_bavail * room.f_frsize // CHUNK // 2 + 20
    names = [CHUNK.to_bytes(8, "big") + number.to_bytes(16, "big") for number in range(count)]
    manifest = Manifest([], [FolderFile(b"x", count * CHUNK, False, 0)], [], names)
    _, reply = driver.requests.ask(node, lambda request: messages.Mount(request, b"data", False), [manifest.pack()])  # type: ignore[arg-type]
    with pytest.raises(RequestRefused, match=r"no room on the disk: it needs .* GB"):
        await reply


@in_loop
async def test_a_chunk_that_cannot_be_kept_fails_the_mount(tmp_path: Path) -> None:
    folder = source(tmp_path)
    driver = Driver(LocalVolume("data", folder))
    node = driver.node("n1", tmp_path / "n1")

    def harm(message: messages.Message) -> None:
        if isinstance(message, messages.Build):
            chunks = tmp_path / "n1" / "chunks"
            chunks.rmdir()
            chunks.touch()

    node.harm = harm
    with pytest.raises(VolumeFailed, match=r"n1: .*chunks") as caught:
        await driver.bring(node)
    assert not caught.value.everywhere
    assert list(node.work.iterdir()) == []


@in_loop
async def test_a_node_that_is_lost_ends_the_wait(tmp_path: Path) -> None:
    for kind in (messages.Mount, messages.Build, messages.Blob):
        folder = tmp_path / kind.__name__
        folder.mkdir()
        (folder / "x").write_bytes(os.urandom(100))
        driver = Driver(LocalVolume("data", folder))
        node = driver.node("n1", tmp_path / f"n{kind.__name__}")
        node.harm = lambda message, kind=kind, node=node: node.lose() if isinstance(message, kind) else None
        with pytest.raises(NodeLost, match="unplugged"):
            await driver.bring(node)


@in_loop
async def test_an_absolute_mount_is_a_link_that_goes_with_the_agent(tmp_path: Path) -> None:
    folder, place = source(tmp_path), tmp_path / "mnt" / "data"
    driver = Driver(LocalVolume(str(place), folder))
    node, other = driver.node("n1", tmp_path / "n1"), driver.node("n2", tmp_path / "n2")
    await driver.bring(node)
    assert content(place.resolve()) == content(folder)
    with pytest.raises(VolumeFailed, match="another pool has a folder there"):
        await driver.bring(other)
    node.folders.close()  # killed: the link stays, and leads nowhere
    await driver.bring(other)
    assert content(place.resolve()) == content(folder)
    node.service.close()
    assert place.exists(), "it is the other's by now"
    other.close()
    assert not place.is_symlink()


@in_loop
async def test_what_exists_at_an_absolute_place_stays(tmp_path: Path) -> None:
    folder, place = source(tmp_path), tmp_path / "mnt"
    place.mkdir()
    driver = Driver(LocalVolume(str(place), folder))
    with pytest.raises(VolumeFailed, match="it exists on this node, and nothing of it is replaced"):
        await driver.bring(driver.node("n1", tmp_path / "n1"))
    assert list(place.iterdir()) == []


@in_loop
async def test_a_pool_that_closes_stops_reading(tmp_path: Path) -> None:
    driver = Driver(LocalVolume("data", source(tmp_path)))
    driver.supply.stop()
    driver.supply.begin()
    with pytest.raises(VolumeFailed, match="closed"):
        await driver.supply._contents[0].manifest()


@in_loop
async def test_what_takes_long_is_reported(tmp_path: Path) -> None:
    """After two seconds, and how far it is."""
    folder = source(tmp_path, chunks=13)
    driver = Driver(LocalVolume("data", folder))
    node = driver.node("n1", tmp_path / "n1")
    bring = asyncio.create_task(driver.bring(node))
    take, held = node._take, []

    def hold(message: Any, buffers: Any) -> None:
        if isinstance(message, messages.Blob):
            held.append((message, buffers))
        else:
            take(message, buffers)

    node._take = hold  # type: ignore[method-assign]
    await driver.spoke.wait()
    assert driver.said[0] == f"receiving {folder}: 0 of 55 MB"
    node._take = take  # type: ignore[method-assign]
    for message, buffers in held:
        take(message, buffers)
    await bring
