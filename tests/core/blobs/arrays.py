"""Arrays as the buffers that pickling makes of them, and what is in a copy."""

from __future__ import annotations

from typing import Any

import numpy as np

from skyward.core.payload.shared_file import SharedFile


def view(array: np.ndarray[Any, Any]) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))


def content(data: Any) -> bytes:
    return bytes(memoryview(data.map() if isinstance(data, SharedFile) else data))
