"""What asks for a person in a task says at once what to do instead."""

from __future__ import annotations

import io
import os
import pdb  # noqa: T100 - as a task might
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import skyward as sky
from skyward.worker import no_terminal


@pytest.fixture(scope="module")
def pool() -> Iterator[sky.Compute]:
    with sky.Compute(concurrency=1, console=False) as pool:
        yield pool


def stop() -> int:
    here = 3
    breakpoint()  # noqa: T100
    return here


def trace() -> int:
    here = 3
    pdb.set_trace()  # noqa: T100
    return here


def test_a_breakpoint(pool: sky.Compute) -> None:
    with pytest.raises(sky.NoTerminal, match=r"^breakpoint\(\) in a task: there is no terminal on node-1") as caught:
        pool.submit(stop).result()
    assert "sky.last_failure.debug()" in str(caught.value)
    assert not isinstance(caught.value, EOFError)


def test_a_debugger_that_is_called_itself(pool: sky.Compute) -> None:
    with pytest.raises(sky.NoTerminal, match=r"^a debugger in a task: there is no terminal on node-1"):
        pool.submit(trace).result()
    assert pool.submit(sys.gettrace).result() is None
    assert pool.submit(abs, -3).result() == 3


def ask() -> str:
    return input("name? ")


def test_input(pool: sky.Compute) -> None:
    with pytest.raises(sky.NoInput, match=r"^input\(\) in a task: there is no terminal on node-1. Ask before the call"):
        pool.submit(ask).result()


def ask_if_possible() -> str:
    try:
        return input("name? ")
    except EOFError:
        return "nobody"


def test_programs_that_do_without_a_person_still_do(pool: sky.Compute) -> None:
    assert pool.submit(ask_if_possible).result() == "nobody"
    assert pool.submit(read).result() == ""


def read() -> str:
    return sys.stdin.read()


def ask_a_file() -> tuple[str, str]:
    before, sys.stdin = sys.stdin, io.StringIO("one\n")
    try:
        first = input()
    finally:
        sys.stdin = before
    inside, outside = os.pipe()
    os.write(outside, b"two\n")
    os.close(outside)
    saved = os.dup(0)
    os.dup2(inside, 0)
    try:
        return first, input()
    finally:
        os.dup2(saved, 0)


def test_a_task_may_have_its_own_standard_input(pool: sky.Compute) -> None:
    assert pool.submit(ask_a_file).result() == ("one", "two")


def other(*args: Any) -> str:
    return f"called with {args}"


def with_hook(name: str) -> Any:
    os.environ["PYTHONBREAKPOINT"] = name
    try:
        return breakpoint(1)  # noqa: T100
    finally:
        del os.environ["PYTHONBREAKPOINT"]


def test_a_debugger_of_the_users_own(pool: sky.Compute) -> None:
    """One that needs no terminal, or none at all."""
    assert pool.submit(with_hook, f"{__name__}.other").result() == "called with (1,)"
    assert pool.submit(with_hook, "0").result() is None
    with pytest.raises(sky.NoTerminal):
        pool.submit(with_hook, "pdb.set_trace").result()


def test_only_in_slots() -> None:
    assert input is not no_terminal.input_in_task
    assert sys.breakpointhook is not no_terminal.breakpoint_in_task
