"""Values are checked when they are made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.core.errors import CloudError, ConfigError
from skyward.core.spec import Nodes, Offer, Offers, Order, Resources, Worker, parse_count, parse_memory, parse_seconds

ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.lists(st.integers())


@pytest.mark.parametrize(
    ("text", "size"),
    [("32GB", 32 * 10**9), ("16GiB", 2**34), ("1.5 gb", 15 * 10**8), ("512m", 512 * 10**6), (1024, 1024), ("7", 7),
     ("2TiB", 2**41), ("3KiB", 3072)],
)  # fmt: skip
def test_memory(text: Any, size: int) -> None:
    """Powers of ten and of two, as written."""
    assert parse_memory(text) == size


@pytest.mark.slow
@given(ANYTHING)
def test_whatever_comes_is_a_good_value_or_a_config_error(value: Any) -> None:
    """Never another exception, never a silent nonsense."""
    for parse in (parse_memory, lambda v: parse_count(v, "n"), lambda v: parse_seconds(v, "t"), Nodes.parse):
        said = ""
        try:
            result = parse(value)
        except ConfigError as error:
            said = str(error)
        if said:
            assert repr(value) in said or said.startswith("nodes=")
        else:
            assert result is None or isinstance(result, Nodes) or result > 0


def test_numpys_integers_are_counts() -> None:
    """np.int64(4) nodes are 4 nodes; 4.0 are not."""
    assert Worker(concurrency=np.int64(4)).concurrency == 4  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        Worker(concurrency=4.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Worker(executor="fibre"),  # type: ignore[arg-type]
        lambda: Worker(attempts=0),
        lambda: Worker(threads=0),
        lambda: Resources(machine=""),
        lambda: Resources(memory="lots"),
        lambda: Order("tag", 1, Resources(), allocation="stolen"),  # type: ignore[arg-type]
        lambda: Nodes.parse((1, 2, 3)),
    ],
)
def test_bad_values_are_refused(make: Any) -> None:
    """With ConfigError, when they are made."""
    with pytest.raises(ConfigError):
        make()


def test_offers_are_a_table() -> None:
    offers = Offers(
        [Offer("small", 2, 4 * 2**30, price=0.1), Offer("big", accelerator="A100", accelerators=8, spot=True)],
        [CloudError("eu-west-1 does not answer")],
    )
    assert repr(offers).splitlines() == [
        "machine   cores  memory  accelerators  region  price",
        "small     2      4 GiB                         $0.1/h",
        "big spot  ?      ?       8 x A100              ?",
        "refused: eu-west-1 does not answer",
    ]
    assert "<td>8 x A100</td>" in offers._repr_html_()
    assert "<td>$0.1/h</td>" in offers[0]._repr_html_()
    assert (repr(Offers()), Offers()._repr_html_()) == ("no offers", "no offers")
