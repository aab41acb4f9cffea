"""Results that outlive the program, computed on real hosts."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import Lab
from tests.lab.fixtures import LabHosts
from tests.remote import index, wheels
from tests.test_local_code import REPOSITORY, project, reach, run

__all__ = ["index", "wheels"]  # fixtures

pytestmark = [pytest.mark.lab, pytest.mark.slow]

FILES = {"helpers.py": "import shared\ndef drawn(n):\n    return shared.drawn(n)\n", "shared.py": ""}
SHARED = "import os, time\ndef drawn(n):\n    time.sleep(0.02)\n    return [n, os.urandom(8).hex()]\n"
SCRIPT = """
import helpers
with compute(concurrency=2, resume="search.run") as pool:
    report(Parallel(n_jobs=-1, batch_size=2)(delayed(helpers.drawn)(n) for n in range(20)))
    report(*pool.map(helpers.drawn, range(20, 30)))
"""
MANY = """
import helpers
with compute(concurrency=2, resume="search.run", orphan_timeout=5) as pool:
    calls = (delayed(helpers.drawn)(n) for n in range(300))
    for result in Parallel(n_jobs=-1, batch_size=1, return_as="generator")(calls):
        report(result)
"""


def test_a_second_run_takes_the_results_unless_a_helper_was_edited(
    tmp_path: Path, lab: Lab, lab_hosts: LabHosts, index: str
) -> None:
    """What is drawn at random shows whether it was computed again."""
    script, hosts = project(tmp_path, FILES, SCRIPT), reach(lab, lab_hosts(2), index)
    (tmp_path / "shared.py").write_text(SHARED)
    first, errors = run(script, hosts)
    assert "search.run: took 0 results, stored 30" in errors
    second, errors = run(script, hosts)
    assert "search.run: took 30 results, stored 0" in errors
    assert second == first
    (tmp_path / "shared.py").write_text(SHARED + "EDITED = 1\n")
    third, errors = run(script, hosts)
    assert "stored results of drawn can't be reused, because its code, or something that it uses, has changed" in errors
    assert not {json.dumps(result) for result in third[0][0]} & {json.dumps(result) for result in first[0][0]}


def test_what_was_handed_over_survives_kill(tmp_path: Path, lab: Lab, lab_hosts: LabHosts, index: str) -> None:
    """At random moments, of a driver whose nodes go on for a while."""
    script, hosts = project(tmp_path, FILES, MANY), reach(lab, lab_hosts(2), index)
    (tmp_path / "shared.py").write_text(SHARED)
    chance, handed = random.Random(5), dict[str, str]()
    for turn in range(4):
        with subprocess.Popen(
            [sys.executable, script.name, json.dumps(hosts)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            assert process.stdout is not None
            lines = []
            if turn < 3:
                lines = [process.stdout.readline() for _ in range(len(handed) + chance.randrange(1, 60))]
                process.kill()
            for line in [*lines, *process.stdout.read().splitlines(keepends=True)]:
                if line.endswith("\n"):
                    ((n, drawn),) = json.loads(line)
                    assert handed.setdefault(n, drawn) == drawn
    assert len(handed) == 300
