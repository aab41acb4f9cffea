"""A part of each foreign suite, on this machine; joblib's on hosts over SSH too. `python -m tests.foreign` runs all."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tests.foreign import joblib_suite
from tests.foreign.__main__ import SUITES, suite_of
from tests.foreign.runner import Run, Suite, judge, run
from tests.remote import index, wheels

__all__ = ["index", "wheels"]  # fixtures

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize("name", SUITES)
def test_on_this_machine(name: str, tmp_path: Path) -> None:
    """With results as data, as they come from strangers' machines, where the tests' own classes are no results."""
    suite = suite_of(name)
    if suite is None:
        pytest.skip("this Python has no test.test_concurrent_futures, and there is no package of it for Debian")
    variables = {"FOREIGN_RESULTS": "data"} if name == "joblib" else {}
    ours = run(suite, "skyward", tmp_path, whole=False, limit=550, **variables)
    print(f"{name}: {ours}")
    wrong = judge(ours, suite)
    if wrong and name == "sklearn":  # whose failures are all the peer's too: only these tests are run on it
        (tmp_path / "peer").mkdir()
        theirs = run(suite, suite.peer, tmp_path / "peer", whole=False, limit=550, FOREIGN_PART="\n".join(ours.failed))
        wrong = judge(ours, suite, theirs)
    assert wrong == []


@pytest.mark.lab
def test_joblib_on_hosts_over_ssh(tmp_path, lab, lab_hosts, index, wheels_of_pytest):
    hosts = [host.address for host in lab_hosts(2)]
    provider = {"hosts": hosts, "user": "root", "key": str(lab.key), "known_hosts": str(lab.known_hosts)}
    # joblib's tests are a part of joblib, and import pytest
    image = {"pip": ["numpy", "threadpoolctl", f"pytest=={pytest.__version__}"], "index": index}
    image |= {"extra_index": [lab.serve_index(wheels_of_pytest)]}
    variables = {"FOREIGN_PROVIDER": "ssh", "FOREIGN_SSH": json.dumps(provider), "FOREIGN_IMAGE": json.dumps(image)}
    suite = joblib_suite.suite()
    ours = run(suite, "skyward", tmp_path, whole=False, limit=550, **variables)
    assert judge(ours, suite) == []


@pytest.fixture
def wheels_of_pytest(wheels: Path) -> Path:
    folder = wheels.with_name(f"{wheels.name}-pytest-{pytest.__version__}-and-its-own")
    needs = ("pytest", "iniconfig", "packaging", "pluggy", "pygments")  # nodes get our versions of these
    if not list(folder.glob("pytest-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "-d", str(folder)]
        subprocess.run([*command, *(f"{name}=={metadata.version(name)}" for name in needs)], check=True, timeout=300)
    return folder


# --- the judge ---


def test_what_is_wrong() -> None:
    suite = Suite("plugin", [], {"expected[*]": "a reason"})
    assert judge(Run({"a": ("passed", ""), "expected[1]": ("failed", "")}), suite) == []
    (text,) = judge(Run({"a": ("failed", "no!"), "expected[1]": ("failed", "")}), suite)
    assert text == "a fails, and there is no reason for it: no!"
    (text,) = judge(Run({"expected[1]": ("passed", "")}), suite)
    assert text == "expected[*] passes now, so it can't be that: a reason"
    assert judge(Run({"expected[1]": ("skipped", "")}), suite) == []


def test_what_the_peer_fails_too_is_nobodys_fault() -> None:
    suite = Suite("plugin", [], {})
    ours, theirs = Run({"a[skyward]": ("failed", "")}), Run({"a[loky]": ("failed", "")})
    assert judge(ours, suite, theirs) == []
    assert len(judge(ours, suite, Run({"a[loky]": ("passed", "")}))) == 1
