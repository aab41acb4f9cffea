"""The benchmarks run, check what they run, and reduce it rightly; work per task does not grow unnoticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import counts, processes
from benchmarks.figures import compare, spread, text
from benchmarks.model import Peer, Workload
from benchmarks.peers import PEERS, missing
from benchmarks.report import comparisons, markdown
from benchmarks.workloads import WORKLOADS
from benchmarks.workloads.arrays import close_enough
from tests.lab import eventually

REPOSITORY = Path(__file__).resolve().parents[1]


def command(*arguments: str, limit: float = 240) -> str:
    """Run a module of the benchmarks as a user does; its output."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=limit,
        check=False,
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
    return done.stdout


def results(**rates: list[float]) -> dict:
    """What --json writes when peers did `noop` at these rates."""
    outcomes = [
        {"workload": "noop", "peer": peer.replace("_", "-"), "runs": [{"tasks_per_s": v} for v in runs], "error": None}
        for peer, runs in rates.items()
    ]
    machine = {"processor": "one", "cores": 2, "memory_gb": 1, "kernel": "6", "python": "3.11", "load": [0.1]}
    head = {"scale": "usual", "runs": 3, "machine": machine, "versions": {"joblib": "1.6"}, "skipped": []}
    return head | {"results": outcomes}


# The pure parts


def test_the_median_comes_with_its_range() -> None:
    assert str(spread([3.0, 1.0, 2.0])) == "2.00 (1.00–3.00)"  # noqa: RUF001 - a range has such a dash
    assert str(spread([1234.5])) == "1,234"


@pytest.mark.parametrize(
    ("value", "written"), [(0, "0"), (0.12345, "0.123"), (12.345, "12.3"), (98765.4, "98,765"), (2e-5, "2.0e-05")]
)
def test_figures_have_three_digits(value: float, written: str) -> None:
    assert text(value) == written


def test_ratios_over_one_are_better_whichever_way_is() -> None:
    runs = {"a": [{"f": 2.0}], "loky": [{"f": 4.0}], "wall": [{"f": 1.0}]}
    places = dict.fromkeys(runs, "local")
    options = {"places": places, "limits": {"local": "wall"}, "bounds": frozenset({"wall"})}
    less = {row.peer: row for row in compare(runs, "f", higher=False, **options)}
    more = {row.peer: row for row in compare(runs, "f", higher=True, **options)}
    assert (less["a"].to_loky, less["a"].to_best, less["a"].to_limit) == (2.0, 2.0, 0.5)
    assert (more["a"].to_loky, more["a"].to_best, more["a"].to_limit) == (0.5, 0.5, 2.0)
    assert less["loky"].to_loky is None
    assert less["wall"].to_limit is None


def test_our_own_are_no_rivals_of_each_other() -> None:
    runs = {"s1": [{"f": 9.0}], "s2": [{"f": 8.0}], "other": [{"f": 2.0}]}
    places = dict.fromkeys(runs, "local")
    rows = compare(
        runs, "f", places, higher=True, limits={}, bounds=frozenset(), ours=frozenset({"s1", "s2"}), ideal=10.0
    )
    assert [row.to_best for row in rows] == [4.5, 4.0, None]
    assert rows[0].to_limit == 0.9


def test_a_peer_without_runs_is_in_no_table() -> None:
    assert compare({"a": []}, "f", {"a": "local"}, higher=True, limits={}, bounds=frozenset()) == []


def test_the_tables_say_who_failed_and_who_was_left_out() -> None:
    found = results(skyward_local=[200.0, 100.0, 300.0], loky=[50.0], nothing=[400.0])
    found["results"].append({"workload": "noop", "peer": "dask", "runs": [], "error": "RuntimeError: no"})
    found["skipped"].append({"workload": "noop", "peer": "lithops", "why": "slow"})
    page = markdown(found)
    assert "| skyward-local | 200 (100–300) | 4.00 | 4.00 | 0.500 |" in page  # noqa: RUF001 - as above
    assert "- dask: fails: RuntimeError: no" in page
    assert "- lithops: slow" in page
    assert [workload.name for workload, _ in comparisons(found)] == ["noop"]


def test_sums_may_differ_in_their_last_bits_but_no_more() -> None:
    assert close_enough([0.3], [0.3]) == 1.0
    assert close_enough([0.1 + 0.2], [0.3]) == 0.0
    with pytest.raises(AssertionError, match="wrong"):
        close_enough([0.31], [0.3])


def test_growth_is_told_in_words() -> None:
    assert counts.worse({"calls": 104.0}, {"calls": 100.0}) == []
    assert counts.worse({"calls": 90.0}, {"calls": 100.0}) == []
    assert counts.worse({"calls": 115.0}, {"calls": 100.0}) == ["calls: 115 per task instead of 100"]
    assert counts.worse({"new": 1.0}, {}) == ["new: 1 per task instead of 0"]


# The tables of workloads and peers


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=lambda workload: workload.name)
def test_limits_bound_what_they_are_compared_with(workload: Workload) -> None:
    for place, name in workload.limits.items():
        assert place in workload.places
        assert workload.why_not(PEERS[name], next(iter(workload.sizes))) is None or name == "nothing"


@pytest.mark.parametrize("peer", PEERS.values(), ids=lambda peer: peer.name)
def test_peers_skip_workloads_that_exist(peer: Peer) -> None:
    assert set(peer.skips) | set(peer.instead or ()) | set(peer.only or ()) <= set(WORKLOADS)


def test_a_peer_that_is_not_installed_says_so() -> None:
    assert "no-such-package" in str(missing(Peer("x", "x", lambda _: None, packages=("no-such-package",))))
    assert missing(PEERS["loky"]) is None


def test_a_start_is_measured_with_nothing_imported() -> None:
    heavy = "{'joblib', 'numpy', 'skyward', 'asyncio', 'typer'}"
    code = (
        f"import sys, benchmarks.alone; sys.exit(str({heavy} & set(sys.modules)) if {heavy} & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


# Processes


def test_descendants_and_their_use_are_found() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 60 & wait"]) as shell:
        try:
            while len(family := processes.descendants(shell.pid)) < 1:
                pass
            assert family[0] in processes.descendants(os.getpid())
            assert processes.pss_mb(family) > 0
            assert processes.cpu_seconds([os.getpid()]) > 0
        finally:
            processes.kill([*processes.descendants(shell.pid), shell.pid])
    eventually(lambda: processes.pss_mb(family) == 0)  # whoever adopted it has to reap it first


# All together


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_smoke_runs(tmp_path: Path) -> None:
    """All workloads that need no hosts, by skyward and loky; every result is right to the last bit."""
    file = tmp_path / "smoke.json"
    command("benchmarks", "--smoke", "--strict", "--json", str(file))
    found = json.loads(file.read_text())
    done = {(outcome["workload"], outcome["peer"]) for outcome in found["results"] if outcome["runs"]}
    for workload in WORKLOADS.values():
        for peer in (PEERS["skyward-local"], PEERS["loky"]):
            assert ((workload.name, peer.name) in done) == (workload.why_not(peer, "smoke") is None)
    assert all(run.get("bit_equal", 1.0) for outcome in found["results"] for run in outcome["runs"])
    assert "skyward-local" in command("benchmarks.report", str(file))


@pytest.mark.slow
@pytest.mark.lab
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("lab")
def test_the_smoke_runs_on_hosts(tmp_path: Path) -> None:
    """Over a long line, and beside OpenSSH on the same path."""
    file = tmp_path / "smoke.json"
    peers, workloads = "skyward-ssh,tcp-lab,ssh-forward", "shared,wan_upload"
    command("benchmarks", "--smoke", "--strict", "--peers", peers, "--workloads", workloads, "--json", str(file))
    found = json.loads(file.read_text())
    assert [len(outcome["runs"]) for outcome in found["results"]] == [1] * 6
    assert all(run["wire_mb"] > 0 for outcome in found["results"] for run in outcome["runs"])


@pytest.mark.slow
def test_a_task_costs_no_more_work_than_before() -> None:
    """`python -m benchmarks.counts --write` makes the present counts the normal, where growth is meant."""
    usual = counts.normal()
    if usual is None:
        pytest.skip(f"nothing is written down for Python {sys.version_info.major}.{sys.version_info.minor}")
    found = json.loads(command("benchmarks.counts", limit=100))
    assert set(found) == set(usual)
    assert counts.worse(found, usual) == []
