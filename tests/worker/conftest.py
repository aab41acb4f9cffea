"""Fixtures of the worker's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.worker.helpers import Owner, owner


@pytest.fixture
def node() -> Iterator[Owner]:
    """A node with two isolated slots."""
    with owner() as it:
        yield it.set_up()


@pytest.fixture(params=[True, False], ids=["isolated", "shared"])
def both(request: pytest.FixtureRequest) -> Iterator[Owner]:
    """A node, in both modes; its tasks default to the mode."""
    with owner() as it:
        it.set_up(isolated=request.param)
        it.isolated = request.param
        yield it
