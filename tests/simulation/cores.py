"""``python -m tests.simulation.cores``: how much of the cores runs under simulation alone, branches included.

The cores are the modules that decide (PURE in tests/test_layers.py) and the drivers that carry out what they decide.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import coverage  # type: ignore[import-not-found,unused-ignore]  # only `make simulate-coverage` needs it

from tests.test_layers import MODULES, PURE, within

# Drivers of the modules that decide.
_DRIVERS = (
    "skyward.core.blobs.distributor",
    "skyward.core.machines.node_life",
    "skyward.core.machines.provision",
    "skyward.core.nodes.agent_link",
    "skyward.core.nodes.session",
    "skyward.core.tasks.completion",
    "skyward.core.tasks.dispatch",
    "skyward.core.tasks.runner",
    "skyward.worker.agent",
    "skyward.worker.blob_store",
    "skyward.worker.forkserver.client",
    "skyward.worker.owner_session",
    "skyward.worker.slot_pool",
    "skyward.worker.slot_processes",
    "skyward.worker.task_answers",
    "skyward.worker.task_blobs",
    "skyward.worker.task_needs",
    "skyward.worker.task_progress",
    "skyward.worker.tickets",
)
# Pure modules, or rooms of them, that nothing of a simulated pool calls: they choose among the offers of many
# providers, find out what a node needs or has, or write what is for people or for a machine's first boot.
_ELSEWHERE = (
    "skyward.core.code",
    "skyward.core.files",
    "skyward.core.gpus",
    "skyward.core.machines.forecast",
    "skyward.core.machines.offer_selection",
    "skyward.core.packages",
    "skyward.core.progress",
    "skyward.core.protocol.manifest",
    "skyward.core.resume",
    "skyward.core.scope",
    "skyward.core.status",
    "skyward.core.visible",
    "skyward.dashboard",
    "skyward.providers",
    "skyward.worker.gpu_listing",
    "skyward.worker.gpu_shares",
)
# Functions of a real process, in whose place the simulation has its own: how it begins, what it opens, and what it
# finds of others that were killed.
_PROCESSES = (
    r"^(async )?def (_fork_agents|_live|_make_authority|_make_buyer|_open_file|_parents|_watch_lifeline|announce|detach"
    r"|main|read_start|sweep)\b"
)
# The start of a process, and what only says that nothing gets there.
_NEVER = (r"^if __name__ ==", r"raise AssertionError")
CORES = sorted(name for name in {*PURE, *_DRIVERS} if not any(within(name, room) for room in _ELSEWHERE))


def _measurement(path: Path) -> Any:
    measured = coverage.Coverage(branch=True, data_file=str(path), include=[str(MODULES[name]) for name in CORES])
    for pattern in (_PROCESSES, *_NEVER):
        measured.exclude(pattern)
    return measured


def _run(seeds: Sequence[int], path: Path) -> None:
    """Run seeds, and write down what ran of the cores."""
    measured = _measurement(path)
    measured.start()
    from tests.simulation.run import quiet, simulate

    with quiet() as after:
        for seed in seeds:
            after(simulate(seed))
    measured.stop()
    measured.save()


def main() -> None:
    """Run seeds; print for each module the share of its statements and branches that ran, and which lines did not."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.cores", description=__doc__)
    parser.add_argument("--first", type=int, default=random.SystemRandom().randrange(10**9), help="first seed")
    parser.add_argument("--seeds", type=int, default=10_000, help="how many")
    asked = parser.parse_args()
    files = {str(MODULES[name]): name for name in CORES}
    with tempfile.TemporaryDirectory() as folder:
        count = os.cpu_count() or 1
        shares = [range(asked.first + share, asked.first + asked.seeds, count) for share in range(count)]
        parts = [Path(folder, f"{share}") for share in range(count)]
        # New interpreters, in which the cores have not been imported yet.
        with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as executor:
            list(executor.map(_run, shares, parts))
        measured = _measurement(Path(folder, "all"))
        measured.combine([str(part) for part in parts])
        path = Path(folder, "report.json")
        measured.json_report(outfile=str(path))
        report = json.loads(path.read_text())
    found = {str(Path(name).resolve()): data for name, data in report["files"].items()}
    for path_of, name in sorted(files.items(), key=lambda item: item[1]):
        data = found[path_of]
        missed = " ".join(map(str, data["missing_lines"]))
        print(f"{data['summary']['percent_covered']:5.1f} %  {name}  {missed}")
    total = report["totals"]
    branches = f"{total['covered_branches']} of {total['num_branches']} branches"
    print(f"{total['percent_covered']:5.1f} %  of {len(files)} modules, {branches}; seeds from {asked.first} on")


if __name__ == "__main__":
    main()
