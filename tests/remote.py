"""What the tests on real hosts share: an index for the lab's hosts, and the provider that reaches them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import skyward as sky
from tests.lab import Host, Lab
from tests.wheels import wheels

__all__ = ["Reach", "index", "reach", "wheels"]

Reach = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def index(lab: Lab, wheels: Path) -> str:
    """Address of a package index that the lab's hosts reach; the only one."""
    return lab.serve_index(wheels)


@pytest.fixture(scope="session")
def reach(lab: Lab, index: str) -> Reach:
    """Arguments of a `Compute` on hosts of the lab: ``sky.Compute(**reach(hosts), concurrency=2)``."""

    def arguments(hosts: Sequence[Host], image: dict[str, Any] | None = None, **provider: Any) -> dict[str, Any]:
        options: dict[str, Any] = {"user": "root", "key": str(lab.key), "known_hosts": str(lab.known_hosts)}
        options.update(provider)
        return {
            "provider": sky.SSH(hosts=[host.address for host in hosts], **options),
            "nodes": len(hosts),
            "image": sky.Image(index=index, **(image or {})),
            "console": False,
        }

    return arguments
