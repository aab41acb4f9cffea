"""What a pool shows in marimo, which runs its notebook without a browser."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

NOTEBOOK = """
import marimo

app = marimo.App()


@app.cell
def opens():
    import skyward as sky
    pool = sky.Compute(concurrency=2).start()
    return pool, sky


@app.cell
def works(pool, sky):
    found = [future.result() for future in [pool.submit(pow, 2, number) for number in range(12)]]
    pool.submit(print, "said by a task").result()
    pool.close()
    with sky.Compute(console=False) as quiet:
        quiet.submit(pow, 2, 3).result()


if __name__ == "__main__":
    app.run()
"""


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    path = tmp_path / "notebook.py"
    path.write_text(NOTEBOOK)
    return path


def test_the_bar_is_under_the_cell_that_opened_the_pool(notebook: Path) -> None:
    page = notebook.with_suffix(".html")
    export = ["marimo", "-q", "export", "html", str(notebook), "-o", str(page), "--no-include-code"]
    done = subprocess.run([sys.executable, "-m", *export], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert page.read_text().count("13 of 13 tasks done") == 1


def test_a_notebook_that_runs_as_a_program_draws_nothing(notebook: Path) -> None:
    done = subprocess.run([sys.executable, notebook], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "[node-1] said by a task\n"
