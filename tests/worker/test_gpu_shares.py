"""Which slot has which GPUs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.core.gpus import Gpu, needed
from skyward.worker.gpu_shares import GpuError, share_out, variables


def gpus(count: int, kind: str = "GPU") -> list[Gpu]:
    return [Gpu(f"{kind}-{number}", "T4", 16 * 2**30) for number in range(count)]


def ids(shares: list[list[Gpu]]) -> list[str]:
    return ["+".join(gpu.id.removeprefix("GPU-") for gpu in share) for share in shares]


def test_examples() -> None:
    assert ids(share_out(gpus(3), 1, 0)) == ["0", "1", "2"]
    assert ids(share_out(gpus(3), 1, 2)) == ["0", "1"]
    assert ids(share_out(gpus(5), 2, 0)) == ["0+1", "2+3"]
    assert ids(share_out(gpus(2), 1 / 3, 0)) == ["0", "1", "0", "1", "0", "1"]
    assert ids(share_out(gpus(2), 0.5, 3)) == ["0", "1", "0"]
    assert ids(share_out(gpus(3, "MIG"), 0.5, 2)) == ["MIG-0", "MIG-1"]


def test_several_nodes_on_a_machine() -> None:
    assert [ids(share_out(gpus(4), 1, 0, (number, 2))) for number in (0, 1)] == [["0", "2"], ["1", "3"]]
    assert [ids(share_out(gpus(1), 0.5, 0, (number, 2))) for number in (0, 1)] == [["0"], ["0"]]
    with pytest.raises(GpuError, match=r"needs 1 GPU for each of the 2 nodes on this machine; found: 1 x T4, 16 GiB"):
        share_out(gpus(1), 1, 0, (1, 2))


@pytest.mark.parametrize(
    ("count", "each", "concurrency", "words"),
    [
        (0, 1, 0, "Worker(gpus=1) needs 1 GPU; found: none"),
        (1, 2, 0, "Worker(gpus=2) needs 2 GPUs; found: 1 x T4, 16 GiB"),
        (
            2,
            1,
            3,
            "Worker(gpus=1, concurrency=3) needs 3 GPUs; found: 2 x T4, 16 GiB each; use concurrency=2, or leave",
        ),
        (1, 0.25, 5, "Worker(gpus=1/4, concurrency=5) needs 2 GPUs; found: 1 x T4, 16 GiB; use concurrency=4"),
    ],
)
def test_too_few(count: int, each: float, concurrency: int, words: str) -> None:
    with pytest.raises(GpuError) as caught:
        share_out(gpus(count), each, concurrency)
    assert words in str(caught.value)


def test_mig_instances_can_not_be_used_together() -> None:
    with pytest.raises(GpuError, match="only one MIG instance"):
        share_out(gpus(4, "MIG"), 2, 0)


def test_variables() -> None:
    assert variables("nvidia", gpus(2)) == {"CUDA_VISIBLE_DEVICES": "GPU-0,GPU-1"}
    assert variables("amd", gpus(2)) == {
        "ROCR_VISIBLE_DEVICES": "GPU-0,GPU-1",
        "HIP_VISIBLE_DEVICES": "0,1",
        "CUDA_VISIBLE_DEVICES": None,
    }


@given(
    count=st.integers(0, 16),
    each=st.one_of(st.integers(1, 9), st.integers(2, 8).map(lambda n: 1 / n)),
    concurrency=st.integers(0, 40),
    nodes=st.integers(1, 4),
)
def test_nothing_is_given_twice(count: int, each: float, concurrency: int, nodes: int) -> None:
    """Over all nodes of a machine: whole GPUs to one slot each, parts to as many as they are made for, and evenly."""
    found = gpus(count)
    given_: list[list[Gpu]] = []
    try:
        for number in range(nodes):
            shares = share_out(found, each, concurrency, (number, nodes))
            assert len(shares) == concurrency or (concurrency == 0 and shares)
            given_ += shares
    except GpuError:
        whole = count // int(each) if each >= 1 else count * round(1 / each)
        assert whole < nodes * max(concurrency, 1)
        return
    uses = [sum(gpu in share for share in given_) for gpu in found]
    assert all(len(set(share)) == max(1, int(each)) for share in given_)
    if each >= 1:
        assert max(uses) == 1
    else:
        assert max(uses) <= round(1 / each)
        if nodes == 1:
            assert max(uses) - min(uses) <= 1
    if nodes == 1 and concurrency:
        assert needed(each, concurrency) <= count
