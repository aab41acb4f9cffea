"""The local server that the driver is tried against belongs to the repository around this package."""

from __future__ import annotations

import sys
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
for folder in (_PACKAGE.parents[1], _PACKAGE / "src"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
