"""Modules that are imported when a test first uses them, so that collecting tests imports nothing heavy."""

from __future__ import annotations

from typing import Any

import pytest


class Lazy:
    """A module under its name; the test that uses it is skipped where it isn't installed."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # what copy, pickle and pytest's collection probe for
            raise AttributeError(name)
        return getattr(pytest.importorskip(self._module), name)
