"""How many GPUs a slot has, and how that is said."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.core.errors import ConfigError
from skyward.core.gpus import Gpu, describe, described, needed, parse_gpus, per_gpu

A100 = Gpu("GPU-a", "NVIDIA A100-SXM4-40GB", 40 * 2**30, 2**30)


@pytest.mark.parametrize(
    ("given_", "meant"),
    [
        (1, 1),
        (2, 2),
        (8.0, 8),
        (np.int64(3), 3),
        (0.5, 0.5),
        (0.25, 0.25),
        (1 / 3, 1 / 3),
        (0.333, 1 / 3),
        (1e-2, 0.01),
        (Fraction(1, 2), 0.5),
        (np.float32(0.5), 0.5),
    ],
)
def test_whole_numbers_and_nth_parts(given_: float, meant: float) -> None:
    assert parse_gpus(given_) == meant
    assert type(parse_gpus(given_)) is (int if meant >= 1 else float)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "1 or more"),
        (-1, "1 or more"),
        (True, "1 or more"),
        ("1", "1 or more"),
        (None, "1 or more"),
        (float("nan"), "1 or more"),
        (float("inf"), "1 or more"),
        (1.5, "whole number"),
        (0.3, "1/3 for 3 slots"),
        (0.4, "1/2 for 2 slots"),
        (0.7, "1/2"),
        (1j, "1 or more"),
    ],
)
def test_other_numbers_are_refused(value: object, words: str) -> None:
    with pytest.raises(ConfigError, match="gpus=") as caught:
        parse_gpus(value)
    assert words in str(caught.value)


@given(st.integers(1, 1000))
def test_every_nth_part_is_found(n: int) -> None:
    assert per_gpu(parse_gpus(1 / n)) == n


def test_what_a_node_must_have() -> None:
    assert [needed(1, n) for n in (1, 4, 0)] == [1, 4, 1]
    assert [needed(2, n) for n in (1, 4, 0)] == [2, 8, 2]
    assert [needed(0.25, n) for n in (1, 4, 5, 0)] == [1, 1, 2, 1]


def test_words() -> None:
    assert described([]) == ""
    assert described([A100]) == "1 x NVIDIA A100-SXM4-40GB, 40 GiB"
    assert described([A100, A100, Gpu("1")]) == ("2 x NVIDIA A100-SXM4-40GB, 40 GiB each and 1 x GPU of unknown model")
    nodes = [("node-1", 1, [A100]), ("node-2", 4, [A100] * 4), ("node-3", 1, [A100])]
    assert describe(nodes, 1) == (
        "GPUs, 1 for each slot: 2 nodes with 1 x NVIDIA A100-SXM4-40GB, 40 GiB, 1 slot; "
        "node-2: 4 x NVIDIA A100-SXM4-40GB, 40 GiB each, 4 slots"
    )
    taken = Gpu("0", "T4", 16 * 2**30, 12 * 2**30)
    assert describe([("node-1", 2, [taken, taken])], 1) == (
        "GPUs, 1 for each slot: node-1: 2 x T4, 16 GiB each (24 GiB of 32 GiB in use already), 2 slots"
    )
    assert describe([("node-1", 2, [Gpu("0", "T4")])], 0.5) == "GPUs, one for 2 slots: node-1: 1 x T4, 2 slots"
