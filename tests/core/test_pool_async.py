"""Pools in coroutines, which go on while nodes start and while tasks run."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest
from joblib import Parallel, delayed

import skyward as sky
from tests.core.folder_cloud import FolderCloud

pytestmark = pytest.mark.slow


@sky.compute
def squared(number: int) -> int:
    return number**2


@sky.compute
def fails() -> None:
    raise KeyError("x")


async def _ticks(counts: list[int]) -> None:
    while True:
        counts[0] += 1
        await asyncio.sleep(0.001)


def test_others_go_on_meanwhile() -> None:
    async def main() -> None:
        counts = [0]
        ticking = asyncio.ensure_future(_ticks(counts))
        async with sky.Compute(concurrency=2, console=False, plugins=[sky.plugins.joblib()]) as pool:
            assert counts[0] > 5
            assert await (squared(3) > pool) == 9
            assert await asyncio.gather(*(pool.submit(pow, number, 2) for number in range(5))) == [0, 1, 4, 9, 16]
            with pytest.raises(KeyError):
                await (fails() > pool)
            pids = Parallel(n_jobs=-1)(delayed(os.getpid)() for _ in range(4))
            assert os.getpid() not in pids, "joblib uses it as in a with block"
            before = counts[0]
            last = pool.submit(time.sleep, 0.05)
        assert last.done()
        assert counts[0] > before
        ticking.cancel()

    asyncio.run(main())


def test_an_exception_gives_the_tasks_up() -> None:
    async def main() -> None:
        with pytest.raises(KeyError):
            async with sky.Compute(console=False) as pool:
                future = pool.submit(time.sleep, 60)
                raise KeyError("x")
        assert future.cancelled()

    asyncio.run(main())


def test_a_coroutine_that_is_cancelled_while_nodes_start_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKYWARD_STATE", str(tmp_path / "state"))
    cloud = FolderCloud(str(tmp_path / "cloud"))
    Path(cloud.folder).mkdir()

    async def main() -> None:
        async def opened() -> None:
            async with sky.Compute(provider=cloud, console=False):
                raise AssertionError("its machines are no hosts")

        opening = asyncio.ensure_future(opened())
        while not (Path(cloud.folder) / "machines").exists():  # noqa: ASYNC110 - files have no events
            await asyncio.sleep(0.01)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening

    asyncio.run(main())
    assert cloud.left() == []
