"""Tables and plots of results: ``python -m benchmarks.report results.json [--plots FOLDER]``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.figures import Comparison, compare, spread, text
from benchmarks.model import Peer, Workload

__all__ = ["Results", "comparisons", "main", "markdown"]

_BESIDE = {
    "cpu_us_per_task": "CPU µs per task",
    "wall_s": "wall s",
    "wire_mb": "MB moved",
    "driver_wire_mb": "of these, by the driver",
    "second_wall_s": "second call, s",
    "second_wire_mb": "second call, MB",
    "driver_peak_mb": "driver peak MB",
    "pss_per_node_mb": "MB per additional node",
    "import_s": "import s",
    "with_imports_s": "with imports, s",
    "nodes_mb": "idle nodes, MB",
    "nodes_after_mb": "nodes after, MB",
}
_INEXACT = "sums differ from a sequential run's in the last bits"

Results = dict[str, Any]


def main(
    results: Annotated[Path, typer.Argument(help="The file that --json wrote.")],
    plots: Annotated[Path | None, typer.Option(help="Folder for a plot of each workload, as SVG.")] = None,
) -> None:
    """Print the tables; draw the plots."""
    found = json.loads(results.read_text(encoding="utf-8"))
    print(markdown(found))
    if plots is not None:
        from benchmarks.plots import draw  # noqa: PLC0415 - matplotlib is needed for nothing else

        draw(found, plots)


def markdown(results: Results) -> str:
    """All tables, with failures and skipped peers below each."""
    parts = [_head(results)]
    for workload, rows in comparisons(results):
        parts += [_table(workload, rows, results), _beside(workload, rows, results), *_notes(workload, results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def comparisons(results: Results) -> Iterator[tuple[Workload, list[Comparison]]]:
    """Each workload that was run, with the peers that ran it."""
    from benchmarks.peers import PEERS  # noqa: PLC0415 - peers need the model, which a start must import alone
    from benchmarks.workloads import WORKLOADS  # noqa: PLC0415 - as above

    for workload in WORKLOADS.values():
        runs = {peer: _runs(results, workload, peer) for peer in PEERS}
        rows = compare(
            {peer: done for peer, done in runs.items() if done},
            workload.figure,
            {name: peer.place for name, peer in PEERS.items()},
            higher=workload.higher,
            limits=workload.limits,
            bounds=frozenset(name for name, peer in PEERS.items() if _is_limit(peer)),
            ours=frozenset(name for name in PEERS if name.startswith("skyward")),
            ideal=workload.ideal,
        )
        if rows:
            yield workload, rows


def _is_limit(peer: Peer) -> bool:
    return peer.instead is not None or peer.only is not None


def _runs(results: Results, workload: Workload, peer: str) -> list[dict[str, float]]:
    for outcome in results["results"]:
        if (outcome["workload"], outcome["peer"]) == (workload.name, peer):
            runs: list[dict[str, float]] = outcome["runs"]
            return runs
    return []


def _head(results: Results) -> str:
    machine, versions = results["machine"], results["versions"]
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB, Linux {machine['kernel']}, "
        f"Python {machine['python']}, load {machine['load'][0]} at the start. "
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}. "
        f"Medians (min to max) of {results['runs']} alternating runs at the scale {results['scale']!r}; "
        "ratios over 1 are better."
    )


def _table(workload: Workload, rows: Iterable[Comparison], results: Results) -> str:
    from benchmarks.peers import PEERS  # noqa: PLC0415 - see `comparisons`

    arrow = "↑" if workload.higher else "↓"
    lines = [
        f"### {workload.name}: {workload.what}",
        "",
        f"| who | {workload.figure} {arrow} | to loky | to the best peer | to the limit |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        exact = all(run.get("bit_equal", 1.0) for run in _runs(results, workload, row.peer))
        name = f"*{PEERS[row.peer].what}*" if _is_limit(PEERS[row.peer]) else row.peer
        ratios = " | ".join("" if value is None else text(value) for value in (row.to_loky, row.to_best, row.to_limit))
        lines.append(f"| {name}{'' if exact else ' †'} | {row.value} | {ratios} |")
    inexact = any("†" in line for line in lines)
    return "\n".join([*lines, "", f"† {_INEXACT}"] if inexact else lines)


def _beside(workload: Workload, rows: Iterable[Comparison], results: Results) -> str:
    runs = {row.peer: _runs(results, workload, row.peer) for row in rows}
    known = {name for done in runs.values() for run in done for name in run} - {workload.figure}
    columns = [name for name in _BESIDE if name in known]
    if not columns:
        return ""
    lines = [f"| also measured | {' | '.join(_BESIDE[name] for name in columns)} |", "|---" * (len(columns) + 1) + "|"]
    for peer, done in runs.items():
        cells = [text(spread(run[name] for run in done).median) if name in done[0] else "" for name in columns]
        lines.append(f"| {peer} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _notes(workload: Workload, results: Results) -> list[str]:
    failed = [(o["peer"], f"fails: {o['error']}") for o in results["results"] if _is_about(o, workload) and o["error"]]
    skipped = [(s["peer"], s["why"]) for s in results["skipped"] if _is_about(s, workload)]
    return ["\n".join(f"- {peer}: {' '.join(why.split())}" for peer, why in (*failed, *skipped))]


def _is_about(item: dict[str, Any], workload: Workload) -> bool:
    return bool(item["workload"] == workload.name)


if __name__ == "__main__":
    typer.run(main)
