"""Copies of both kinds."""

from __future__ import annotations

import pytest

from skyward.core.blobs.snapshots import Snapshots
from skyward.core.payload.shared_file import CAN_SHARE


@pytest.fixture(params=[False, CAN_SHARE], ids=["bytes", "shared"])
def snapshots(request: pytest.FixtureRequest) -> Snapshots:
    return Snapshots(request.param)
