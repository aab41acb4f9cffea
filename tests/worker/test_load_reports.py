"""Loads are reported again and again while the owner listens, and no longer than the agent lives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from skyward.core.protocol.messages import Load
from skyward.worker.load_reports import LoadReports
from skyward.worker.machine_load import Usage
from tests.worker.helpers import PATIENCE

USAGE = Usage(0.5, 4, 1, 2, 3)


def run_until(loop: asyncio.AbstractEventLoop, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        loop.run_until_complete(asyncio.sleep(0.001))


def test_reports_follow_each_other_while_there_is_a_link() -> None:
    loop, linked, asked, posted = asyncio.new_event_loop(), False, 0, list[Load]()

    def is_linked() -> bool:
        nonlocal asked
        asked += 1
        return linked

    reports = LoadReports(loop, posted.append, is_linked, lambda: USAGE, gpus=None, interval=0.001)
    run_until(loop, lambda: asked > 5)
    assert posted == []
    linked = True
    run_until(loop, lambda: len(posted) > 5)
    assert set(map(repr, posted)) == {repr(Load(*USAGE))}
    reports.close()
    count = len(posted)
    loop.run_until_complete(asyncio.sleep(0.01))
    assert len(posted) == count
    loop.close()
