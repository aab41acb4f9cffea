"""What slots are given to run: they import this module, and so neither pytest nor joblib."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import skyward as sky


@sky.compute
def add(a: int, b: int = 10) -> int:
    """Add two numbers."""
    return a + b


@sky.compute
def node() -> str:
    return os.environ["SKYWARD_NODE"]


@sky.compute
def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@sky.compute
def meet(folder: str, name: str, count: int) -> str:
    """Wait until as many calls run at the same time."""
    Path(folder, name).touch()
    deadline = time.monotonic() + 60
    while len(list(Path(folder).iterdir())) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return name


@sky.compute
def fail(text: str) -> None:
    raise ValueError(text)


def apply(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def twice(function: Callable[..., Any], number: int) -> list[Any]:
    return [function(number), function(number)]


@sky.compute
def outer(number: int) -> Any:
    return add(number)


class Adder:
    def __init__(self, number: int) -> None:
        self.number = number

    @sky.compute
    def add(self, a: int) -> int:
        return a + self.number

    @sky.compute
    @staticmethod
    def static(a: int) -> int:
        return a + 10
