"""``%skyward`` in a real notebook's kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.notebooks import executed, texts

pytestmark = pytest.mark.slow

USE = """
import os
from joblib import Parallel, delayed
def used():
    return os.getpid() not in Parallel(n_jobs=-1, batch_size=1)(delayed(os.getpid)() for _ in range(4))
used()
"""


def test_a_pool_for_a_notebook(tmp_path: Path) -> None:
    """From one cell on, as the command describes it or by name, shown, replaced, ended; and for one cell."""
    (tmp_path / "pyproject.toml").write_text("[tool.skyward.pools.three]\nconcurrency = 3\n")
    cells = executed(
        "%load_ext skyward\n%skyward --concurrency 2",
        USE,
        "%skyward",
        "%skyward --pool three",
        "%skyward",
        "used()",
        "%skyward off",
        "import joblib; joblib.parallel.get_active_backend()[0].__class__.__name__",
        "%%skyward --concurrency 2\nused()",
        "%skyward off",
        folder=tmp_path,
    )
    said = [texts(cell) for cell in cells]
    assert said[1][-1] == "True"
    assert "1 of 1 nodes, 0 of 2 slots busy" in said[2][0]
    assert "1 of 1 nodes, 0 of 3 slots busy" in said[4][0]
    assert said[5][-1] == "True"
    assert said[6] == []
    assert said[7] == ["'LokyBackend'"]
    assert said[8][-1] == "True"
    assert said[9] == []


def test_what_is_wrong_is_said_in_a_line(tmp_path: Path) -> None:
    words = ["--nods 3", "train.py", "-m train", "--nodes many", "--pool absent", "--help"]
    _, *cells = executed("%load_ext skyward", *(f"%skyward {each}" for each in words), folder=tmp_path)
    said = [texts(cell)[0] for cell in cells]
    assert said[:4] == [
        "UsageError: %skyward: No such option: --nods",
        "UsageError: %skyward takes options only: the program is the notebook",
        "UsageError: %skyward takes options only: the program is the notebook",
        "UsageError: %skyward: 'many' is neither a number nor MIN-MAX",
    ]
    assert said[4].startswith("ConfigError: no pool is named 'absent'")
    assert said[5] == "UsageError: Run joblib's Parallel on a pool."


def test_the_cells_of_the_page_run(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/howto/notebooks.md").read_text()
    cells = [block.partition("\n```")[0] for block in page.split("```ipython\n")[1:]]
    assert len(cells) > 5
    for cell, outputs in zip(cells, executed(*cells, folder=tmp_path), strict=True):
        assert not [output for output in outputs if output.output_type == "error"], cell
