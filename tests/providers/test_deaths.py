"""However the driver ends, at whatever moment, nothing goes on costing. For every cloud."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import pytest

from skyward.core.machines.sweep import sweep
from tests.lab.wait import eventually
from tests.providers.rentals import RENTALS, Rental, on, on_some
from tests.remote import *  # noqa: F403  fixtures

pytestmark = [pytest.mark.clouds, pytest.mark.lab, pytest.mark.slow]

ROOT = Path(__file__).parents[2]

PATH = f"{ROOT}:{ROOT / 'contrib/skyward-hetzner/src'}"

DRIVER = """
    import json, sys, time, cloudpickle
    import skyward as sky
    from skyward.core.machines import budget

    budget.MIN_SECONDS = 1.0  # seconds: a budget for five minutes would take a test as long
    provider = cloudpickle.loads(open(sys.argv[1], "rb").read())
    print("begun", flush=True)
    with sky.Compute(
        provider=provider,  # whose class is one of these tests, which nodes need no packages for
        nodes=2,
        image=sky.Image(index=sys.argv[2], sync="none"),
        console=False,
        **json.loads(sys.argv[3]),
    ) as pool:
        print("ready", flush=True)
        pool.submit(time.sleep, 60).result()
"""


@pytest.fixture(params=RENTALS, ids=lambda rental: rental.name)
def rental(request) -> Rental:
    return request.param


@pytest.fixture
def driver(tmp_path, index, monkeypatch):
    """Starts a driver, a script of its own."""
    state = tmp_path / "state"
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(DRIVER))
    started = []

    def start(provider, **options: float) -> subprocess.Popen[str]:
        (tmp_path / "provider").write_bytes(cloudpickle.dumps(provider))
        process = subprocess.Popen(
            [
                sys.executable,
                str(script),
                str(tmp_path / "provider"),
                index,
                json.dumps({"orphan_timeout": 20.0, **options}),
            ],
            env={**os.environ, "SKYWARD_STATE": str(state), "PYTHONPATH": PATH},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        says(process, "begun")
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def says(process: subprocess.Popen[str], word: str) -> None:
    """Wait until a driver has come so far."""
    if process.stdout.readline() != f"{word}\n":
        pytest.fail(f"the driver ended before it was {word}:\n{process.communicate()[1]}")


def gone(cloud) -> None:
    try:
        eventually(lambda: cloud.meter.live == [], 60.0)
    except TimeoutError:
        assert cloud.meter.live == []  # says what there is now


@on_some("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_driver_that_dies_while_tasks_run(rental, lab, driver, how):
    with rental.cloud(lab) as cloud:
        process = driver(rental.provider(cloud))
        says(process, "ready")
        assert cloud.meter.live
        process.send_signal(how)
        process.wait(180)  # a busy machine and a slow API
        gone(cloud)


def test_a_driver_that_is_killed_at_any_moment(rental, lab, driver):
    """From before the first order until after the last node has come."""
    chance = random.Random(7)
    with rental.cloud(lab) as cloud:
        for _ in range(20 // len(RENTALS) + 1):
            process = driver(rental.provider(cloud))
            time.sleep(chance.uniform(0.0, 3.0))  # the moment is what is tested
            process.kill()
            process.wait(30)
            gone(cloud)


@on("hetzner", "aws", "vastai")
def test_ctrl_c_again_and_again(rental, lab, driver):
    """An impatient user: the driver ends without having given all back, and the reaper does."""
    with rental.cloud(lab) as cloud:
        process = driver(rental.provider(cloud))
        says(process, "ready")
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            time.sleep(0.05)
        gone(cloud)


def test_a_machine_ends_itself_when_nobody_is_left(rental, lab, driver):
    """Driver and reaper are killed, as when the computer goes down."""
    if not rental.ends_itself:
        pytest.skip(f"a machine of {rental.name} costs as long as it exists, and has no right to end itself")
    with rental.cloud(lab) as cloud:
        provider = rental.provider(cloud)
        process = driver(provider)
        says(process, "ready")
        tag = provider.all_machines()[0].tag
        with no_reaper(process):
            process.kill()
            process.wait(30)
        eventually(lambda: not {"instance", "volume"} & {kind for kind, _ in cloud.meter.live}, 90.0, "no instance")
        sweep(provider, tag, limit=30)  # what `skyward down` does: a security group can't end itself
        assert cloud.meter.live == []


@contextlib.contextmanager
def no_reaper(process: subprocess.Popen[str]) -> Iterator[None]:
    """Kill the reaper of a driver that dies in this block, as when the computer goes down."""
    reaper = eventually(lambda: children(process.pid, "skyward.core.machines.reaper"))[0]
    os.kill(reaper, signal.SIGSTOP)  # so that it can't begin between the two
    try:
        yield
    finally:
        os.kill(reaper, signal.SIGKILL)


def children(pid: int, command: str) -> list[int]:
    found: list[str] = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        found += (thread / "children").read_text().split()
    lines = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in set(found)}
    return [child for child, line in lines.items() if command.encode() in line]
