"""What tests run as tasks."""

from __future__ import annotations


def double(x: int) -> int:
    return 2 * x


class Odd(Exception):
    """An exception whose signature does not match its args."""

    def __init__(self, code: int, *, hint: str) -> None:
        super().__init__(f"code {code}")
        self.code, self.hint = code, hint


def fail() -> None:
    try:
        {}["missing"]
    except KeyError as cause:
        raise Odd(7, hint="look there") from cause
