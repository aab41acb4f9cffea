"""`Worker(gpus=...)` with NVIDIA's own driver and torch, on a machine that has a GPU; skipped on others."""

from __future__ import annotations

import os
import re
import signal
import time
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
from joblib import Parallel, delayed

import skyward as sky
from skyward.worker import gpu_search
from tests.lab import eventually

try:
    FOUND = gpu_search.find(os.environ).gpus
except gpu_search.GpuError:
    FOUND = ()
if not (FOUND and FOUND[0].id.startswith("GPU-")):
    pytest.skip("needs an NVIDIA GPU that is not divided", allow_module_level=True)
torch: Any = pytest.importorskip("torch")

pytestmark = pytest.mark.slow

GIB = 2**30
WITH_TORCH = sky.Image(preload=["torch"])  # else each new slot imports it, which takes seconds
IDS = [gpu.id for gpu in FOUND]
N = len(IDS)


def look(seconds: float = 0.5) -> tuple[int, int, str, int, str]:
    """The slot, its pid, what it may see, what torch sees, and a product from the GPU."""
    import torch

    device = torch.device("cuda:0")
    total = (torch.ones(256, 256, device=device) @ torch.ones(256, 256, device=device)).sum().item()
    assert total == 256.0**3
    time.sleep(seconds)
    slot = int(os.environ["SKYWARD_SLOT"])
    name = torch.cuda.get_device_name(0)
    return slot, os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"], torch.cuda.device_count(), name


def look_all(pool: sky.Compute) -> dict[int, tuple[int, str, int]]:
    """Each slot's pid, devices and their number as torch sees them."""
    seen = [task.result(120) for task in [pool.submit(look) for _ in range(pool.total_slots)]]
    found = {slot: (pid, devices, count) for slot, pid, devices, count, _ in seen}
    assert len(found) == pool.total_slots
    return found


def take(gib: int) -> tuple[float, float]:
    """Fill some of the GPU's memory. Free memory before that and after, in GiB."""
    import torch

    before, _ = torch.cuda.mem_get_info()
    kept = torch.empty(gib * GIB, dtype=torch.uint8, device="cuda")
    kept.fill_(1)
    torch.cuda.synchronize()
    after, _ = torch.cuda.mem_get_info()
    return before / GIB, after / GIB


def take_and_die(gib: int) -> None:
    take(gib)
    os.kill(os.getpid(), signal.SIGKILL)


def spin(path: str, gib: int) -> None:
    """Keep the GPU busy with kernels for longer than any test waits."""
    import torch

    take(gib)
    a = torch.randn(4096, 4096, device="cuda")
    Path(path).touch()
    for _ in range(10**9):
        a = torch.tanh(a @ a)


def fit(seed: int) -> Any:
    """A small model, trained on the GPU. The weights as numpy."""
    import torch

    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    x = torch.randn(512, 32, device="cuda")
    y = x.sum(1, keepdim=True)
    model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1)).cuda()
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(50):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    return [value.detach().cpu().numpy() for value in model.parameters()]


@pytest.mark.parametrize(
    ("gpus", "concurrency", "slots"),
    [(1, None, N), (N, None, 1), (0.5, None, 2 * N), (0.25, None, 4 * N), (0.25, 3, 3), (1 / 3, None, 3 * N)],
)
def test_the_matrix(gpus: float, concurrency: int | None, slots: int) -> None:
    """Slots x GPUs: what torch sees, before and after each slot was killed."""
    with sky.Compute(worker=sky.Worker(gpus=gpus, concurrency=concurrency), image=WITH_TORCH, console=False) as pool:
        assert pool.total_slots == slots
        before = look_all(pool)
        size = max(int(gpus), 1)
        for _, devices, count in before.values():
            assert len(devices.split(",")) == count == size
            assert set(devices.split(",")) <= set(IDS)
        for pid, _, _ in before.values():
            os.kill(pid, signal.SIGKILL)
        after = look_all(pool)
    assert {slot: devices for slot, (_, devices, _) in after.items()} == {
        slot: devices for slot, (_, devices, _) in before.items()
    }
    assert not {pid for pid, *_ in before.values()} & {pid for pid, *_ in after.values()}


@pytest.mark.parametrize(("gpus", "concurrency"), [(N + 1, None), (1, N + 1), (0.5, 2 * N + 1)])
def test_more_than_there_are_is_an_error_that_says_so(gpus: float, concurrency: int | None) -> None:
    with pytest.raises(sky.ProvisioningError, match=re.escape(FOUND[0].name)) as caught:  # noqa: SIM117
        with sky.Compute(worker=sky.Worker(gpus=gpus, concurrency=concurrency), console=False):
            pass
    print(caught.value)


def test_memory_is_free_again_before_the_next_task_after_a_crash() -> None:
    gib = int(FOUND[0].memory / GIB * 0.6)  # two at a time would not fit
    with sky.Compute(worker=sky.Worker(gpus=1), image=WITH_TORCH, console=False) as pool:
        for _ in range(3):
            with pytest.raises(sky.WorkerCrashed):
                pool.submit(take_and_die, gib).result(120)
            free, left = pool.submit(take, gib).result(120)
            assert free > gib
            assert left < free - gib + 1
            pool.submit(os._exit, 3).exception(120)  # torch keeps what it had for itself


def test_a_cancelled_kernel_loop_gives_the_gpu_back(tmp_path: Path) -> None:
    gib = int(FOUND[0].memory / GIB * 0.6)
    with sky.Compute(worker=sky.Worker(gpus=1, concurrency=1), image=WITH_TORCH, console=False) as pool:
        for attempt in range(2):
            begun = tmp_path / str(attempt)
            task = pool.submit(spin, str(begun), gib)
            eventually(begun.exists, 60, "the kernels run")
            assert task.cancel()
            free, _ = pool.submit(take, gib).result(120)
            assert free > gib
            pool.submit(os._exit, 3).exception(120)


def test_a_time_limit_ends_kernels(tmp_path: Path) -> None:
    with sky.Compute(worker=sky.Worker(gpus=1, concurrency=1), image=WITH_TORCH, timeout=12, console=False) as pool:
        with pytest.raises(sky.TaskTimeout):
            pool.submit(spin, str(tmp_path / "begun"), 1).result(120)
        assert pool.submit(look).result(120)[3] == 1


def test_their_use_is_in_the_status() -> None:
    gib = 8
    with sky.Compute(worker=sky.Worker(gpus=1, concurrency=1), image=WITH_TORCH, console=False) as pool:
        gpu = pool.status().nodes[0].gpus[0]
        assert (gpu.id, gpu.name, gpu.memory) == (IDS[0], FOUND[0].name, FOUND[0].memory)
        pool.submit(take, gib).result(120)
        eventually(lambda: (pool.status().nodes[0].gpus[0].used or 0) > gib * GIB, 60, "a report of its use")


def test_memory_that_does_not_suffice_is_the_tasks_own_error() -> None:
    with sky.Compute(worker=sky.Worker(gpus=0.5), console=False) as pool:
        with pytest.raises(torch.OutOfMemoryError):
            pool.submit(take, int(FOUND[0].memory / GIB) + 10).result(120)
        assert pool.submit(look).result(120)[3] == 1


def test_preloaded_torch_is_shared_and_one_that_opens_the_gpu_is_refused(tmp_path: Path) -> None:
    with sky.Compute(worker=sky.Worker(gpus=0.5), image=WITH_TORCH, console=False) as pool:
        begun = time.monotonic()
        look_all(pool)
        print("two slots with torch preloaded:", time.monotonic() - begun)
    (tmp_path / "opens_it.py").write_text("import torch\ntorch.zeros(1, device='cuda')\n")
    image = sky.Image(preload=["opens_it"], env={"PYTHONPATH": str(tmp_path)})
    with pytest.raises(sky.ProvisioningError, match="opens /dev/nvidia") as caught:  # noqa: SIM117
        with sky.Compute(worker=sky.Worker(gpus=1), image=image, console=False):
            pass
    print(caught.value)


def test_joblib_trains_the_same_models_as_here() -> None:
    expected = [fit(seed) for seed in range(6)]
    with sky.Compute(worker=sky.Worker(gpus=0.25), plugins=[sky.plugins.joblib()], image=WITH_TORCH, console=False):
        models = Parallel(n_jobs=-1)(delayed(fit)(seed) for seed in range(6))
    for ours, theirs in zip(models, expected, strict=True):
        assert all((one == other).all() for one, other in zip(ours, theirs, strict=True))


def test_tensors_go_both_ways() -> None:
    """A tensor on the GPU is copied; one with no memory of its own here would be torch's business."""
    with sky.Compute(worker=sky.Worker(gpus=1, concurrency=1), image=WITH_TORCH, console=False) as pool:
        there = pool.submit(torch.add, torch.arange(10, device="cuda"), 1).result(120)
        assert there.device.type == "cuda"
        assert there.tolist() == list(range(1, 11))
        big = torch.randn(64 * 2**20)
        assert torch.equal(pool.submit(torch.neg, big).result(120), -big)


@pytest.mark.parametrize("restriction", ["0", IDS[0], IDS[0][:12]])
def test_restrictions_of_the_node_are_respected(restriction: str) -> None:
    image = sky.Image(env={"CUDA_VISIBLE_DEVICES": restriction}, preload=["torch"])
    with sky.Compute(worker=sky.Worker(gpus=0.5), image=image, console=False) as pool:
        assert pool.total_slots == 2
        assert {count for _, _, count in look_all(pool).values()} == {1}


def test_a_node_that_may_see_none_says_so() -> None:
    image = sky.Image(env={"CUDA_VISIBLE_DEVICES": ""})
    with pytest.raises(sky.ProvisioningError, match="CUDA_VISIBLE_DEVICES") as caught:  # noqa: SIM117
        with sky.Compute(worker=sky.Worker(gpus=1), image=image, console=False):
            pass
    print(caught.value)


def test_without_gpus_all_slots_see_all() -> None:
    def count() -> int:
        import torch

        return torch.cuda.device_count()

    with sky.Compute(worker=sky.Worker(concurrency=3), image=WITH_TORCH, console=False) as pool:
        tasks = [pool.submit(count) for _ in range(3)]
        wait(tasks, 120)
        assert [task.result() for task in tasks] == [N] * 3


def test_nodes_of_one_machine_divide_its_gpus() -> None:
    with sky.Compute(nodes=2, worker=sky.Worker(gpus=0.5), image=WITH_TORCH, console=False) as pool:
        assert pool.total_slots == 2 * N
        tasks = [pool.submit(look) for _ in range(pool.total_slots)]
        assert {task.result(120)[3] for task in tasks} == {1}


def test_a_loader_with_processes_of_its_own_works_in_a_slot() -> None:
    def load() -> float:
        import torch
        from torch.utils.data import DataLoader, TensorDataset

        torch.zeros(1, device="cuda")  # CUDA is open before the loader forks
        data = TensorDataset(torch.arange(1000, dtype=torch.float32))
        return float(sum(batch.cuda().sum().item() for (batch,) in DataLoader(data, 100, num_workers=2)))

    with sky.Compute(worker=sky.Worker(gpus=1, concurrency=1), image=WITH_TORCH, console=False) as pool:
        assert pool.submit(load).result(120) == 499500.0
