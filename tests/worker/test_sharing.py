"""An owner on the agent's machine: large buffers pass by files."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skyward.core.payload import pickling
from skyward.core.payload.shared_file import CAN_SHARE, SharedFile, take_file
from skyward.core.protocol.messages import Ack, Blob, Cancel, Done, Kept, Run, Share
from tests.worker.helpers import Owner, alive, owner

pytestmark = pytest.mark.skipif(not CAN_SHARE, reason="no files in memory here")
MANY = 500_000


@pytest.fixture
def here() -> Iterator[Owner]:
    """A node whose owner is on the same machine."""
    with owner() as it:
        yield it.set_up(shares=True)


def place(x: Any) -> tuple[float, bool, str]:
    return float(x.sum()), bool(x.flags.writeable), str(getattr(x, "filename", None))


def submit(node: Owner, array: np.ndarray[Any, Any], blob: Share, *, blob_first: bool) -> int:
    head, _ = pickling.dumps((place, (array,), {}), large=1000)
    run = Run(task=1, isolated=True, timeout=None, threads=None, blobs={0: blob.digest})
    if blob_first:
        node.send(blob)
    node.send(run, [head])
    if not blob_first:
        node.send(blob)
    return run.task


@pytest.mark.slow
@pytest.mark.parametrize("blob_first", [True, False])
def test_a_blob_is_mapped_though_its_owner_lets_it_go(here: Owner, blob_first: bool) -> None:
    array = np.arange(MANY)
    file = SharedFile(memoryview(array).cast("B"))
    task = submit(here, array, Share(b"d", file.path, file.inode, len(file)), blob_first=blob_first)
    total, writeable, name = here.result(task)
    assert (total, writeable) == (array.sum(), True)
    assert name.startswith(f"/proc/{here.pid}/fd/")
    del file
    head, _ = pickling.dumps((place, (array,), {}), large=1000)
    here.send(Run(task=2, isolated=True, timeout=None, threads=None, blobs={0: b"d"}), [head])
    assert here.result(2)[0] == array.sum()


@pytest.mark.slow
def test_one_that_is_gone_is_requested(here: Owner) -> None:
    array = np.arange(MANY)
    file = SharedFile(memoryview(array).cast("B"))
    gone = Share(b"d", file.path, file.inode, len(file))
    del file
    task = submit(here, array, gone, blob_first=False)
    here.until(lambda: [kept for received in here.order if isinstance(kept := received.message, Kept)], "Kept")
    here.send(Blob(b"d", array.nbytes, 0), [array.tobytes()])
    assert here.result(task)[0] == array.sum()


def test_a_large_result_lies_in_a_file(here: Owner) -> None:
    message, buffers = here.answer(here.submit(np.arange, MANY))[1:]
    assert isinstance(message, Done)
    (path,) = (os.fsdecode(path) for path in message.files.values())
    assert (Path(path).stat().st_mode & 0o777, len(buffers)) == (0o600, 1)
    array = pickling.loads(buffers[0], [take_file(path)])
    assert np.array_equal(array, np.arange(MANY))
    assert array.flags.writeable
    assert array.flags.aligned


def test_small_results_are_sent(here: Owner) -> None:
    assert np.array_equal(here.call(np.arange, 5000), np.arange(5000))


def test_an_owner_elsewhere_gets_the_bytes(node: Owner) -> None:
    message, buffers = node.answer(node.submit(np.arange, MANY))[1:]
    assert isinstance(message, Done)
    assert (message.files, len(buffers)) == ({}, 2)


def test_nothing_is_left_of_results_that_nobody_took(here: Owner, tmp_path: Path) -> None:
    message = here.answer(here.submit(np.arange, MANY)).message
    assert isinstance(message, Done)
    folder = Path(os.fsdecode(message.files[0])).parent

    def signals_and_returns() -> Any:
        (tmp_path / "begun").touch()
        return np.arange(MANY)

    task = here.submit(signals_and_returns)
    while not (tmp_path / "begun").exists():
        pass
    here.send(Cancel(task))
    here.answer(task)
    assert here.call(abs, -1) == 1
    assert folder.exists()
    here.end()
    assert not folder.exists()


def results(node: Owner) -> list[Path]:
    """Return the files of results in the node's folder."""
    (files,) = (folder for folder in Path("/dev/shm").glob("skyward-store-*") if is_of(node, folder))
    return list(files.glob("result-*"))


def is_of(node: Owner, folder: Path) -> bool:
    locks = {os.readlink(fd) for fd in Path(f"/proc/{node.pid}/fd").iterdir() if fd.is_symlink()}  # noqa: PTH115
    return f"{folder}/lock" in locks


@pytest.mark.slow
def test_nothing_is_left_of_a_slot_that_was_killed_while_it_wrote_a_result(here: Owner) -> None:
    taken = here.answer(here.submit(np.arange, MANY)).message
    assert isinstance(taken, Done)
    here.send(Ack(here.inbox.received))
    (path,) = (os.fsdecode(path) for path in taken.files.values())
    assert np.array_equal(pickling.loads(here.answers[1].buffers[0], [take_file(path)]), np.arange(MANY))
    for _ in range(3):
        task = here.submit(bytearray_of, 64 * MANY)
        here.until(lambda: results(here), "the beginning of a result")
        here.send(Cancel(task))
        answer = here.answer(task).message
        if isinstance(answer, Done):  # it was faster
            for file in answer.files.values():
                take_file(os.fsdecode(file))
        here.until(lambda: not results(here), "the end of what nobody will take")


def bytearray_of(size: int) -> Any:
    import pickle

    return pickle.PickleBuffer(bytearray(size))


def test_a_result_that_was_reported_to_its_owner_outlives_its_slot() -> None:
    with owner() as node:
        node.set_up(shares=True, concurrency=1)
        slot = node.call(os.getpid)
        answer = node.answer(node.submit(np.arange, MANY))
        assert isinstance(answer.message, Done)
        os.kill(slot, signal.SIGKILL)
        node.until(lambda: not alive(slot), "the slot's death")
        with contextlib.suppress(RuntimeError):  # it is given to the dead one, if the agent does not know yet
            node.call(os.getpid)
        assert node.call(os.getpid) != slot, "another has its place, so the agent has cleared up"
        (path,) = (os.fsdecode(path) for path in answer.message.files.values())
        assert pickling.loads(answer.buffers[0], [take_file(path)])[-1] == MANY - 1
