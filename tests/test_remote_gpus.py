"""`Worker(gpus=...)` on real SSH hosts, whose nvidia-smi or rocm-smi is a stand-in."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import pytest

import skyward as sky
from skyward.core.events import Note
from tests.gpus import A100, T4, rocm_script, script, uuid
from tests.lab import Host, eventually
from tests.lab.fixtures import FreshHost, LabHosts
from tests.remote import Reach, index, reach, wheels

__all__ = ["index", "reach", "wheels"]  # fixtures

pytestmark = [pytest.mark.lab, pytest.mark.slow]

PRELUDE = "export PATH=/opt/gpus:$PATH"


def plant(host: Host, text: str | None, name: str = "nvidia-smi") -> None:
    """Give a host the stand-in, and no other."""
    host.run("rm", "-rf", "/opt/gpus", check=True)
    if text is not None:
        place = f"/opt/gpus/{name}"
        host.run("sh", "-c", f"mkdir /opt/gpus && cat > {place} && chmod 755 {place}", input=text, check=True)


@pytest.fixture(autouse=True)
def _removed(lab_hosts: LabHosts) -> Iterator[None]:
    yield
    for host in lab_hosts(2):
        plant(host, None)


def look() -> tuple[str, int, int, str | None]:
    """The node, the slot's number and pid, and its devices. Long enough for each slot of a node to get one."""
    import os
    import time

    time.sleep(0.5)
    names = ("ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
    devices = next((os.environ[name] for name in names if name in os.environ), None)
    return os.environ["SKYWARD_NODE"], int(os.environ["SKYWARD_SLOT"]), os.getpid(), devices


# Hosts don't have this module: what tests send must travel by value, as a user's script's functions do.
look.__module__ = "__main__"


def look_all(pool: sky.Compute) -> tuple[dict[str, dict[int, str | None]], dict[tuple[str, int], int]]:
    """What each node's slots see, and their pids: as many tasks as there are slots, one in each."""
    seen: dict[str, dict[int, str | None]] = {}
    pids: dict[tuple[str, int], int] = {}
    for task in [pool.submit(look) for _ in range(pool.total_slots)]:
        node, slot, pid, devices = task.result(120)
        seen.setdefault(node, {})[slot] = devices
        pids[node, slot] = pid
    assert len(pids) == pool.total_slots
    return seen, pids


def gpu_notes(pool: sky.Compute) -> list[str]:
    """Grows with what the pool says of its GPUs."""
    notes: list[str] = []

    def hear(event: object) -> None:
        if isinstance(event, Note) and event.text.startswith("GPUs"):
            notes.append(event.text)

    pool.events.subscribe(hear)
    return notes


def test_hosts_with_unequal_gpus(lab_hosts: LabHosts, reach: Reach) -> None:
    """Each has as many slots as it has GPUs for; slots and agents that replace killed ones see what those saw."""
    one, three = lab_hosts(2)
    plant(one, script([T4]))
    plant(three, script([A100] * 3))
    pool = sky.Compute(**reach([one, three], prelude=PRELUDE), worker=sky.Worker(gpus=1))
    notes = gpu_notes(pool)
    first, others = {1: uuid(0)}, {1: uuid(0), 2: uuid(1), 3: uuid(2)}
    with pool:
        assert pool.total_slots == 4
        (note,) = notes
        assert "Tesla T4, 40 GiB, 1 slot" in note
        assert "3 x NVIDIA A100-SXM4-40GB, 40 GiB each, 3 slots" in note
        seen, pids = look_all(pool)
        assert sorted(seen.values(), key=len) == [first, others]
        (big,) = (node for node, slots in seen.items() if len(slots) == 3)
        assert {node.name: len(node.gpus) for node in pool.status().nodes} == {node: len(seen[node]) for node in seen}
        for slot in (1, 2, 3):
            three.run("kill", "-9", str(pids[big, slot]), check=True)
        again, others_pids = look_all(pool)
        assert again == seen
        assert not {others_pids[big, slot] for slot in (1, 2, 3)} & {pids[big, slot] for slot in (1, 2, 3)}
        three.run("kill", "-9", str(agent(three)), check=True)
        eventually(lambda: big not in pool.node_names and len(pool.node_names) == 2, 90, "another agent there")
        assert sorted(look_all(pool)[0].values(), key=len) == [first, others]


def agent(host: Host) -> int:
    """The pid of the only agent there."""
    (pid,) = host.named("skyward-agent")
    return pid


def test_a_host_without_enough_gpus_is_an_error_that_says_so(lab_hosts: LabHosts, reach: Reach) -> None:
    (host,) = lab_hosts(1)
    for text, words in (
        (None, "needs 2 GPUs; found: none (there is neither nvidia-smi"),
        (script([T4]), "needs 2 GPUs; found: 1 x Tesla T4, 40 GiB"),
        ("#!/bin/sh\necho NVIDIA-SMI has failed >&2\nexit 9\n", "nvidia-smi failed with status 9"),
    ):
        plant(host, text)
        with (
            pytest.raises(sky.ProvisioningError) as caught,
            sky.Compute(**reach([host], prelude=PRELUDE), worker=sky.Worker(gpus=2)),
        ):
            pass
        assert words in str(caught.value)
        host.wait_until_quiet(10)


def test_a_driver_that_hangs_is_an_error_and_no_node_is_lost_meanwhile(lab_hosts: LabHosts, reach: Reach) -> None:
    """The agent goes on to answer while it waits, so the error is the driver's and comes after the limit."""
    (host,) = lab_hosts(1)
    plant(host, "#!/bin/sh\nsleep 600\n")
    began = time.monotonic()
    with (
        pytest.raises(sky.ProvisioningError, match=r"nvidia-smi did not answer within 30 s: .* hangs"),
        sky.Compute(**reach([host], prelude=PRELUDE), worker=sky.Worker(gpus=1)),
    ):
        pass
    assert 30 < time.monotonic() - began < 120
    host.wait_until_quiet()


def test_a_host_that_joins_later_brings_its_own_gpus(lab_hosts: LabHosts, reach: Reach) -> None:
    """Elastic pools: the block begins with one slot, and has five once the other host's driver has answered."""
    quick, slow = lab_hosts(2)
    plant(quick, script([T4]))
    plant(slow, f"{script([A100] * 4)}while ! test -e /opt/gpus/go; do sleep 0.1; done\n")
    pool = sky.Compute(**{**reach([quick, slow], prelude=PRELUDE), "nodes": (1, 2)}, worker=sky.Worker(gpus=1))
    notes = gpu_notes(pool)
    with pool:
        (first,) = pool.node_names
        assert pool.total_slots == 1
        assert notes == [f"GPUs, 1 for each slot: {first}: 1 x Tesla T4, 40 GiB, 1 slot"]
        slow.run("touch", "/opt/gpus/go", check=True)
        eventually(lambda: pool.total_slots == 5, 60, "the other host's slots")
        (second,) = set(pool.node_names) - {first}
        seen = look_all(pool)[0]
        assert seen == {first: {1: uuid(0)}, second: {slot: uuid(slot - 1) for slot in (1, 2, 3, 4)}}
        assert notes[1:] == [f"GPUs, 1 for each slot: {second}: 4 x NVIDIA A100-SXM4-40GB, 40 GiB each, 4 slots"]


def test_the_other_hosts_suffice(lab_hosts: LabHosts, reach: Reach) -> None:
    """A host without GPUs is left out with a warning where a smaller pool is enough."""
    bare, amd = lab_hosts(2)
    plant(bare, None)
    plant(amd, rocm_script(2), "rocm-smi")
    arguments = {**reach([bare, amd], prelude=PRELUDE), "nodes": (1, 2)}
    with sky.Compute(**arguments, worker=sky.Worker(gpus=0.5)) as pool:
        assert pool.total_slots == 4
        (slots,) = look_all(pool)[0].values()
        assert Counter(slots.values()) == {"GPU-0000000000abc000": 2, "1": 2}


def test_device_files_are_enough(fresh_host: FreshHost, reach: Reach) -> None:
    """A container that was given two GPUs, and no program of their maker."""
    host = fresh_host()
    host.run("touch", "/dev/nvidia0", "/dev/nvidia1", "/dev/nvidiactl", check=True)
    with sky.Compute(**reach([host]), worker=sky.Worker(gpus=1)) as pool:
        assert look_all(pool)[0] == {"node-1": {1: "0", 2: "1"}}


def test_a_preloaded_module_that_opens_a_gpu_is_refused(fresh_host: FreshHost, reach: Reach) -> None:
    """It would be of no use in the slots, which are forks; one that opens none is loaded for them."""
    host = fresh_host()
    host.run("touch", "/dev/nvidia0", check=True)
    place = "/opt/modules"
    host.run("mkdir", place, check=True)
    host.run("sh", "-c", f"cat > {place}/hasty.py", input="FILE = open('/dev/nvidia0')\n", check=True)
    image = {"preload": ["sqlite3"], "env": {"PYTHONPATH": place}}
    with sky.Compute(**reach([host], image=image), worker=sky.Worker(gpus=1)) as pool:
        assert pool.submit(eval, "'sqlite3' in __import__('sys').modules").result(60)
    image["preload"] = ["sqlite3", "hasty"]
    with (
        pytest.raises(sky.ProvisioningError, match=r"preload=\['hasty'\]\): the import opens /dev/nvidia0"),
        sky.Compute(**reach([host], image=image), worker=sky.Worker(gpus=1)),
    ):
        pass
    with sky.Compute(**reach([host], image=image)) as pool:  # whose slots have no GPUs of their own
        assert pool.submit(abs, -3).result(60) == 3
