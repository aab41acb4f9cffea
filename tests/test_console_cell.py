"""What a pool shows in a notebook's cells, in a real kernel."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path

import pytest

from skyward import console_cell
from skyward.console_cell import Cell
from skyward.core.status import PoolStatus, TaskCounts
from tests.notebooks import executed, texts

pytestmark = pytest.mark.slow

OPEN = """
import skyward as sky
from joblib import Parallel, delayed
pool = sky.Compute(concurrency=2, plugins=[sky.plugins.joblib()]).start()
def work(number):
    print("task", number)
    return number
"""


def test_each_cell_shows_the_work_that_it_caused(tmp_path: Path) -> None:
    opened, first, second, awaited, shown, closed = executed(
        OPEN,
        "Parallel(n_jobs=-1, batch_size=1)(delayed(work)(number) for number in range(3))",
        "futures = [pool.submit(work, number) for number in range(4)]; [future.result() for future in futures]",
        "await futures[1]",
        "pool",
        "pool.close()",
        folder=tmp_path,
    )
    assert texts(opened)[0].startswith("skyward local · 1 of 1 nodes ready · ")
    # Tasks that are submitted by another thread than the cell's may print before there is a display.
    *others, display = sorted(texts(first))
    assert display.startswith("skyward local · 3 of 3 tasks done · ")
    assert others == ["[0, 1, 2]", "[node-1] task 0", "[node-1] task 1", "[node-1] task 2"]
    display = next(output for output in second if output.output_type == "display_data")
    assert display.data["text/plain"].startswith("skyward local · 4 of 4 tasks done · ")
    assert 'aria-valuenow="4"' in display.data["text/html"]
    assert texts(awaited) == ["1"]
    assert "<table>" in shown[0].data["text/html"]
    assert texts(closed) == []


def test_what_is_not_to_be_shown_is_not(tmp_path: Path) -> None:
    """Outputs of tasks are; and IPython in a terminal has no cells to draw in."""
    quiet, ended = executed(
        "import skyward as sky\nwith sky.Compute(console=False) as pool:\n    pool.submit(print, 'said').result()",
        "import sys; 'skyward.console_cell' in sys.modules",
        folder=tmp_path,
    )
    assert texts(quiet) == ["[node-1] said"]
    assert texts(ended) == ["False"]


def test_the_cell_that_a_display_leaves_keeps_only_what_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """However its thread and the cell's take turns."""
    handles: list[list[str]] = []

    class Handle:
        def __init__(self) -> None:
            handles.append([])

        def display(self, content: dict[str, str], *, raw: bool) -> None:
            handles[-1].append(content["text/plain"])

        def update(self, content: dict[str, str], *, raw: bool) -> None:
            time.sleep(0.0001)  # the other thread's turn
            handles[-1].append(content["text/plain"])

    numbers = itertools.count()
    monkeypatch.setattr(console_cell, "DisplayHandle", Handle)
    monkeypatch.setattr(Cell, "_number", lambda _: next(numbers))
    seconds = itertools.count()
    cell = Cell(lambda: PoolStatus("pool", provider="local", seconds=next(seconds), tasks=TaskCounts(waiting=1)), None)
    over = threading.Event()

    def draw() -> None:
        while not over.is_set():
            cell._draw_now()

    drawing = threading.Thread(target=draw)
    drawing.start()
    for _ in range(100):
        cell.submitted()
    over.set()
    drawing.join()
    assert len(handles) == 100
    assert all("nodes ready" in shown[-1] for shown in handles[:-1])
