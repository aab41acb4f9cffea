"""Caches of `joblib.Memory` on real hosts, which see nothing of the driver's folder."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from joblib import Memory, Parallel, delayed

import skyward as sky
from skyward.joblib_ext.cache_desk import desk_of
from tests.lab import Host, Lab, eventually
from tests.lab.fixtures import LabHosts
from tests.remote import Reach, index, reach, wheels

__all__ = ["index", "reach", "wheels"]  # fixtures

pytestmark = [pytest.mark.lab, pytest.mark.slow]

RAN = "/var/tmp/ran"
PIP = {"pip": ["joblib", "numpy"]}


def ran(hosts: list[Host]) -> list[str]:
    """What the hosts have counted, and forget."""
    found = [host.run("sh", "-c", f"cat {RAN} 2>/dev/null; rm -f {RAN}").stdout.split() for host in hosts]
    return sorted(line for lines in found for line in lines)


def has_run(host: Host) -> bool:
    return host.run("sh", "-c", f"cat {RAN} 2>/dev/null").stdout != ""


# The document's pattern, as printed, but for its import, the line that counts and a result.
SWEEP = """
from joblib import Memory, Parallel, delayed

memory = Memory("./cache")

@memory.cache
def simulate(param1, param2, seed):
    \"\"\"Expensive simulation.\"\"\"
    import numpy as np
    np.random.seed(seed)
    # Complex simulation...
    count("simulate")
    result = param1 * param2 + np.random.rand()
    return result

# Run parameter sweep (cached)
param_grid = [(p1, p2, s) for p1 in [0.1, 0.5, 1.0]
                          for p2 in [1, 2, 3]
                          for s in range(10)]

results = Parallel(n_jobs=-1)(
    delayed(simulate)(*params) for params in param_grid
)
print("results", results)
"""

# The other one. Here a node runs both stages: as printed they run in the driver, with plain joblib.
WORKFLOW = """
from joblib import Memory

memory = Memory("./cache")

@memory.cache
def stage1(data):
    # Long computation
    count("stage1")
    processed_data = [item * 2 for item in data]
    return processed_data

@memory.cache
def stage2(data):
    # Another long computation
    count("stage2")
    analyzed_data = sum(data)
    return analyzed_data

def load_data():
    return [1, 2, 3]

def workflow():
    # If script crashes after stage1, stage1 won't rerun
    data = load_data()
    step1_result = stage1(data)  # Cached if already done
    return stage2(step1_result)  # Cached if already done

print("results", [future.result() for future in [pool.submit(workflow) for _ in range(4)]])
"""

# As a project has it: stages in a module, which hosts get as its file, and of which each import makes a Memory.
STAGES = f"""
from joblib import Memory

memory = Memory("./cache", verbose=0)

def count(what):
    with open({RAN!r}, "a") as file:
        file.write(f"{{what}}\\n")

@memory.cache
def stage1(data):
    count("stage1")
    return [item * 2 for item in data]

@memory.cache
def stage2(data):
    count("stage2")
    return sum(data)

def workflow(last):
    return stage2(stage1([1, 2, last]))
"""

PROJECT = """
import stages
print("results", list(pool.map(stages.workflow, [3, 3, 3, 4])), pool.submit(stages.stage1, [5]).result())
"""

PROGRAM = """
import json, os, sys
import skyward as sky

def count(what):
    with open({RAN!r}, "a") as file:
        file.write(f"{{what}}\\n")

if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    provider = sky.SSH(**settings["provider"])
    image = sky.Image(**settings["image"])
    plugins = [sky.plugins.joblib()]
    with sky.Compute(provider, nodes=2, concurrency=2, image=image, plugins=plugins, console=False) as pool:
{body}
"""


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (SWEEP, ["simulate"] * 90),
        (WORKFLOW, ["stage1", "stage2"]),
        (PROJECT, ["stage1"] * 3 + ["stage2"] * 2),
    ],
    ids=["sweep", "workflow", "project"],
)
def test_the_documents_patterns_run_once_ever(
    lab: Lab, lab_hosts: LabHosts, index: str, tmp_path: Path, pattern: str, expected: list[str]
) -> None:
    """Two programs, one after the other: the second one executes nothing; nor does plain joblib, here."""
    hosts = lab_hosts(2)
    ran(hosts)
    settings = {
        "provider": {
            "hosts": [host.address for host in hosts],
            "user": "root",
            "key": str(lab.key),
            "known_hosts": str(lab.known_hosts),
        },
        "image": {"index": index, **PIP},
    }
    (tmp_path / "stages.py").write_text(STAGES, encoding="utf-8")
    program = tmp_path / "search.py"
    program.write_text(PROGRAM.format(RAN=RAN, body=textwrap.indent(pattern, " " * 8)), encoding="utf-8")
    printed = []
    for number in range(2):
        done = subprocess.run(
            [sys.executable, str(program), json.dumps(settings)],
            cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        printed.append(next(line for line in done.stdout.splitlines() if line.startswith("results")))
        assert ran(hosts) == (expected if number == 0 else [])
    assert printed[0] == printed[1]
    assert (tmp_path / "cache" / "joblib").is_dir()


def counted(memory: Memory, label: str) -> Any:
    """A cached function that leaves a line on its host."""
    where = RAN

    def square(x: Any) -> Any:
        import time

        with open(where, "a") as file:  # noqa: PTH123
            file.write(f"{label}\n")
        time.sleep(0.3)
        return x * x

    square.__module__ = "__main__"  # hosts don't have this module
    return memory.cache(square)


@pytest.mark.parametrize("results", ["any", "data"])
def test_tasks_on_all_hosts_share_the_drivers_cache(
    lab_hosts: LabHosts, reach: Reach, tmp_path: Path, results: Any
) -> None:
    """Equal nested calls are computed once in the pool, also where results are read as data; large ones too."""
    import numpy as np

    hosts = lab_hosts(2)
    ran(hosts)
    memory = Memory(str(tmp_path / "cache"), verbose=0)
    square = counted(memory, "square")

    def nested(x: Any) -> float:
        return float(np.sum(square(x)))

    nested.__module__ = "__main__"
    large = np.arange(3_000_000.0)
    options = {**reach(hosts, PIP), "concurrency": 2, "plugins": [sky.plugins.joblib()], "results": results}
    with sky.Compute(**options) as pool:
        assert [future.result() for future in [pool.submit(nested, 7) for _ in range(8)]] == [49.0] * 8
        assert ran(hosts) == ["square"]
        assert square.check_call_in_cache(7)
        assert square(8) == 64
        ran([])
        assert list(pool.map(nested, [8] * 4)) == [64.0] * 4
        assert ran(hosts) == []
        total = float((large**2).sum())
        assert list(pool.map(nested, [large] * 4)) == [total] * 4
        assert ran(hosts) == ["square"]
        for _ in range(2):
            assert list(pool.map(nested, [large] * 8)) == [total] * 8
        assert desk_of(pool.dispatcher.context).sent <= 2, "once for each host"
        assert pool.submit(square, large).done()
        np.testing.assert_array_equal(square(large), large**2)
        with pytest.raises(ZeroDivisionError):
            pool.submit(lambda: nested(1) / 0).result()
        assert Parallel(n_jobs=-1)(delayed(square)(x) for x in (7, 8, 1)) == [49, 64, 1]
        assert ran(hosts) == ["square"]


def test_a_host_that_dies_lets_others_go_on(lab_hosts: LabHosts, reach: Reach, tmp_path: Path) -> None:
    """Its turn ends with it."""
    hosts = lab_hosts(2)
    ran(hosts)
    memory = Memory(str(tmp_path / "cache"), verbose=0)
    square = counted(memory, "square")

    def nested(x: int) -> int:
        square(x + 1000)  # to have it all loaded
        return int(square(x))

    nested.__module__ = "__main__"
    options = {**reach(hosts, PIP), "concurrency": 2, "plugins": [sky.plugins.joblib()]}
    with sky.Compute(**options) as pool:
        direct = [pool.submit(square, 5) for _ in range(3)]
        futures = [pool.submit(nested, 5) for _ in range(4)]
        assert [future.result() for future in (*direct, *futures)] == [25] * 7
        assert ran(hosts) == ["square"] * 2
        first, *others = (pool.submit(nested, 6) for _ in range(4))
        eventually(lambda: any(map(has_run, hosts)), 20, "one computes")
        next(filter(has_run, hosts)).kill()
        assert [future.result(120) for future in (first, *others)] == [36] * 4
