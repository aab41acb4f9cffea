"""Answers go to the owner once, when what their tasks wrote is saved, and are known until they have arrived."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from skyward.core.protocol.messages import Done, Failed, Failure, Message, Returned
from skyward.worker.held_answers import HeldAnswers
from skyward.worker.result_files import UnclaimedFiles
from skyward.worker.task_answers import TaskAnswers


class Line:
    """Numbers messages, as a session does."""

    def __init__(self, folder: Path | None = None) -> None:
        self.sent: list[tuple[Message, Any, bool]] = []
        self.answers = TaskAnswers(self.send, UnclaimedFiles(None if folder is None else str(folder)))

    def send(self, message: Message, buffers: Sequence[Any], lazy: bool) -> int:
        self.sent.append((message, buffers, lazy))
        return len(self.sent)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a folder as an agent does: nothing is removed in any other."""
    made = tmp_path / f"skyward-store-{os.getuid()}-abc"
    made.mkdir()
    return made


def left_by_slot(folder: Path, pid: int, number: int) -> tuple[Path, dict[int, bytes]]:
    path = folder / f"result-{pid}-{number}"
    path.write_bytes(b"x")
    return path, {0: os.fsencode(path)}


def test_answers_are_known_until_they_are_acknowledged() -> None:
    line = Line()
    answers = line.answers
    assert answers.post([1, 2], Returned([1, 2])) == 1
    answers.finish(Failed(3, 0.0, "crashed", ""), (), None, lazy=True)
    assert line.sent[1][2], "it may wait for others"
    assert answers.post([1], Failed(1, 0.0, "crashed", "")) == 3, "it came back and was answered again"
    answers.acknowledged(2)
    assert [task in answers for task in (1, 2, 3)] == [True, False, False]
    answers.acknowledged(3)
    assert 1 not in answers


def test_files_of_an_answer_outlive_their_slot_until_it_has_arrived(folder: Path) -> None:
    line = Line(folder)
    named, files = left_by_slot(folder, 7, 0)
    unnamed, _ = left_by_slot(folder, 7, 1)
    line.answers.finish(Done(1, 0.1, files), [b"head"], 7, lazy=False)
    line.answers.files.clear(7)
    assert (named.exists(), unnamed.exists()) == (True, False)
    line.answers.acknowledged(1)
    line.answers.files.clear(7)
    assert not named.exists(), "the owner did not take it"


def test_files_of_an_answer_for_which_nobody_waits_are_removed(folder: Path) -> None:
    line = Line(folder)
    path, files = left_by_slot(folder, 7, 0)
    line.answers.discard(Done(1, 0.1, files))
    line.answers.discard(Failed(2, 0.1, "raised", ""))
    assert not path.exists()
    assert line.sent == []


@pytest.mark.parametrize("problem", [None, "the bucket is full"])
def test_an_answer_is_held_until_what_its_task_wrote_is_saved(folder: Path, problem: str | None) -> None:
    line = Line(folder)
    path, files = left_by_slot(folder, 7, 0)
    done, failed = Done(1, 0.1, files), Failed(2, 0.2, "raised", "ValueError")

    async def live() -> None:
        held = HeldAnswers(asyncio.get_running_loop(), lambda _: problem)
        line.answers.hold(held)
        line.answers.finish(done, [b"head"], 7, lazy=True)
        line.answers.finish(failed, [], 8, lazy=True)
        assert line.sent == []
        assert 1 in line.answers
        line.answers.files.clear(7)
        assert path.exists(), "the answer will name it"
        await held.flush()

    asyncio.run(live())
    unsaved = Failed(1, 0.1, Failure.UNSAVED.value, problem or "")
    assert [message for message, *_ in line.sent] == [unsaved if problem else done, failed]
    assert 1 in line.answers, "until it is acknowledged"
    assert path.exists() == (problem is None)
