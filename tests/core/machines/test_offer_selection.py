"""Which offers are chosen, in which order, and what is said when none fits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.core.errors import ConfigError
from skyward.core.machines.offer_selection import AcceleratorRequest, meets, nearest, select
from skyward.core.spec import ALLOCATIONS, Offer, Resources

CPU = Offer("cpu4", vcpus=4, memory=16 * 2**30, price=0.1)
CPU_SPOT = Offer("cpu4", vcpus=4, memory=16 * 2**30, price=0.03, spot=True)
A100 = Offer("1A100", 22, 120 * 2**30, "NVIDIA A100 SXM4 80GB", 1, 80 * 10**9, price=1.5)
A100X8 = Offer("8A100", 176, 960 * 2**30, "NVIDIA A100 SXM4 80GB", 8, 80 * 10**9, price=12.0)
DEAR_SPOT = Offer("8A100", 176, 960 * 2**30, "NVIDIA A100 SXM4 80GB", 8, 80 * 10**9, price=5.0, spot=True)
UNKNOWN = Offer("mystery", vcpus=8, memory=2**36)
OFFERS = [A100X8, UNKNOWN, CPU, A100, CPU_SPOT, DEAR_SPOT]


@pytest.mark.parametrize(
    ("wanted", "model"),
    [
        ("A100", "NVIDIA A100 SXM4 80GB"),
        ("a100-80gb", "A100 SXM4 80GB"),
        ("A100-80GB", "A100 PCIE"),  # by its memory
        ("rtx4090", "RTX 4090"),
        ("RTX 4090", "GeForce RTX 4090"),
        ("4090", "RTX 4090"),
        ("H100", "H100 NVL"),
    ],
)
def test_a_model_is_found_however_it_is_spelled(wanted: str, model: str) -> None:
    assert AcceleratorRequest.parse(wanted).matches(
        Offer("m", accelerator=model, accelerators=1, accelerator_memory=80 * 10**9)
    )


@pytest.mark.parametrize(
    ("wanted", "model"), [("A10", "A100"), ("A10", "A10G"), ("H100:2", "H100 SXM"), ("A100-40GB", "A100 SXM4 80GB")]
)
def test_another_model_is_not(wanted: str, model: str) -> None:
    offer = Offer("m", accelerator=model, accelerators=1, accelerator_memory=80 * 10**9)
    assert not AcceleratorRequest.parse(wanted).matches(offer)


@pytest.mark.parametrize("text", ["", ":4", "A100:", "A100:0", "A100:x", "NVIDIA"])
def test_what_is_no_model_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="accelerator="):
        AcceleratorRequest.parse(text)


def test_allocations() -> None:
    need = Resources(vcpus=4, max_price=100.0)
    assert select(OFFERS, need, "always-spot") == [CPU_SPOT]
    assert select(OFFERS, need, "on-demand") == [CPU]
    assert select(OFFERS, need, "cheapest") == [CPU_SPOT, CPU]
    gpu = Resources(accelerator="A100", max_price=100.0)
    assert select(OFFERS, gpu, "cheapest") == [A100, DEAR_SPOT, A100X8]
    # a spot machine that costs more than one that stays comes in its turn, not first
    assert select(OFFERS, gpu, "spot-if-available") == [A100, DEAR_SPOT, A100X8]
    assert select(OFFERS, Resources(accelerator="A100:8"), "spot-if-available") == [DEAR_SPOT, A100X8]


def test_nothing_is_bought_that_nobody_would_have_meant() -> None:
    """No accelerators unasked, and without a limit nothing of five times the price, or of an unknown one."""
    assert select(OFFERS, Resources(vcpus=8), "cheapest") == [UNKNOWN]
    known = Offer("cpu8", vcpus=8, price=0.2)
    assert select([*OFFERS, known], Resources(vcpus=8), "cheapest") == [known]
    assert select(OFFERS, Resources(accelerator="A100"), "cheapest") == [A100, DEAR_SPOT]
    assert select(OFFERS, Resources(vcpus=20), "cheapest") == [A100, DEAR_SPOT]  # nothing else has so many
    assert select(OFFERS, Resources(machine="8A100"), "on-demand") == [A100X8]


def test_gpus_for_slots() -> None:
    """As many as the node's slots need, of whatever model; the cheapest machine that has them."""
    assert select(OFFERS, Resources(gpus=1), "cheapest") == [A100, DEAR_SPOT]
    assert select(OFFERS, Resources(gpus=2, max_price=100.0), "cheapest") == [DEAR_SPOT, A100X8]
    assert select(OFFERS, Resources(accelerator="A100", gpus=2, max_price=100.0), "on-demand") == [A100X8]
    chips = Offer("inf", accelerator="Inferentia2", accelerators=4, price=0.1, usable=0)
    assert select([chips, A100], Resources(gpus=1), "cheapest") == [A100]
    assert select([chips], Resources(accelerator="Inferentia2"), "cheapest") == [chips]


def test_a_machine_that_is_named_may_have_gpus_that_the_provider_does_not_tell() -> None:
    silent = Offer("big-gpu", vcpus=8, memory=2**34, price=1.0)
    assert select([silent], Resources(machine="big-gpu", gpus=1), "cheapest") == [silent]
    assert select([silent], Resources(gpus=1), "cheapest") == []
    assert select([silent, A100], Resources(machine="big-gpu", gpus=1), "cheapest") == []


@pytest.mark.parametrize(
    ("need", "words"),
    [
        (
            Resources(gpus=16),
            "no offer has 16 GPUs, which Worker(gpus=...) needs on each node; the maximum is 8: lower",
        ),
        (Resources(machine="1A100", gpus=2), "machine='1A100' has 1 of the 2 GPUs, which"),
        (Resources(machine="cpu4", gpus=1), "machine='cpu4' has none of the 1 GPU, which"),
        (
            Resources(accelerator="A100:8", gpus=9),
            "no offer has 9 GPUs, which Worker(gpus=...) needs on each node; the max",
        ),
    ],
)
def test_too_few_gpus_are_said_before_anything_is_bought(need: Resources, words: str) -> None:
    assert select(OFFERS, need, "cheapest") == []
    assert words in nearest(OFFERS, need, "cheapest")


def test_no_gpus_at_all() -> None:
    assert "no offer has 1 GPU, which" in nearest([CPU], Resources(gpus=1), "cheapest")


def test_an_unknown_price_is_above_any_limit() -> None:
    assert not meets(UNKNOWN, Resources(max_price=1000))
    assert select(OFFERS, Resources(max_price=0.05), "cheapest") == [CPU_SPOT]


@pytest.mark.parametrize(
    ("wanted", "allocation", "words"),
    [
        (Resources(machine="cpu8"), "cheapest", "no offer has machine='cpu8'; the closest names are 'cpu4'"),
        (Resources(accelerator="H100"), "cheapest", "no offer has accelerator='H100'; the closest are 'NVIDIA A100"),
        (Resources(accelerator="A100:16"), "cheapest", "the maximum is 8: accelerator='A100:8'"),
        (Resources(max_price=0.01), "cheapest", r"\(max_price=0.01\); the cheapest is cpu4 spot, \$0.03/h"),
        (Resources(machine="cpu4", vcpus=64), "cheapest", "no machine has all of this at once"),
        (Resources(machine="1A100"), "always-spot", "is a spot machine"),
    ],
)
def test_what_is_nearest(wanted: Resources, allocation: str, words: str) -> None:
    assert select(OFFERS, wanted, allocation) == []
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(nearest(OFFERS, wanted, allocation))


def test_without_any_accelerator_there_is_no_nearest() -> None:
    said = nearest([CPU_SPOT], Resources(accelerator="H100"), "cheapest")
    assert said == "no offer has accelerator='H100', or any other accelerator"


OFFER = st.builds(
    Offer,
    machine=st.sampled_from(["a", "b"]),
    vcpus=st.none() | st.integers(1, 64),
    memory=st.none() | st.integers(1, 2**40),
    accelerator=st.sampled_from([None, "A100", "RTX 4090"]),
    accelerators=st.integers(0, 8),
    spot=st.booleans(),
    price=st.none() | st.floats(0, 100),
)
WANTED = st.builds(
    Resources,
    machine=st.sampled_from([None, "a", "c"]),
    accelerator=st.sampled_from([None, "A100:2", "H100"]),
    vcpus=st.none() | st.integers(1, 64),
    max_price=st.none() | st.floats(0, 100),
)


@given(st.lists(OFFER, max_size=8), WANTED, st.sampled_from(ALLOCATIONS))
def test_either_something_fits_or_it_is_said_what_does_not(offers, wanted, allocation) -> None:
    chosen = select(offers, wanted, allocation)
    assert all(meets(offer, wanted) for offer in chosen)
    known = [offer.price for offer in chosen if not offer.spot and offer.price is not None]
    if any(offer.accelerator is None for offer in chosen) and wanted.accelerator is None and wanted.machine is None:
        assert not any(offer.accelerator for offer in chosen)
    assert known == sorted(known)
    if not chosen:
        assert nearest(offers, wanted, allocation)
