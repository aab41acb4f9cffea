"""What nodes say is read as values that are safe to display."""

from __future__ import annotations

import pytest

from skyward.core.events import NodeLoad
from skyward.core.gpus import Gpu
from skyward.core.nodes import node_reports
from skyward.core.protocol.messages import Load


def test_a_load() -> None:
    message = Load(0.5, 4, 1, 2, 3, [["GPU-1", "T4\x07", 100, None, 0.25]], "the driver \x1b[31mhangs\nagain")
    gpus = (Gpu("GPU-1", "T4\\x07", 100, None, 0.25),)
    assert node_reports.load("n", message) == NodeLoad("n", 0.5, 4, 1, 2, 3, gpus, "the driver \\x1b[31mhangs\\nagain")


@pytest.mark.parametrize(
    ("facts", "known"),
    [
        ({"cores": 4, "memory": 8}, (4, 8)),
        ({}, (None, None)),
        ({"cores": "4", "memory": 1}, (None, 1)),
        ({"cores": -1, "memory": None}, (None, None)),
    ],
)
def test_a_machine(facts: dict[str, object], known: tuple[int | None, int | None]) -> None:
    assert node_reports.machine(facts) == known
