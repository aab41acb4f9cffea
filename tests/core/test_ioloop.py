"""The pool's own loop: a standard one whatever policy the user has, and no failure on it goes unheard."""

from __future__ import annotations

import asyncio
import os
import queue
import subprocess
import sys
from pathlib import Path

import pytest

import skyward as sky
from skyward.core.events import Note
from skyward.core.ioloop import IOThread

SCRIPT = """
import asyncio
import skyward as sky

async def main():
    with sky.Compute(nodes=2, console=False) as pool:
        return await asyncio.wrap_future(pool.submit(abs, -7))

if __name__ == "__main__":
    print(asyncio.run(main()), type(asyncio.new_event_loop()).__module__)
"""


@pytest.mark.slow
def test_a_pool_works_whatever_loop_policy_there_is(tmp_path: Path) -> None:
    """Set in the driver, in agents and in slots, by a module that all of them import at their start."""
    (tmp_path / "sitecustomize.py").write_text("import uvloop\nuvloop.install()\n")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", SCRIPT], check=False, env=env, capture_output=True, text=True)
    assert done.stdout == "7 uvloop\n", done.stderr
    assert not done.stderr


def test_an_error_that_nobody_awaits_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """Of a callback, and of a task whose result nobody looks at; with its traceback in the log."""
    io = IOThread("test-io")
    told: queue.SimpleQueue[Exception] = queue.SimpleQueue()
    io.on_error = told.put

    async def fail() -> None:
        raise KeyError("in a task")

    io.post(int, "in a callback")
    assert "in a callback" in str(told.get(timeout=20))
    io.post(lambda: asyncio.ensure_future(fail()) and None)
    assert "in a task" in str(told.get(timeout=20))
    io.stop()
    assert [record.exc_info is not None for record in caplog.records] == [True, True]


def test_a_pool_says_once_that_something_failed_in_the_background() -> None:
    notes: list[str] = []
    pool = sky.Compute(nodes=1, concurrency=1, console=False)
    pool.events.subscribe(lambda event: notes.append(event.text) if isinstance(event, Note) else None)
    with pool:
        for _ in range(3):
            pool._running()._io.post(int, "what")
        assert pool.submit(abs, -1).result(30) == 1
    (note,) = [note for note in notes if "background" in note]
    assert "ValueError: invalid literal for int() with base 10: 'what'" in note
