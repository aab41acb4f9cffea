"""Tasks wait for their blobs, and get them as files or as buffers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from skyward.core.protocol.messages import Blob, Kept, Run, Share
from skyward.worker.blob_store import Store
from skyward.worker.task_blobs import TaskBlobs


class Node:
    """A store in some folders, and what is reported."""

    def __init__(self, *folders: Path) -> None:
        self.reported: list[Kept] = []
        self.warned: list[str] = []
        self.unblocked: list[int] = []
        self.grown = 0
        store = Store(list(map(str, folders)))
        self.blobs = TaskBlobs(store, self.reported.append, self.warned.append, self.unblocked.append)
        self.blobs.grew = self.grew

    def grew(self) -> None:
        self.grown += 1


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    it = Node(tmp_path)
    yield it
    it.blobs.store.close()


@pytest.fixture
def without_files() -> Iterator[Node]:
    it = Node()
    yield it
    it.blobs.store.close()


def run(task: int, *digests: bytes) -> Run:
    return Run(task=task, isolated=True, timeout=None, threads=None, blobs=dict(enumerate(digests)))


def test_a_task_is_unblocked_by_the_last_of_its_blobs(node: Node) -> None:
    assert not node.blobs.use(1, [b"a", b"b"])
    assert not node.blobs.use(2, [b"a"])
    node.blobs.keep(Blob(b"a", 4, 0), b"ab")
    assert (node.unblocked, node.grown) == ([], 1)
    node.blobs.keep(Blob(b"a", 4, 2), b"cd")
    assert node.unblocked == [2]
    node.blobs.keep(Blob(b"b", 1, 0), b"x")
    assert node.unblocked == [2, 1]
    assert node.reported == [Kept(b"a", 4, None), Kept(b"b", 1, None)]
    assert node.blobs.use(3, [b"a"]), "it is here"


def test_a_task_that_was_released_is_not_unblocked(node: Node) -> None:
    node.blobs.use(1, [b"a"])
    assert node.blobs.lacks(1)
    node.blobs.release(1, [b"a"])
    node.blobs.keep(Blob(b"a", 1, 0), b"x")
    assert node.unblocked == []


def test_unblocking_one_task_may_release_another(node: Node) -> None:
    for number in (1, 2):
        node.blobs.use(number, [b"a"])
    unblocked: list[int] = []

    def refuse_the_other(task: int) -> None:
        unblocked.append(task)
        if len(unblocked) == 1:
            node.blobs.release(3 - task, [b"a"])

    node.blobs._unblock = refuse_the_other
    node.blobs.keep(Blob(b"a", 1, 0), b"x")
    assert sorted(unblocked) == [1, 2]


def test_blobs_are_placed_as_paths(node: Node) -> None:
    node.blobs.keep(Blob(b"a", 3, 0), b"abc")
    task = run(1, b"a")
    placed, buffers = node.blobs.place(task, [b"head", b"rest"])
    assert buffers == [b"head", b"rest"]
    assert Path(os.fsdecode(placed.blobs[0])).read_bytes() == b"abc"


def test_without_a_file_a_blob_is_a_buffer_and_the_owner_is_warned_once(without_files: Node) -> None:
    node = without_files
    node.blobs.keep(Blob(b"a", 3, 0), b"abc")
    node.blobs.keep(Blob(b"b", 3, 0), b"abc")
    placed, buffers = node.blobs.place(run(1, b"a"), [b"head", b"rest"])
    assert (placed.blobs, list(map(bytes, buffers))) == ({}, [b"head", b"abc", b"rest"])
    assert len(node.warned) == 1
    assert node.warned[0].startswith("large arguments stay in memory on this node")


def test_a_file_that_can_not_be_opened_is_reported(node: Node, tmp_path: Path) -> None:
    node.blobs.adopt(Share(b"a", str(tmp_path / "none"), 1, 3))
    (kept,) = node.reported
    assert (kept.digest, kept.size) == (b"a", 0)
    assert kept.error
