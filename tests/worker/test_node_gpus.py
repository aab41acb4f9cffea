"""Each slot sees GPUs of its own, for as long as it lives, and so does the slot that replaces it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from skyward.core.protocol.messages import Cancel, Failure, Gpus, Load
from tests.gpus import A100, T4, plant, rocm_script, script, uuid
from tests.processes import comm
from tests.worker.helpers import Owner, alive, descendants, owner, setup, wait_for

VARIABLES = ("SKYWARD_SLOT", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


@pytest.fixture(autouse=True)
def _path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins in the folder ``bin`` come first; the machine's own GPUs are restricted by nobody."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def look(folder: str, count: int) -> tuple[int, int, dict[str, str | None]]:
    """Meet the other tasks, so that each runs in a slot of its own; returns slot, pid and variables."""
    Path(folder, str(os.getpid())).touch()
    deadline = time.monotonic() + 20
    while len(list(Path(folder).iterdir())) < count and time.monotonic() < deadline:
        time.sleep(0.005)
    return int(os.environ["SKYWARD_SLOT"]), os.getpid(), {name: os.environ.get(name) for name in VARIABLES[1:]}


def look_all(node: Owner, folder: Path, count: int) -> dict[int, tuple[int, dict[str, str | None]]]:
    """What all slots see at the same time, by their numbers."""
    folder.mkdir()
    found = [node.result(task) for task in [node.submit(look, str(folder), count) for _ in range(count)]]
    seen = {slot: (pid, variables) for slot, pid, variables in found}
    assert len(seen) == count
    return seen


def devices(node: Owner, folder: Path, count: int) -> dict[int, str | None]:
    """CUDA_VISIBLE_DEVICES of each slot."""
    return {
        slot: variables["CUDA_VISIBLE_DEVICES"]
        for slot, (_, variables) in sorted(look_all(node, folder, count).items())
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gpus", "concurrency", "count", "expected"),
    [
        (1, 0, 3, ["0", "1", "2"]),
        (1, 2, 3, ["0", "1"]),
        (2, 0, 4, ["0,1", "2,3"]),
        (2, 1, 2, ["0,1"]),
        (0.5, 0, 2, ["0", "1", "0", "1"]),
        (0.5, 3, 2, ["0", "1", "0"]),
        (0.25, 0, 1, ["0", "0", "0", "0"]),
    ],
)
def test_the_matrix(tmp_path: Path, gpus: float, concurrency: int, count: int, expected: list[str]) -> None:
    """Slots x GPUs, before and after each slot was killed at once, and after the fork server was."""
    plant(tmp_path / "bin", script([A100] * count))
    meant = {
        slot: ",".join(uuid(int(number)) for number in numbers.split(",")) for slot, numbers in enumerate(expected, 1)
    }
    slots = len(expected)
    with owner() as node:
        node.set_up(gpus=gpus, concurrency=concurrency)
        assert node.ready is not None
        assert (node.ready.slots, node.ready.error) == (slots, None)
        before = look_all(node, tmp_path / "1", slots)
        assert {slot: variables["CUDA_VISIBLE_DEVICES"] for slot, (_, variables) in before.items()} == meant
        for pid, _ in before.values():
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not any(alive(pid) for pid, _ in before.values()), "end of the slots")
        assert devices(node, tmp_path / "2", slots) == meant
        server = next(pid for pid in descendants(node.pid) if comm(pid) == "skyward-forks")
        os.kill(server, signal.SIGKILL)
        # It is gone once the agent has collected it: what that starts before fails with the old one.
        wait_for(lambda: not Path(f"/proc/{server}").exists(), "end of the fork server")
        assert devices(node, tmp_path / "3", slots) == meant


@pytest.mark.slow
def test_the_owner_hears_of_the_gpus_first_and_of_their_use_again_and_again(tmp_path: Path) -> None:
    plant(tmp_path / "bin", script([A100, T4, T4], used=7))
    with owner() as node:
        node.set_up(gpus=1, concurrency=2, load=0.02)
        first, second, *_ = [received.message for received in node.order]
        assert first == Gpus(
            [[uuid(0), A100, 40960 * 2**20, 7 * 2**20, 0.5], [uuid(1), T4, 40960 * 2**20, 7 * 2**20, 0.5]], None
        )
        assert second == node.ready or isinstance(second, Load)

        def last() -> Load:
            return next(
                (each.message for each in reversed(node.order) if isinstance(each.message, Load)), Load(*[None] * 5)
            )

        node.until(lambda: bool(last().gpus), "the first report")
        plant(tmp_path / "bin", script([A100, T4, T4], used=9))
        node.until(lambda: [gpu[3] for gpu in last().gpus] == [9 * 2**20, 9 * 2**20], "a later one")
        plant(tmp_path / "bin", "#!/bin/sh\nexit 3\n")
        node.until(lambda: "status 3" in last().problem, "the error")
        assert last().gpus == []


@pytest.mark.slow
def test_messages_that_come_while_gpus_are_looked_for_are_kept(tmp_path: Path) -> None:
    go = tmp_path / "go"
    plant(tmp_path / "bin", f"{script([A100])}while ! test -e {go}; do sleep 0.02; done\n")
    with owner() as node:
        node.connect()
        node.send(setup(gpus=1, concurrency=0))
        task = node.submit(os.getenv, "CUDA_VISIBLE_DEVICES")
        go.touch()
        assert node.result(task) == uuid(0)


@pytest.mark.slow
def test_a_slot_waits_until_the_one_that_had_its_gpus_has_ended(tmp_path: Path) -> None:
    """It was killed because of a cancel, so its task has been answered already."""
    plant(tmp_path / "bin", script([A100]))
    with owner() as node:
        node.set_up(gpus=1, concurrency=0)
        for _ in range(3):
            node.output[1].clear()
            endless = node.submit(lambda: (print(os.getpid(), flush=True), time.sleep(600)))
            node.until(lambda: node.output[1].endswith(b"\n"), "its beginning")
            pid = int(node.output[1])
            node.send(Cancel(endless))
            then = node.submit(lambda pid: (Path(f"/proc/{pid}").exists(), os.environ["CUDA_VISIBLE_DEVICES"]), pid)
            assert node.failed(endless).reason == Failure.CANCELLED.value
            assert node.result(then) == (False, uuid(0))


@pytest.mark.parametrize(
    ("program", "changes", "words"),
    [
        (None, {"gpus": 1}, ["needs 1 GPU; found: none", "neither nvidia-smi"]),
        (script([]), {"gpus": 1}, ["needs 1 GPU; found: none", "lists none"]),
        (script([T4]), {"gpus": 1, "concurrency": 2}, ["concurrency=2) needs 2 GPUs; found: 1 x Tesla T4, 40 GiB"]),
        (script([T4]), {"gpus": 2}, ["needs 2 GPUs", "1 x Tesla T4"]),
        (script([T4] * 2), {"gpus": 1, "part": [2, 3]}, ["for each of the 3 nodes on this machine"]),
        (script([T4] * 2), {"gpus": 2, "env": {"CUDA_VISIBLE_DEVICES": "1"}}, ["CUDA_VISIBLE_DEVICES=1", "of 2"]),
        (script([A100], migs={0: ["3g.20gb"] * 2}), {"gpus": 2}, ["only one MIG instance"]),
        ("#!/bin/sh\necho it is sad\nexit 9\n", {"gpus": 1}, ["nvidia-smi failed with status 9", "it is sad"]),
    ],
    ids=str,
)
def test_what_is_missing_is_said(
    tmp_path: Path, program: str | None, changes: dict[str, object], words: list[str]
) -> None:
    if program is not None:
        plant(tmp_path / "bin", program)
    with owner() as node:
        node.set_up(**{"concurrency": 0, **changes})
        assert node.ready is not None
        assert node.ready.slots == 0
        for word in ["can't start slots", *words]:
            assert word in str(node.ready.error)


@pytest.mark.slow
def test_amd(tmp_path: Path) -> None:
    plant(tmp_path / "bin", rocm_script(2), "rocm-smi")
    with owner() as node:
        node.set_up(gpus=1, concurrency=0, env={"CUDA_VISIBLE_DEVICES": "0,1"})
        seen = {slot: variables for slot, (_, variables) in look_all(node, tmp_path / "1", 2).items()}
        assert seen == {
            slot: {"CUDA_VISIBLE_DEVICES": None, "ROCR_VISIBLE_DEVICES": id, "HIP_VISIBLE_DEVICES": "0"}
            for slot, id in ((1, "GPU-0000000000abc000"), (2, "1"))
        }


@pytest.mark.slow
def test_mig_instances_and_what_the_node_allows(tmp_path: Path) -> None:
    plant(tmp_path / "bin", script([A100] * 3, migs={0: ["3g.20gb", "3g.20gb"]}))
    with owner() as node:
        node.set_up(gpus=1, concurrency=0, env={"CUDA_VISIBLE_DEVICES": f"{uuid(2)},MIG-00000001"})
        assert devices(node, tmp_path / "1", 2) == {1: uuid(2), 2: f"MIG-{uuid(1)[4:]}"}


@pytest.mark.slow
def test_a_users_module_finds_its_gpus_when_it_is_imported(tmp_path: Path) -> None:
    """Also one that a plugin's hook around the slot's life imports, and one that tasks before have imported."""
    (tmp_path / "looks.py").write_text(
        "import contextlib, os\nSEEN = os.environ['CUDA_VISIBLE_DEVICES']\n"
        "@contextlib.contextmanager\ndef around():\n    yield\n"
    )
    plant(tmp_path / "bin", script([A100, A100]))

    def seen() -> str:
        import looks  # type: ignore[import-not-found]

        return str(looks.SEEN)

    with owner() as node:
        node.set_up(gpus=1, concurrency=0, around=["looks:around"], path=[str(tmp_path)])
        assert {node.result(task) for task in [node.submit(seen) for _ in range(8)]} <= {uuid(0), uuid(1)}
        assert set(devices(node, tmp_path / "1", 2).values()) == {uuid(0), uuid(1)}
