"""What is ours by its name."""

from __future__ import annotations

import pytest

import skyward as sky
from skyward.providers.names import pool_of


def test_an_order_of_a_pool_tells_the_pool():
    name = sky.Compute().name
    assert pool_of(f"{name}-12") == name


@pytest.mark.parametrize(
    "name",
    ["", "sky-prod-db", "sky-1-1-abc", "sky-1-1-xyz-1", "sky-1-1-abc-1-data", "my-sky-1-1-abc-1", "sky-1-1-abc-1\n"],
)
def test_what_is_named_otherwise_is_of_nobody(name: str):
    assert pool_of(name) == ""
