"""The makers' programs are asked, and neither hang the asker nor fail in silence."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from skyward.core.gpus import Gpu
from skyward.worker.gpu_search import find
from skyward.worker.gpu_shares import GpuError
from tests.gpus import A100, plant, rocm_script, script, uuid
from tests.worker.helpers import alive, wait_for


def search(folder: Path, limit: float = 20.0, **env: str) -> tuple[str, list[str], str]:
    found = find({"PATH": f"{folder / 'bin'}:/usr/bin:/bin", **env}, limit, str(folder))
    return found.maker, [gpu.id for gpu in found.gpus], found.remark


def test_nvidia(tmp_path: Path) -> None:
    plant(tmp_path / "bin", script([A100, A100]))
    assert search(tmp_path) == ("nvidia", [uuid(0), uuid(1)], "")
    assert search(tmp_path, CUDA_VISIBLE_DEVICES="1") == (
        "nvidia",
        [uuid(1)],
        "of 2 on the machine, by CUDA_VISIBLE_DEVICES=1",
    )
    assert search(tmp_path, CUDA_VISIBLE_DEVICES="")[1] == []


def test_a_program_that_is_not_on_the_path(tmp_path: Path) -> None:
    (tmp_path / "usr/local/nvidia").mkdir(parents=True)
    plant(tmp_path / "usr/local/nvidia/bin", script([A100]))
    assert search(tmp_path)[1] == [uuid(0)]


def test_amd(tmp_path: Path) -> None:
    plant(tmp_path / "bin", rocm_script(2), "rocm-smi")
    plant(tmp_path / "bin", "#!/bin/sh\necho No devices were found\n")
    assert search(tmp_path) == ("amd", ["GPU-0000000000abc000", "1"], "")
    (tmp_path / "bin/rocm-smi").unlink()
    plant(tmp_path / "bin", '#!/bin/sh\necho \'[{"gpu": 0, "hip_uuid": "GPU-de8287300da37c72"}]\'\n', "amd-smi")
    assert search(tmp_path) == ("amd", ["GPU-de8287300da37c72"], "")


def test_device_files_alone(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm", "nvidia-caps"):
        (tmp_path / "dev" / name).touch()
    for minor, bus in ((0, "0000:01:00.0"), (3, "0000:02:00.0")):
        folder = tmp_path / "proc/driver/nvidia/gpus" / bus
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"Model: \t L4\nGPU UUID: \t {uuid(minor)}\nDevice Minor: \t {minor}\n")
    assert find({"PATH": ""}, 1.0, str(tmp_path)).gpus == (Gpu(uuid(0), "L4"), Gpu(uuid(3), "L4"))


def test_a_program_that_hangs_is_killed_with_what_it_started(tmp_path: Path) -> None:
    plant(tmp_path / "bin", f"#!/bin/sh\necho $$ >> {tmp_path}/pids\nsleep 600 &\necho $! >> {tmp_path}/pids\nwait\n")
    began = time.monotonic()
    with pytest.raises(GpuError, match=r"nvidia-smi did not answer within 0\.3 s: .*driver probably hangs"):
        search(tmp_path, 0.3)
    assert time.monotonic() - began < 20
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    wait_for(lambda: not any(map(alive, pids)), "end of both")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "#!/bin/sh\necho 'NVIDIA-SMI has failed because\nit is sad' >&2\nexit 9\n",
            "status 9.*failed because it is sad",
        ),
        ("#!/bin/sh\nexit 12\n", "status 12.*nothing"),
        ("#!/bin/sh\necho Hello\n", "said: Hello"),
        ("#!/no/such/shell\n", "can't be started"),
    ],
)
def test_a_program_that_fails(tmp_path: Path, text: str, words: str) -> None:
    plant(tmp_path / "bin", text)
    with pytest.raises(GpuError, match=words):
        search(tmp_path)


def test_no_gpu(tmp_path: Path) -> None:
    assert (
        find({"PATH": ""}, 1.0, str(tmp_path)).remark
        == "there is neither nvidia-smi, rocm-smi or amd-smi nor /dev/nvidia0"
    )
    device = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x040300\n")  # its sound
    assert "neither" in search(tmp_path)[2]
    (device / "class").write_text("0x030200\n")
    assert search(tmp_path)[2].startswith("0000:01:00.0 is a GPU by NVIDIA, but its driver's programs are missing")
    (device / "class").unlink()
    program = plant(tmp_path / "bin", "#!/bin/sh\necho No devices were found\n")
    assert search(tmp_path) == ("", [], f"{program} lists none")
