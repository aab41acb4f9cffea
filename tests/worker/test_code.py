"""The user's code in the slots of a real agent: tasks wait for it, and no process sees two versions."""

from __future__ import annotations

import os
from typing import Any

import msgpack
import pytest

from skyward.core.protocol.messages import Blob, Code, Failure
from tests.worker.helpers import Owner, owner


def value() -> tuple[Any, int]:
    """Runs by value on the node, which has nothing of this package."""
    import os

    import code_of_mine  # type: ignore[import-not-found]

    return code_of_mine.VALUE, os.getpid()


value.__module__ = "__main__"


def announce(
    node: Owner, version: int, text: bytes, *, bundle: bytes | None = None, path: bytes = b"code_of_mine.py"
) -> None:
    name = bundle or b"bundle-%d" % version
    node.send(Code(version, [name]), [msgpack.packb([[path, False, 0, 0, len(text)]])])


def send(node: Owner, version: int, text: bytes) -> None:
    node.send(Blob(b"bundle-%d" % version, len(text), 0), [text])


@pytest.mark.parametrize("isolated", [True, False])
def test_tasks_wait_for_their_code_and_run_with_it(isolated: bool) -> None:
    with owner() as node:
        node.set_up(code=True)
        early = node.submit(value, code=1, since=1, isolated=isolated)
        other = node.submit(os.getpid, isolated=isolated)
        node.result(other)
        assert early not in node.answers
        announce(node, 1, b"VALUE = 1")
        send(node, 1, b"VALUE = 1")
        found, first = node.result(early)
        assert found == 1
        announce(node, 2, b"VALUE = 2")
        send(node, 2, b"VALUE = 2")
        results = [node.submit(value, code=version, since=version, isolated=isolated) for version in (2, 1, 2, 2, 1)]
        seen: dict[int, set[int]] = {1: {first}, 2: set()}
        for task, version in zip(results, (2, 1, 2, 2, 1), strict=True):
            found, pid = node.result(task)
            assert found == version
            seen[version].add(pid)
        assert not seen[1] & seen[2]


def test_bundles_that_are_here_already_are_not_waited_for() -> None:
    with owner() as node:
        node.set_up(code=True)
        send(node, 1, b"VALUE = 1")
        announce(node, 1, b"VALUE = 1")
        assert node.call(value, code=1, since=1)[0] == 1
        announce(node, 2, b"VALUE = 1", bundle=b"bundle-1")
        assert node.call(value, code=2, since=2)[0] == 1


def test_code_that_can_not_be_laid_out_refuses_its_tasks_only() -> None:
    with owner() as node:
        node.set_up(code=True)
        early = node.submit(value, code=1, since=1)
        announce(node, 1, b"VALUE = 1", path=b"../code_of_mine.py")
        send(node, 1, b"VALUE = 1")
        for task in (early, node.submit(value, code=1, since=1)):
            failed = node.failed(task)
            assert failed.reason == Failure.REFUSED.value
            assert "can't lay out your code" in failed.detail
        announce(node, 2, b"VALUE = 2")
        send(node, 2, b"VALUE = 2")
        assert node.call(value, code=2, since=2)[0] == 2


def test_on_the_drivers_machine_versions_only_replace_slots() -> None:
    with owner() as node:
        node.set_up()
        first = {node.call(os.getpid, code=1, since=1) for _ in range(4)}
        second = {node.call(os.getpid, code=2, since=2) for _ in range(4)}
        assert not first & second


def test_a_slot_goes_on_with_a_version_that_only_adds() -> None:
    with owner() as node:
        node.set_up(code=True, concurrency=1)
        announce(node, 1, b"VALUE = 1")
        send(node, 1, b"VALUE = 1")
        node.send(
            Code(2, [b"bundle-1"]),
            [msgpack.packb([[f"{name}.py".encode(), False, 0, 0, 9] for name in ("code_of_mine", "more")])],
        )
        first = node.call(value, code=1, since=1)
        more = node.call(lambda: (__import__("more").VALUE, os.getpid()), code=2, since=1)
        assert first == more == node.call(value, code=1, since=1)
