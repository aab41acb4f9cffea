"""The command: ``python -m benchmarks``; see the package."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from benchmarks.machine import facts, versions
from benchmarks.model import Peer, Scale, Workload
from benchmarks.peers import PEERS, missing
from benchmarks.report import Results, markdown
from benchmarks.series import take_turns
from benchmarks.workloads import WORKLOADS

__all__ = ["main", "measure"]

_T = TypeVar("_T")
_SMOKE = ("skyward-local", "loky")


def main(
    peers: Annotated[str, typer.Option(help="Peers to measure, separated by commas; 'all' for all of them.")] = "all",
    workloads: Annotated[str, typer.Option(help="Workloads to run, likewise.")] = "all",
    runs: Annotated[int | None, typer.Option(min=1, help="Runs of each; default 5, or 1 with --smoke.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all runs to this file.")] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Write the tables to this file.")] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Check that everything works: small runs of few peers.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Larger sizes.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Fail when a peer fails.")] = False,
) -> None:
    """Measure skyward against its peers and the limits of this machine."""
    scale: Scale = "smoke" if smoke else "full" if full else "usual"
    chosen = _chosen(PEERS, ",".join(_SMOKE) if smoke and peers == "all" else peers, "peers")

    def keep(results: Results) -> None:
        if json_file is not None:
            json_file.write_text(json.dumps(results, indent=1), encoding="utf-8")

    results = measure(chosen, _chosen(WORKLOADS, workloads, "workloads"), scale, runs or (1 if smoke else 5), keep)
    table = markdown(results)
    if markdown_file is not None:
        markdown_file.write_text(table, encoding="utf-8")
    print(table)
    if strict and any(outcome["error"] for outcome in results["results"]):
        raise typer.Exit(1)


def measure(
    peers: Iterable[Peer], workloads: Iterable[Workload], scale: Scale, runs: int, keep: Callable[[Results], None]
) -> Results:
    """Let the peers that are installed do the workloads that they can; `keep` gets all results after each workload."""
    able = []
    for peer in peers:
        if (why := missing(peer)) is None:
            able.append(peer)
        else:
            print(f"{peer.name} is skipped: {why}", flush=True)
    results: Results = {"scale": scale, "runs": runs, "machine": facts(), "versions": versions()}
    results |= {"results": [], "skipped": []}
    for workload in workloads:
        takers = [peer for peer in able if workload.why_not(peer, scale) is None]
        try:
            outcomes = take_turns(workload, takers, scale, runs, lambda line: print(line, flush=True))
        except KeyboardInterrupt:
            print(f"interrupted at {workload.name}; what was measured before stands", flush=True)
            break
        results["results"] += [asdict(outcome) for outcome in outcomes]
        results["skipped"] += [
            {"workload": workload.name, "peer": peer.name, "why": peer.skips[workload.name]}
            for peer in able
            if workload.name in peer.skips and scale in workload.sizes
        ]
        keep(results)
    return results


def _chosen(known: dict[str, _T], names: str, what: str) -> list[_T]:
    if names == "all":
        return list(known.values())
    wanted = [name.strip() for name in names.split(",")]
    if unknown := [name for name in wanted if name not in known]:
        raise typer.BadParameter(f"{', '.join(unknown)}: the {what} are {', '.join(known)}")
    return [known[name] for name in wanted]


if __name__ == "__main__":
    typer.run(main)
