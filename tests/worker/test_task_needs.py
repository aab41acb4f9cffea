"""A task starts when its large arguments and its version of the code are here, whichever is the last."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

from skyward.core.errors import ProtocolError
from skyward.core.protocol.messages import Blob, Code, Kept, Run
from skyward.worker.blob_store import Store
from skyward.worker.task_needs import TaskNeeds


class Node:
    """What a node has, and what is said of tasks."""

    def __init__(self, folder: Path, code: bool = True) -> None:
        self.unblocked: list[int] = []
        self.refused: list[tuple[int, str]] = []
        self.reported: list[Kept] = []
        self.store = Store([str(folder)])
        self.needs = TaskNeeds(
            self.store,
            str(folder / "code") if code else None,
            self.reported.append,
            pytest.fail,
            self.unblocked.append,
            lambda *refused: self.refused.append(refused),
        )

    def bring(self, digest: bytes, data: bytes) -> None:
        self.needs.blobs.keep(Blob(digest, len(data), 0), data)

    def announce(self, version: int, bundle: bytes, name: bytes = b"a.py") -> None:
        self.needs.announce(Code(version, [bundle]), msgpack.packb([(name, False, 0, 0, 3)]))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    it = Node(tmp_path)
    yield it
    it.store.close()


def run(task: int, *digests: bytes, code: int = 0) -> Run:
    return Run(task=task, isolated=True, timeout=None, threads=None, blobs=dict(enumerate(digests)), code=code)


@pytest.mark.parametrize("code_first", [False, True])
def test_it_waits_for_both(node: Node, code_first: bool) -> None:
    assert not node.needs.use(run(1, b"large", code=1))
    node.announce(1, b"bundle")
    arrivals = [(b"large", b"data"), (b"bundle", b"x=1")]
    for digest, data in reversed(arrivals) if code_first else arrivals:
        assert node.unblocked == []
        node.bring(digest, data)
    assert node.unblocked == [1]
    assert node.needs.use(run(2, b"large", code=1)), "both are here"


def test_a_version_without_anything_new_is_laid_out_at_once(node: Node) -> None:
    node.bring(b"bundle", b"x=1")
    assert not node.needs.use(run(1, code=1))
    node.announce(1, b"bundle")
    assert node.unblocked == [1]
    assert len(node.store.problem or "") == 0


def test_a_version_that_can_not_be_laid_out_refuses_tasks_before_and_after(node: Node) -> None:
    assert not node.needs.use(run(1, code=1))
    assert node.needs.refusal(run(1, code=1)) == "", "it may yet come"
    node.announce(1, b"bundle", b"../a.py")
    node.bring(b"bundle", b"x=1")
    ((task, problem),) = node.refused
    assert task == 1
    assert "can't be called" in problem
    assert not node.needs.use(run(2, code=1))
    assert node.needs.refusal(run(2, code=1)) == problem


def test_a_task_that_is_released_while_it_waits_is_not_unblocked(node: Node) -> None:
    for task in (1, 2):
        assert not node.needs.use(run(task, b"large", code=1))
    node.needs.release(run(1, b"large", code=1))
    node.announce(1, b"bundle")
    node.bring(b"bundle", b"x=1")
    node.bring(b"large", b"data")
    assert node.unblocked == [2]


def test_without_own_code_versions_mean_nothing_and_are_not_announced(tmp_path: Path) -> None:
    node = Node(tmp_path, code=False)
    assert node.needs.use(run(1, code=1))
    assert node.needs.refusal(run(1, code=1)) == ""
    assert not node.needs.use(run(2, b"large"))
    node.bring(b"large", b"data")
    assert node.unblocked == [2]
    with pytest.raises(ProtocolError, match="there is none"):
        node.announce(1, b"bundle")
    node.store.close()
