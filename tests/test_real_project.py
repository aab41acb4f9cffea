"""A whole project gives the same results everywhere, by changing `provider=` alone; then an edit counts at once.

CI runs it on a host of the lab; ``SKYWARD_PROJECT=1`` adds this machine, hosts without internet, a cloud of the lab,
and the project's notebook.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.lab import Lab
from tests.lab.clouds import Machines
from tests.lab.clouds.ec2 import EC2
from tests.lab.fixtures import FreshHost, LabHosts
from tests.notebooks import executed, texts
from tests.real_project import CELLS, Project, make
from tests.remote import index
from tests.wheels import wheels

__all__ = ["index", "wheels"]  # fixtures

pytestmark = [pytest.mark.lab, pytest.mark.slow]

everywhere = pytest.mark.skipif(
    "SKYWARD_PROJECT" not in os.environ, reason="takes a minute; run by hand with SKYWARD_PROJECT=1"
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    if shutil.which("cc") is None:
        pytest.skip("the project has a part in C, and there is no compiler here")
    return make(tmp_path_factory.mktemp("real"))


def check(found: list[Any]) -> None:
    """What nodes computed is what the program itself did, and with the edited helper the rest is as before."""
    here, there = found
    assert there[:2] == here
    edited = [[100 * first, *rest] for first, *rest in here[1]]
    assert there[2] == edited
    assert there[3] == 2 * 3 + 1, "Pipeline(memory=) kept each power in each fold here, and the best in all"
    assert here[1][0][1:] == [7, "test", True, ["4.2", "3.1", "spread"]]


def hosts(lab: Lab, *addresses: str) -> dict[str, Any]:
    return {"hosts": list(addresses), "user": "root", "key": str(lab.key), "known_hosts": str(lab.known_hosts)}


def test_on_a_host(project: Project, lab: Lab, lab_hosts: LabHosts, index: str) -> None:
    options = {"image": {"index": index}}
    check(project.run("ssh", hosts(lab, lab_hosts()[0].address), options))


@everywhere
def test_on_this_machine(project: Project) -> None:
    check(project.run("local", {}, {"image": {}, "nodes": 2}))


@everywhere
def test_on_hosts_without_internet(
    project: Project, lab: Lab, fresh_host: FreshHost, wheels: Path, tmp_path: Path
) -> None:
    """They have a Python and nothing else: no index, no uv, no pip that could reach one."""
    addresses = [fresh_host().address for _ in range(2)]
    own = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "XDG_CACHE_HOME": str(tmp_path)}
    check(project.run("ssh", hosts(lab, *addresses), {"image": {}, "nodes": 2}, **own))


@everywhere
def test_nothing_is_fetched_or_sent_twice(project: Project, lab: Lab, fresh_host: FreshHost, wheels: Path) -> None:
    """Each host asks for each wheel once, and for nothing at the second start; what the driver sends is little then."""
    index = lab.serve_index(wheels)
    both = [fresh_host() for _ in range(2)]
    arguments = ("ssh", hosts(lab, *(host.address for host in both)), {"image": {"index": index}, "nodes": 2})
    project.run(*arguments)
    asked = [request for request in lab.requests(index) if request[1].endswith(".whl")]
    assert asked
    assert len(asked) == len(set(asked))
    assert {host for host, _ in asked} == {host.address for host in both}
    before, received = len(lab.requests(index)), [host.rx_bytes for host in both]
    project.run(*arguments)
    assert len(lab.requests(index)) == before
    more = [host.rx_bytes - then for host, then in zip(both, received, strict=True)]
    assert max(more) < 2_000_000, more


@everywhere
def test_in_a_cloud(project: Project, lab: Lab, index: str, tmp_path: Path) -> None:
    with EC2(Machines(lab)) as cloud:
        given = {
            "region": "us-east-1",
            "access_key": cloud.access_key,
            "secret_key": cloud.secret_key,
            "url": cloud.url,
            "ssh_from": "10.77.0.0/16",
        }
        options = {"image": {"index": index}, "nodes": 2}
        check(project.run("aws", given, options, SKYWARD_STATE=str(tmp_path / "state")))
        assert cloud.meter.live == []


@everywhere
def test_in_its_notebook(project: Project, tmp_path: Path) -> None:
    """The same cells, and autoreload for the driver's own part of the helper."""
    found = project.run("local", {}, {"image": {}})
    (project.folder / "helpers.py").write_text((project.folder / "helpers.py").read_text().replace("= 100", "= 1"))
    cells = [cell.replace("{site!r}", repr(str(project.site))) for cell in CELLS]
    outputs = executed(*cells, folder=project.folder)
    (said,) = [text for text in texts(outputs[2]) if text.startswith("[")]
    assert json.loads(said) == found[1]
    assert texts(outputs[3]) == ["100"]
