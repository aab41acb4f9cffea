"""The commands beside a pool that runs, on real hosts of a cloud."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import skyward as sky
from skyward.core.machines.ledger import Ledger
from tests.lab import Lab
from tests.lab.clouds import Machines
from tests.lab.clouds.verda import Verda
from tests.lab.wait import eventually
from tests.remote import index, wheels

pytestmark = [pytest.mark.lab, pytest.mark.slow]

__all__ = ["index", "wheels"]  # fixtures

Command = Callable[..., subprocess.CompletedProcess[str]]

DRIVER = """
import sys, time
import skyward as sky

with sky.Compute(provider="verda", nodes=2, image=sky.Image(index=sys.argv[1]), console=False) as pool:
    print("ready", flush=True)
    pool.submit(time.sleep, 600).result()
"""


@pytest.fixture
def cloud(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Verda]:
    with Verda(Machines(lab)) as running:
        monkeypatch.setenv("VERDA_BASE_URL", running.base_url)
        monkeypatch.setenv("VERDA_CLIENT_ID", running.client_id)
        monkeypatch.setenv("VERDA_CLIENT_SECRET", running.client_secret)
        yield running


def test_looking_in_logging_in_and_ending_it(cloud: Verda, command: Command, index: str) -> None:
    """The pool's own program is told that its nodes are gone, and buys no others."""
    with sky.Compute(provider="verda", nodes=2, image=sky.Image(index=index), console=False) as pool:
        waiting = pool.submit(lambda: __import__("time").sleep(600))
        rows = json.loads(command("ls", "--json").stdout)
        assert [(row["node"], row["state"], row["driver"]) for row in rows] == [
            ("node-1", "running", True),
            ("node-2", "running", True),
        ]
        assert all(row["cost"] > 0 and row["pool"] == pool.name for row in rows)
        names = {command("ssh", node, "--", "hostname").stdout.strip() for node in ("node-1", "node-2")}
        assert len(names - {""}) == 2
        assert command("doctor").returncode == 0
        refused = command("down", pool.name)
        assert (refused.returncode, len(cloud.meter.live) > 0) == (1, True)
        done = command("down", pool.name, "--yes")
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{pool.name}: 2 machine(s) terminated; nothing is left\n"
        assert cloud.meter.live == []
        assert waiting.exception(60) is not None
    assert cloud.meter.live == []
    assert len(cloud.meter.ever("instance")) == 2
    assert json.loads(command("ls", "--json").stdout) == []


def children(task: Path) -> list[int]:
    return [int(pid) for pid in (task / "children").read_text().split()]


def test_after_a_death_that_the_reaper_did_not_survive_either(
    cloud: Verda,
    command: Command,
    index: str,
    tmp_path: Path,
) -> None:
    """The computer lost its power, say. The ledger knows, and `down` needs to ask nobody."""
    script = tmp_path / "driver.py"
    script.write_text(textwrap.dedent(DRIVER))
    driver = subprocess.Popen(
        [sys.executable, script, index], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert driver.stdout is not None
    assert driver.stdout.readline() == "ready\n"
    (reaper,) = (child for task in Path(f"/proc/{driver.pid}/task").iterdir() for child in children(task))
    assert b"skyward.core.machines.reaper" in Path(f"/proc/{reaper}/cmdline").read_bytes()
    os.kill(reaper, signal.SIGKILL)
    driver.kill()
    driver.communicate()
    (pool,) = Ledger().pools()
    assert pool.alive is False
    assert {row["driver"] for row in json.loads(command("ls", "--json").stdout)} == {False}
    assert command("doctor").returncode == 1
    done = command("down", "--all")
    assert done.returncode == 0, done.stderr
    eventually(lambda: cloud.meter.live == [])
    assert Ledger().pools() == []
