"""joblib's own tests, of the installed joblib, on our backend: on this machine and on hosts over SSH."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import joblib
import pytest

from tests.wheels import wheels

__all__ = ["wheels"]  # a fixture

ROOT = Path(__file__).parents[2]
MOST_SKIPPED = 8
LEAST_PASSED = 110

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run(folder: Path, **variables: str) -> dict[str, int]:
    """Run the suite in a folder of its own, where no conftest of ours is found; returns the counts."""
    modules = [f"joblib.test.{name}" for name in ("test_parallel", "test_config")]
    options = ["-p", "tests.joblib_suite.plugin", "-p", "no:cacheprovider", "--noconftest", "-c", os.devnull]
    options += ["--rootdir", str(folder), "--timeout=60", "-q", "-rfEs", "--pyargs"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *modules],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    print(done.stdout[-8000:], done.stderr[-2000:])
    *_, last = done.stdout.strip().splitlines()
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|errors?|xfailed)", last)}
    print(f"joblib {joblib.__version__}: {last}")
    return counts


def check(counts: dict[str, int]) -> None:
    assert not {"failed", "error", "errors"} & counts.keys()
    assert counts["passed"] >= LEAST_PASSED
    assert counts.get("skipped", 0) <= MOST_SKIPPED


def test_on_this_machine(tmp_path):
    """With results as data, as they come from strangers' machines."""
    check(run(tmp_path, SKYWARD_SUITE_RESULTS="data"))


@pytest.mark.lab
def test_on_hosts_over_ssh(tmp_path, lab, lab_hosts, wheels, wheels_of_pytest):
    hosts = [host.address for host in lab_hosts(2)]
    provider = {"hosts": hosts, "user": "root", "key": str(lab.key), "known_hosts": str(lab.known_hosts)}
    # joblib's tests are a part of joblib, and import pytest
    image = {"pip": ["numpy", "threadpoolctl", f"pytest=={pytest.__version__}"]}
    image |= {"index": lab.serve_index(wheels), "extra_index": [lab.serve_index(wheels_of_pytest)]}
    check(
        run(
            tmp_path,
            SKYWARD_SUITE_PROVIDER="ssh",
            SKYWARD_SUITE_SSH=json.dumps(provider),
            SKYWARD_SUITE_IMAGE=json.dumps(image),
        )
    )


@pytest.fixture
def wheels_of_pytest(wheels) -> Path:
    folder = wheels.with_name(f"{wheels.name}-pytest-{pytest.__version__}-and-its-own")
    needs = ("pytest", "iniconfig", "packaging", "pluggy", "pygments")  # nodes get our versions of these
    if not list(folder.glob("pytest-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "-d", str(folder)]
        subprocess.run([*command, *(f"{name}=={metadata.version(name)}" for name in needs)], check=True, timeout=300)
    return folder
