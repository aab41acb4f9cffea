"""A bucket that tasks write to, while drivers, agents, rclones and the S3 server are killed at random moments."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from skyward.worker import mounts
from tests.lab import Host, Lab, eventually
from tests.lab.fixtures import LabHosts
from tests.processes import comm, descendants, rclones
from tests.remote import index, wheels
from tests.s3_servers import KEYS, S3Server, needs_rclone, rclone_s3
from tests.worker.helpers import ROOT

__all__ = ["index", "wheels"]  # fixtures

pytestmark = [pytest.mark.slow, needs_rclone]

MANY = "SKYWARD_KILLS" in os.environ  # for the thirty of a longer run
KILLS, TASKS = (30, 1500) if MANY else (8, 400)
PATIENCE = 120.0  # seconds

PROGRAM = """
import json, os, sys, time
import skyward as sky

def write(number, log):
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, b"%d\\n" % number)
    os.close(fd)
    while True:  # as long as its rclone is gone, a mount can't be read
        try:
            with open("in/file") as file:
                assert file.read() == "123"
            break
        except OSError:
            time.sleep(0.05)
    time.sleep(0.03 * (number % 5))
    os.makedirs(f"out/{number % 7}", exist_ok=True)
    with open(f"out/{number % 7}/.part-{number}", "w") as file:
        file.write(f"{number}" * (1 + number % 3 * 100_000))
    os.replace(f"out/{number % 7}/.part-{number}", f"out/{number % 7}/part-{number}")
    return number

if __name__ == "__main__":
    url, keys, log, done, resume, count = json.loads(sys.argv[1])
    volumes = [
        sky.S3Volume("in", "bucket", "in", endpoint=url, **keys),
        sky.S3Volume("out", "bucket", "out", read_only=False, endpoint=url, **keys),
    ]
    worker = sky.Worker(concurrency=2, attempts=1000)
    with sky.Compute(nodes=2, volume=volumes, resume=resume, worker=worker, console=False) as pool:
        fd = os.open(done, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for number in pool.map(write, range(count), [log] * count):
            os.write(fd, b"%d\\n" % number)
"""


def numbers(path: Path) -> list[int]:
    """The whole lines of a file."""
    return [int(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def content(number: int) -> str:
    return f"{number}" * (1 + number % 3 * 100_000)


class Run:
    """The program, run again and again until it ends by itself."""

    def __init__(self, tmp_path: Path, server: S3Server) -> None:
        self.bucket = tmp_path / "served" / "bucket"
        self.server = server
        self.log, self.done = tmp_path / "log", tmp_path / "done"
        self.mark = f"SKYWARD_TEST_MARK={tmp_path}"
        self.errors = tmp_path / "errors"
        program = tmp_path / "program.py"
        program.write_text(PROGRAM)
        values = [server.url, KEYS, str(self.log), str(self.done), str(tmp_path / "resume"), TASKS]
        self.command = [sys.executable, str(program), json.dumps(values)]
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "SKYWARD_TEST_MARK": str(tmp_path)}
        self.checked: set[int] = set()
        self.restarts: list[tuple[int, set[int]]] = []  # how many executions there had been, and what was done
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        with self.errors.open("ab") as errors:
            return subprocess.Popen(self.command, env=self.environment, stderr=errors, cwd=self.bucket.parent.parent)

    def marked(self) -> dict[int, str]:
        """All that the program has started and that lives."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and self.mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found

    def check(self) -> None:
        """What was reported done is in the bucket, now."""
        for number in set(numbers(self.done)) - self.checked:
            assert (self.bucket / "out" / f"{number % 7}" / f"part-{number}").read_text() == content(number)
            self.checked.add(number)

    def agents(self) -> list[int]:
        return [pid for pid in descendants(self.process.pid) if comm(pid) == "skyward-agent"]

    def servers(self) -> list[int]:
        return rclones(self.process.pid)

    def wait(self, count: int) -> None:
        """Wait until so many tasks were reported done, or all."""
        eventually(
            lambda: len(numbers(self.done)) >= count or self.process.poll() is not None, PATIENCE, "tasks are done"
        )

    def kill(self, victim: str, chance: random.Random) -> str:
        """Kill one of them; returns what came of it."""
        if victim == "store":
            self.server.stop()
            time.sleep(chance.uniform(0, 2))
            self.server.start()
        elif victim == "driver":
            self.process.kill()
            self.process.wait()
            self.check()
            eventually(lambda: not self.marked(), PATIENCE, "what the killed driver had started has ended")
            assert mounts.mounted_below(self.bucket.parent.parent) == []
            self.restarts.append((len(numbers(self.log)), set(numbers(self.done))))
            self.process = self.start()
        elif not (pids := self.agents() if victim == "agent" else self.servers()):
            return "nobody"
        else:
            os.kill(chance.choice(sorted(pids)), signal.SIGKILL)
        return victim


@pytest.mark.timeout(900 if MANY else 240)
def test_nothing_is_lost_that_was_reported_done(tmp_path: Path) -> None:
    for folder in ("in", "out"):
        (tmp_path / "served" / "bucket" / folder).mkdir(parents=True)
    (tmp_path / "served" / "bucket" / "in" / "file").write_text("123")
    chance = random.Random(13)
    killed: Counter[str] = Counter()
    with rclone_s3(tmp_path / "served") as server:
        run = Run(tmp_path, server)
        try:
            while killed.total() - killed["nobody"] < KILLS and run.process.poll() is None:
                before = len(numbers(run.done))
                run.wait(before + chance.randrange(1, 30))
                time.sleep(chance.uniform(0, 0.2))
                killed[run.kill(chance.choice(["store", "driver", "agent", "rclone", "rclone"]), chance)] += 1
                run.check()
            assert run.process.wait(PATIENCE * 3) == 0, run.errors.read_text()[-3000:]
        finally:
            run.process.kill()
            run.process.wait()
        run.check()
    executed = numbers(run.log)
    for count, done in run.restarts:
        assert done.isdisjoint(executed[count:]), "what was done was computed again"
    assert sorted(set(numbers(run.done))) == list(range(TASKS))
    eventually(lambda: not run.marked(), PATIENCE, "everything has ended")
    assert mounts.mounted_below(tmp_path) == []
    assert killed.total() - killed["nobody"] >= KILLS, killed
    print(f"\n{dict(killed)}, {len(run.restarts) + 1} runs, {TASKS} tasks, {len(executed)} executions")


# --- on hosts ---

LOG = "/var/tmp/kills"
ON_HOSTS = """
import json, os, sys
import skyward as sky

def write(number, log):
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, b"%d\\n" % number)
    os.close(fd)
    with open(f"out/part-{number}", "w") as file:
        file.write(f"{number}" * (1 + number % 3 * 100_000))
    return number

if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    volume = sky.S3Volume("out", "bucket", "out", read_only=False, **settings["store"])
    where = {"provider": sky.SSH(**settings["provider"]), "image": sky.Image(index=settings["index"])}
    worker = sky.Worker(concurrency=2, attempts=1000)
    options = {"volume": volume, "resume": "search.run", "worker": worker, "orphan_timeout": 5}
    with sky.Compute(nodes=2, **where, **options, console=False) as pool:
        for number in pool.map(write, range(settings["count"]), [settings["log"]] * settings["count"]):
            os.write(1, b"%d\\n" % number)
"""


def of_skyward(host: Host) -> dict[int, str]:
    return {pid: line for pid, line in host.pids() if "rclone" in line or "skyward" in line}


def strike(victim: str, server: S3Server, host: Host, chance: random.Random) -> None:
    if victim == "store":
        server.stop()
        time.sleep(chance.uniform(0, 2))
        server.start()
    elif pids := of_skyward(host) if victim == "host" else [pid for pid, line in host.pids() if " rcd " in line]:
        host.run("kill", "-9", *map(str, pids))


@pytest.mark.lab
@pytest.mark.skipif(not MANY, reason="takes minutes; SKYWARD_KILLS=30 runs it")
@pytest.mark.timeout(900)
def test_nothing_is_lost_on_hosts(tmp_path: Path, lab: Lab, lab_hosts: LabHosts, index: str) -> None:
    """Kills over SSH: of all that a pool runs on a host, of rclone there, of the driver and the store."""
    hosts, out = lab_hosts(2), tmp_path / "served" / "bucket" / "out"
    out.mkdir(parents=True)
    (tmp_path / "program.py").write_text(ON_HOSTS)
    chance, killed, done, runs = random.Random(13), Counter[str](), set[int](), 0
    known = {"key": str(lab.key), "known_hosts": str(lab.known_hosts)}
    with rclone_s3(tmp_path / "served", lab.gateway) as server:
        settings = {
            "provider": {"hosts": [host.address for host in hosts], "user": "root", **known},
            "store": {"endpoint": server.url, **KEYS},
            "index": index,
            "log": LOG,
            "count": TASKS // 2,
        }
        command = [sys.executable, "program.py", json.dumps(settings)]
        while len(done) < TASKS // 2:
            before = Counter(executed_on(hosts))
            with subprocess.Popen(
                command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
            ) as process:
                assert process.stdout is not None
                earlier, runs, at = set(done), runs + 1, chance.randrange(1, 40)
                for count, line in enumerate(process.stdout):
                    number = int(line)
                    done.add(number)
                    assert (out / f"part-{number}").read_text() == content(number)
                    if count < len(earlier) + at or killed.total() >= KILLS:
                        continue
                    at += chance.randrange(10, 40)
                    victim = chance.choice(["store", "driver", "host", "rclone", "rclone"])
                    killed[victim] += 1
                    if victim == "driver":
                        process.kill()
                        break
                    strike(victim, server, chance.choice(hosts), chance)
            for host in hosts:
                deadline = time.monotonic() + PATIENCE
                while left := of_skyward(host):
                    assert time.monotonic() < deadline, left
                    time.sleep(0.1)
                assert "rclone" not in host.run("cat", "/proc/mounts").stdout
            again = Counter(executed_on(hosts)) - before
            assert earlier.isdisjoint(again), "what was done was computed again"
    executions = executed_on(hosts)
    assert done == set(range(TASKS // 2))
    print(f"\n{dict(killed)}, {runs} runs, {len(done)} tasks, {len(executions)} executions")


def executed_on(hosts: Sequence[Host]) -> list[int]:
    """What has begun, the hosts' logs one after the other."""
    lines = [host.run("sh", "-c", f"cat {LOG} 2>/dev/null").stdout.split() for host in hosts]
    return [int(line) for found in lines for line in found]
