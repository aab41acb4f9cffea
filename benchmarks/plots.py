"""A bar chart per workload, as SVG: ``python -m benchmarks.report results.json --plots FOLDER``. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.figures import Comparison
from benchmarks.model import Workload
from benchmarks.report import comparisons

__all__ = ["draw"]

_OURS, _THEIRS = "#1f77b4", "#bbbbbb"
_DECADES = 30
"""From so many times between the least and the most on, a linear axis would hide the least."""


def draw(results: dict[str, Any], folder: Path) -> list[Path]:
    """Write a plot of each workload; the files."""
    import matplotlib as mpl  # noqa: PLC0415 - only needed here, and heavy

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "skyward"  # the same results are the same file
    folder.mkdir(parents=True, exist_ok=True)
    return [_plot(workload, rows, folder / f"{workload.name}.svg") for workload, rows in comparisons(results)]


def _plot(workload: Workload, rows: list[Comparison], path: Path) -> Path:
    from matplotlib import pyplot  # noqa: PLC0415 - see `draw`

    names = [row.peer for row in reversed(rows)]
    values = [row.value.median for row in reversed(rows)]
    errors = [[row.value.median - row.value.least for row in reversed(rows)]]
    errors.append([row.value.most - row.value.median for row in reversed(rows)])
    figure, axes = pyplot.subplots(figsize=(7, 0.6 + 0.3 * len(rows)))
    axes.barh(
        names,
        values,
        xerr=errors,
        color=[_OURS if name.startswith("skyward") else _THEIRS for name in names],
        capsize=2,
    )
    if min(values) > 0 and max(values) / min(values) > _DECADES:
        axes.set_xscale("log")
    axes.set_title(f"{workload.what}: {workload.figure}, {'more' if workload.higher else 'less'} is better", fontsize=9)
    axes.tick_params(labelsize=8)
    figure.savefig(path, format="svg", metadata={"Date": None}, bbox_inches="tight")
    pyplot.close(figure)
    return path
