"""What the makers' programs print is read, and what the environment restricts is respected."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.core.gpus import Gpu
from skyward.worker.gpu_listing import allowed, amd_smi, nvidia_files, nvidia_smi, rocm_smi
from skyward.worker.gpu_shares import GpuError

A, B = "GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77", "GPU-ad2367dd-a40e-6b86-6fc3-c44a2cc92c7e"
LISTED = f"GPU 0: NVIDIA A100-SXM4-40GB (UUID: {A})\nGPU 1: NVIDIA A100-SXM4-40GB (UUID: {B})\n"
QUERIED = f"{A}, NVIDIA A100-SXM4-40GB, 40960, 4, 25\n{B}, NVIDIA A100-SXM4-40GB, 40960, [N/A], [N/A]\n"
MIG = "  MIG 3g.20gb     Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)\n"
OLD_MIG = f"  MIG 1g.5gb Device 1: (UUID: MIG-{A}/1/0)\n"


def test_gpus() -> None:
    assert nvidia_smi(QUERIED, LISTED) == [
        Gpu(A, "NVIDIA A100-SXM4-40GB", 40960 * 2**20, 4 * 2**20, 0.25),
        Gpu(B, "NVIDIA A100-SXM4-40GB", 40960 * 2**20, None),
    ]
    assert nvidia_smi("No devices were found\n", "") == nvidia_smi("", "") == []
    assert nvidia_smi(f"{A}, Odd, with comma, 1, 0, 0\n", "")[0].name == "Odd, with comma"


def test_a_divided_gpu_counts_as_its_instances() -> None:
    first, second = LISTED.splitlines(keepends=True)
    found = nvidia_smi(QUERIED, first + MIG + OLD_MIG + second)
    assert [gpu.id for gpu in found] == ["MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f", f"MIG-{A}/1/0", B]
    assert found[0].name == "NVIDIA A100-SXM4-40GB MIG 3g.20gb"


@pytest.mark.parametrize("said", ["Unable to determine the device handle for GPU 0", "a, b, c, d", "GPU-1, x"])
def test_other_words_are_an_error_that_repeats_them(said: str) -> None:
    with pytest.raises(GpuError, match=said):
        nvidia_smi(said, "")


def test_files_of_a_container() -> None:
    def information(minor: int, uuid: str) -> str:
        return f"Model: \t\t NVIDIA L4\nIRQ:   \t\t 32\nGPU UUID: \t {uuid}\nDevice Minor: \t {minor}\n"

    both = [information(1, B), information(0, A)]
    assert nvidia_files([0, 1], both) == [Gpu(A, "NVIDIA L4"), Gpu(B, "NVIDIA L4")]
    assert nvidia_files([1], both) == [Gpu(B, "NVIDIA L4")]  # the other is not in this container
    assert nvidia_files([0, 3], both) == [Gpu("0"), Gpu("1")]
    assert nvidia_files([2], [information(2, "GPU-????????-????")]) == [Gpu("0")]
    assert nvidia_files([], both) == []


def test_rocm_smi() -> None:
    cards = {
        "card1": {"Unique ID": "N/A", "Card series": "MI210"},
        "card0": {
            "Unique ID": "0xDE8287300DA37C72",
            "Card Series": "AMD Instinct MI300X",
            "VRAM Total Memory (B)": "206141652992",
            "VRAM Total Used Memory (B)": "297271296",
        },
        "system": {"Driver version": "6.7.0"},
    }
    assert rocm_smi("WARNING: in a low-power state\n" + json.dumps(cards)) == [
        Gpu("GPU-de8287300da37c72", "AMD Instinct MI300X", 206141652992, 297271296),
        Gpu("1", "MI210"),
    ]
    assert rocm_smi("{}") == []


def test_amd_smi() -> None:
    listed = [{"gpu": 0, "bdf": "0000:83:00.0", "hip_uuid": "GPU-de8287300da37c72"}, {"gpu": 1, "hip_uuid": "N/A"}]
    usage = [{"gpu": 0, "mem_usage": {"total_vram": {"value": 64, "unit": "MB"}, "used_vram": {"value": 1}}}]
    expected = [Gpu("GPU-de8287300da37c72", "AMD GPU", 64 * 2**20, 2**20), Gpu("1", "AMD GPU")]
    assert amd_smi(json.dumps(listed), json.dumps(usage)) == expected
    assert amd_smi(json.dumps(listed), json.dumps({"gpu_data": usage})) == expected
    assert amd_smi(json.dumps(listed), "no idea")[0] == Gpu("GPU-de8287300da37c72", "AMD GPU")


NAMES = st.sampled_from(["gpu", "gpu_data", "mem_usage", "card0", "hip_uuid", "Unique ID", "VRAM Total Memory (B)"])
VALUES = st.recursive(
    st.integers() | st.text() | st.just(2**70), lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner)
)


@given(st.one_of(st.text(), VALUES.map(json.dumps)))
def test_nothing_that_is_printed_does_harm(text: str) -> None:
    for read in (lambda: nvidia_smi(text, text), lambda: rocm_smi(text), lambda: amd_smi(text, text)):
        with contextlib.suppress(GpuError):
            assert all((gpu.memory or 0) < 2**63 for gpu in read())
    assert nvidia_files([0], [text])


# --- what the environment leaves ---

ALIKE = [Gpu(f"GPU-{letter * 8}", "T4") for letter in "abc"]
MIXED = [Gpu("GPU-aaaaaaaa", "T4"), Gpu("GPU-bbbbbbbb", "A100"), Gpu("GPU-cccccccc", "T4")]


def cuda(gpus: list[Gpu], named: str, **more: str) -> str:
    return ",".join(
        gpu.id.removeprefix("GPU-")[:1] for gpu in allowed("nvidia", gpus, {"CUDA_VISIBLE_DEVICES": named, **more})
    )


def test_cuda_visible_devices() -> None:
    assert allowed("nvidia", ALIKE, {}) == ALIKE
    assert cuda(ALIKE, "2,0") == "c,a"
    assert cuda(ALIKE, "GPU-bbb, GPU-a") == "b,a"
    assert cuda(ALIKE, "GPU-b,1,0") == "b,a"
    assert cuda(ALIKE, "0,-1,1") == cuda(ALIKE, "0,7,1") == cuda(ALIKE, "0,GPU-x,1") == "a"  # CUDA stops there too
    assert cuda(ALIKE, "") == cuda(ALIKE, "-1") == cuda(ALIKE, "GPU-") == ""
    assert cuda(ALIKE, "0", ROCR_VISIBLE_DEVICES="1") == "a"


def test_numbers_of_unlike_gpus_are_kept_since_cuda_counts_in_another_order() -> None:
    assert cuda(MIXED, "1,0") == "1,0"
    assert cuda(MIXED, "1,1,9,0") == "1"
    assert cuda(MIXED, "1,0", CUDA_DEVICE_ORDER="PCI_BUS_ID") == "b,a"
    assert cuda(MIXED, "GPU-b") == "b"


def test_numbers_of_mig_instances_are_refused() -> None:
    migs = [Gpu("MIG-1"), Gpu("MIG-2")]
    with pytest.raises(GpuError, match="UUID"):
        allowed("nvidia", migs, {"CUDA_VISIBLE_DEVICES": "0"})
    assert allowed("nvidia", migs, {"CUDA_VISIBLE_DEVICES": "MIG-2"}) == migs[1:]


def test_rocr_and_hip_restrict_one_after_the_other() -> None:
    assert allowed("amd", ALIKE, {"ROCR_VISIBLE_DEVICES": "2,GPU-AAAAAAAA"}) == [ALIKE[2], ALIKE[0]]
    assert allowed("amd", ALIKE, {"ROCR_VISIBLE_DEVICES": "2,0", "HIP_VISIBLE_DEVICES": "1"}) == [ALIKE[0]]
    assert allowed("amd", ALIKE, {"CUDA_VISIBLE_DEVICES": "1"}) == [ALIKE[1]]
    assert allowed("amd", ALIKE, {"CUDA_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"}) == [ALIKE[0]]
