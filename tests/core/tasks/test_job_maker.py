"""What a job takes along of its call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from skyward.core.blobs.snapshots import Snapshots, digest
from skyward.core.errors import PayloadError
from skyward.core.payload.surroundings import Surroundings
from skyward.core.tasks import job_maker
from skyward.core.tasks.futures import TaskFuture
from skyward.core.tasks.job_maker import JobMaker
from skyward.core.tasks.jobs import Job, TaskGroup, TaskOptions
from skyward.core.tasks.listening_sockets import Listeners


def make(*args: Any, default: float | None = None, **options: Any) -> Job:
    maker = JobMaker(Snapshots(), Surroundings(shared=False), "none", Listeners(), None, default)
    future: TaskFuture[Any] = TaskFuture(lambda _: None, 7)
    return maker.make(7, future, max, args, {}, TaskOptions(**options))


def test_large_buffers_are_copied_and_named() -> None:
    array = np.zeros(1_000_000)
    job = make(array, np.ones(10))
    ((index, name),) = job.blobs.items()
    copy = job.buffers[index + 1]
    assert name == digest(memoryview(array).cast("B"))
    array[0] = 1
    assert bytes(copy) == bytes(8_000_000)
    assert 80 < job.future.size < 1000, "what goes to a node once does not count for each task"
    assert job.label == "max"


@pytest.mark.parametrize(
    ("pool", "options", "expected"),
    [
        (None, {}, None),
        (5.0, {}, 5.0),
        (5.0, {"count": 3}, 15.0),
        (5.0, {"timeout": 2.0}, 2.0),
        (5.0, {"timeout": None}, None),
    ],
)
def test_the_time_limit_is_for_each_task_of_the_users(
    pool: float | None, options: dict[str, Any], expected: float | None
) -> None:
    assert make(1, 2, default=pool, **options).timeout == expected


def test_a_group_is_kept_and_there_is_a_common_one() -> None:
    group = TaskGroup(limit=3)
    assert make(1, group=group).group is group
    assert make(1).group.limit is None


def test_a_call_may_be_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_maker, "_MAX_SIZE", 1000)
    with pytest.raises(PayloadError, match="the call of max is larger than 1,000 bytes; send less data with it"):
        make(b"x" * 1000)
