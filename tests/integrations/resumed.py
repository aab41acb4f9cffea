"""Functions that leave a line in a file for each time they run, in whatever process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np


def count(what: object) -> None:
    """Which file is no argument, since that would be a part of the identity."""
    with Path(os.environ["RESUME_COUNTED"]).open("a", encoding="utf-8") as opened:
        opened.write(f"{what}\n")


def square(x: int) -> int:
    count(x)
    return x * x


def draw(_: int) -> float:
    count("draw")
    return float(np.random.default_rng().random())


def set_value(value: int) -> None:
    os.environ["RESUME_VALUE"] = str(value)


def get_value() -> int:
    count("get")
    return int(os.environ["RESUME_VALUE"])


def fill(output: Any, n: int) -> None:
    count(n)
    output[n] = n
