"""`Worker(gpus=...)` on this machine: each slot of a pool has GPUs of its own, and what is missing is an error."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from joblib import Parallel, delayed

import skyward as sky
from skyward.core.events import NodeReady, Note
from skyward.core.gpus import Gpu
from tests.core.folder_cloud import FolderCloud
from tests.gpus import A100, T4, plant, script, uuid
from tests.lab import eventually

GIB = 2**30


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where stand-ins are planted."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "bin"


def mine() -> str | None:
    time.sleep(0.05)
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def per_device(pool: sky.Compute, folder: Path) -> Counter[str | None]:
    """How many slots see which devices: as many tasks as slots, which all wait for each other."""
    folder.mkdir()
    count = pool.total_slots

    def look() -> str | None:
        (folder / str(os.getpid())).touch()
        deadline = time.monotonic() + 20
        while len(list(folder.iterdir())) < count and time.monotonic() < deadline:
            time.sleep(0.005)
        return os.environ.get("CUDA_VISIBLE_DEVICES")

    seen = Counter(future.result(60) for future in [pool.submit(look) for _ in range(count)])
    assert len(list(folder.iterdir())) == count
    return seen


@pytest.mark.slow
def test_as_many_slots_as_there_are_gpus_for(smi: Path, tmp_path: Path) -> None:
    plant(smi, script([A100, A100, T4], used=512))
    pool = sky.Compute(worker=sky.Worker(gpus=1), console=False)
    events: list[object] = []
    pool.events.subscribe(events.append)
    with pool:
        assert pool.total_slots == 3
        assert per_device(pool, tmp_path / "1") == {uuid(0): 1, uuid(1): 1, uuid(2): 1}
        found = tuple(Gpu(uuid(number), name, 40 * GIB, GIB // 2, 0.5) for number, name in enumerate([A100, A100, T4]))
        (node,) = pool.status().nodes
        assert (node.name, node.slots, node.gpus, node.state) == ("node-1", 3, found, "ready")
        assert pool.status().slots == 3
        (ready,) = [event for event in events if isinstance(event, NodeReady)]
        assert (ready.node, ready.slots, ready.gpus) == ("node-1", 3, found)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert notes == [
        "GPUs, 1 for each slot: node-1: 2 x NVIDIA A100-SXM4-40GB, 40 GiB each and 1 x Tesla T4, 40 GiB, 3 slots"
    ]


@pytest.mark.slow
def test_a_pool_without_gpus_of_its_own_asks_for_none(smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(smi, "#!/bin/sh\nexit 4\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with sky.Compute(concurrency=2, console=False) as pool:
        assert pool.submit(mine).result(60) == "1"
        assert [(node.name, node.slots, node.gpus) for node in pool.status().nodes] == [("node-1", 2, ())]


@pytest.mark.slow
def test_nodes_on_this_machine_divide_its_gpus_and_a_killed_one_leaves_its_part(smi: Path, tmp_path: Path) -> None:
    plant(smi, script([A100] * 4))
    with sky.Compute(nodes=2, worker=sky.Worker(gpus=1), plugins=[sky.plugins.joblib()], console=False) as pool:
        everyone = {uuid(number): 1 for number in range(4)}
        assert per_device(pool, tmp_path / "1") == everyone
        assert set(Parallel(n_jobs=-1, batch_size=1)(delayed(mine)() for _ in range(40))) == set(everyone)
        agent = pool.submit(lambda: int(Path(f"/proc/{os.getppid()}/status").read_text().split("PPid:")[1].split()[0]))
        os.kill(agent.result(60), signal.SIGKILL)
        eventually(lambda: pool.node_names not in (["node-1", "node-2"], ["node-1"], ["node-2"]), 60, "another node")
        eventually(lambda: pool.total_slots == 4, 60, "its slots")
        assert per_device(pool, tmp_path / "2") == everyone


def alone(folder: str, number: int) -> str:
    """Hold the slot's GPU for as long as this process lives, and perhaps end it; returns who else has the GPU."""
    device = os.environ["CUDA_VISIBLE_DEVICES"]
    if not hasattr(sys, "held"):
        sys.held = os.open(f"{folder}/{device}", os.O_CREAT | os.O_RDWR)  # type: ignore[attr-defined]
        try:
            fcntl.flock(sys.held, fcntl.LOCK_EX | fcntl.LOCK_NB)  # type: ignore[attr-defined]
        except BlockingIOError:
            return f"{device} has another owner"
    if number % 5 == 0:
        os._exit(3)
    if number % 5 == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if number % 5 == 2:
        Path(folder, f"sleeps-{number}").touch()
        time.sleep(600)
    return ""


alone.__module__ = "__main__"  # by value: each new slot would import all that this module does


@pytest.mark.slow
def test_no_two_processes_have_a_gpu_at_the_same_time(smi: Path, tmp_path: Path) -> None:
    """While slots die by themselves, are killed, and are stopped in mid-task."""
    plant(smi, script([A100] * 3))
    with sky.Compute(worker=sky.Worker(gpus=1, attempts=1), console=False) as pool:
        futures = {number: pool.submit(alone, str(tmp_path), number) for number in range(60)}

        def stop() -> bool:
            """Cancel those that sleep, which others may wait behind; whether all tasks have ended."""
            for path in tmp_path.glob("sleeps-*"):
                futures[int(path.name.removeprefix("sleeps-"))].cancel()
            return all(future.done() for future in futures.values())

        eventually(stop, 120, "the end of all tasks")
        ends = Counter(
            "stopped" if future.cancelled() else type(future.exception()).__name__ if future.exception() else "alone"
            for future in futures.values()
        )
        assert [future.result() for number, future in futures.items() if number % 5 > 2] == [""] * 24
        assert ends == {"stopped": 12, "WorkerCrashed": 24, "alone": 24}
        assert per_device(pool, tmp_path / "after") == {uuid(number): 1 for number in range(3)}


@pytest.mark.slow
def test_several_slots_share_a_gpu(smi: Path, tmp_path: Path) -> None:
    plant(smi, script([A100]))
    with sky.Compute(nodes=2, worker=sky.Worker(gpus=0.25), console=False) as pool:
        assert pool.total_slots == 4
        assert per_device(pool, tmp_path / "1") == {uuid(0): 4}


@pytest.mark.slow
def test_what_the_program_sets_later_does_not_take_a_slots_gpu_away(smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(smi, script([A100]))
    with sky.Compute(worker=sky.Worker(gpus=1), console=False) as pool:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
        monkeypatch.setenv("COLOUR", "blue")
        assert pool.submit(lambda: (mine(), os.environ["COLOUR"])).result(60) == (uuid(0), "blue")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("worker", "words"),
    [
        (sky.Worker(gpus=1, concurrency=3), r"node-1: can't start slots: .* needs 3 GPUs; found: 2 x Tesla T4"),
        (sky.Worker(gpus=4), "needs 4 GPUs"),
    ],
    ids=str,
)
def test_more_slots_than_gpus(smi: Path, worker: sky.Worker, words: str) -> None:
    plant(smi, script([T4, T4]))
    with pytest.raises(sky.ProvisioningError, match=words), sky.Compute(worker=worker, console=False):
        pass


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"worker": sky.Worker(gpus=1, concurrency=4)}, "no offer has 4 GPUs, which .*; the maximum is 2: lower"),
        ({"worker": sky.Worker(gpus=1), "machine": "small"}, "machine='small' has none of the 1 GPU"),
        ({"worker": sky.Worker(gpus=1 / 8, concurrency=24), "accelerator": "A100:2"}, "no offer has 3 GPUs"),
    ],
    ids=str,
)
def test_too_few_gpus_are_an_error_before_anything_is_bought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], words: str
) -> None:
    monkeypatch.setenv("SKYWARD_STATE", str(tmp_path / "state"))
    cloud = FolderCloud(str(tmp_path))
    with pytest.raises(sky.NoOffer, match=words), sky.Compute(cloud, console=False, **arguments):
        pass
    assert not (tmp_path / "machines").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"gpus": 0}, "gpus=0 is not a number of GPUs"),
        ({"gpus": 0.3}, "1/3 for 3 slots"),
        ({"gpus": 1.5}, "not a whole number"),
        ({"gpus": 1, "executor": "thread"}, "threads of one process all see the same GPUs"),
        ({"gpus": 1, "concurrency": 0}, "concurrency=0"),
        ({"concurrency": "auto"}, "give gpus="),
    ],
    ids=str,
)
def test_arguments_that_can_not_be_meant(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(sky.ConfigError, match=words):
        sky.Worker(**arguments)  # type: ignore[arg-type]


def test_defaults() -> None:
    assert (sky.Worker().concurrency, sky.Worker().slots) == (1, 1)
    assert (sky.Worker(gpus=1).concurrency, sky.Worker(gpus=1).slots) == ("auto", 0)
    assert sky.Worker(gpus=0.333).gpus == 1 / 3
