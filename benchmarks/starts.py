"""How long a project takes to reach hosts of the lab: ``python -m benchmarks.starts [PART ...]``, as root.

The parts are ``fresh`` (a host that has a Python and nothing else, from the login to the first result of scikit-learn;
then the second start there, and one that needs a part of that environment), ``edits`` (a call after an edit of its
module), ``modules`` (a start with 200 small modules) and ``volume`` (a folder of a gigabyte to three hosts, beside
rsync to one of them). Each run is a program of its own. The hosts are on this machine and share its cores with the
driver.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.hosts import REPOSITORY, Hosts, index
from tests.lab import Host, Lab

__all__ = ["main"]

_PARTS = ("fresh", "edits", "modules", "volume")
_MODULES = 200
_EDITS = 20
_FILE = 64 << 20  # bytes

# Seconds from where the block begins until there is a result, which is most of what a program waits for.
_HEAD = """
import json, os, sys, time
import skyward as sky

hosts, index, options = json.loads(sys.argv[1])
def compute():
    provider = sky.SSH(user="root", **hosts)
    volume = [sky.LocalVolume("data", options["volume"])] if options.get("volume") else []
    image = sky.Image(index=index)
    return sky.Compute(provider, nodes=len(hosts["hosts"]), concurrency=2, image=image, volume=volume, console=False)
"""
_FRESH = """
import numpy as np
from sklearn.linear_model import LogisticRegression
def fit(seed):
    table = np.random.default_rng(seed).normal(size=(200, 4))
    return LogisticRegression().fit(table, table[:, 0] > 0).coef_.tolist()
began = time.perf_counter()
with compute() as pool:
    pool.submit(fit, 0).result()
    print(json.dumps(time.perf_counter() - began))
"""
_OTHER = """
from scipy.linalg import norm
began = time.perf_counter()
with compute() as pool:
    pool.submit(norm, [3.0, 4.0]).result()
    print(json.dumps(time.perf_counter() - began))
"""
_EDITED = """
import helpers
found = []
with compute() as pool:
    for edit in range(2 * options["edits"]):
        if edit % 2:
            with open("helpers.new", "w") as file:
                file.write(f"def value(): return {edit}  # {os.urandom(8).hex()}")
            os.replace("helpers.new", "helpers.py")
        began = time.perf_counter()
        value = pool.submit(helpers.value).result()
        found.append(time.perf_counter() - began)
        assert edit % 2 == 0 or value == edit
print(json.dumps([found[0::2], found[1::2]]))
"""
_MANY = """
import importlib
names = [f"small_{number:03}" for number in range(options["modules"])]
for name in names:
    importlib.import_module(name)
def total():
    return sum(importlib.import_module(name).value(1) for name in names)
began = time.perf_counter()
with compute() as pool:
    assert pool.submit(total).result() == sum(range(len(names)))
    print(json.dumps(time.perf_counter() - began))
"""
_MOUNTED = """
def size():
    return sum(os.path.getsize(os.path.join("data", name)) for name in os.listdir("data"))
began = time.perf_counter()
with compute() as pool:
    sizes = [pool.submit(size).result() for _ in hosts["hosts"]]
    print(json.dumps([time.perf_counter() - began, sizes]))
"""


class _Bench:
    """The lab, an index, and a folder for programs."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.folder = folder
        self.index = lab.serve_index(index())

    def run(self, program: str, hosts: Sequence[Host], **options: Any) -> Any:
        """Run a program with a pool on hosts; returns what it prints."""
        folder = self.folder / "program"
        folder.mkdir(exist_ok=True)
        (folder / "script.py").write_text(_HEAD + program)
        given = {"hosts": [host.address for host in hosts], "key": str(self.lab.key)}
        given["known_hosts"] = str(self.lab.known_hosts)
        command = [sys.executable, "script.py", json.dumps([given, self.index, options])]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    def sent(self) -> int:
        """Bytes that this machine has sent to hosts so far."""
        return int(Path(f"/sys/class/net/{self.lab.net.bridge}/statistics/tx_bytes").read_text())

    def fresh(self, runs: int) -> None:
        """Starts with an environment to build, with one that is there, and with one to build of what the host has."""
        found: dict[str, list[float]] = {"fresh": [], "second": [], "another environment": []}
        for _ in range(runs):
            hosts = self.lab.up(1)
            found["fresh"].append(self.run(_FRESH, hosts))
            found["second"].append(self.run(_FRESH, hosts))
            found["another environment"].append(self.run(_OTHER, hosts))
            self.lab.remove(hosts[0])
        for name, seconds in found.items():
            print(f"{name}: {_range(seconds)} s from the login to the first result")

    def edits(self, runs: int) -> None:
        """What an edit adds to a call."""
        hosts = self.lab.up(1)
        (self.folder / "program").mkdir(exist_ok=True)
        (self.folder / "program/helpers.py").write_text("def value(): return 0")
        plain, edited = [], []
        for _ in range(runs):
            without, after = self.run(_EDITED, hosts, edits=_EDITS)
            plain += without[1:]
            edited += after
        print(f"a call: {_range(plain, 1e3)} ms; after an edit of its module: {_range(edited, 1e3)} ms")

    def modules(self, runs: int) -> None:
        """Starts with many modules, and with none."""
        hosts = self.lab.up(1)
        self.run(_MANY, hosts, modules=0)
        for number in range(_MODULES):
            text = f"# {'x' * 1000}\ndef value(x):\n    return x * {number}\n"
            (self.folder / f"program/small_{number:03}.py").write_text(text)
        for count in (0, _MODULES):
            before = self.sent()
            found = [self.run(_MANY, hosts, modules=count) for _ in range(runs)]
            print(f"{count} modules of 1 kB: {_range(found)} s, {(self.sent() - before) / runs / 1e3:,.0f} kB sent")

    def volume(self, gigabytes: float) -> None:
        """A folder to three hosts, again, and by rsync to one."""
        data = self.folder / "data"
        data.mkdir()
        files = max(1, round(gigabytes * 1e9 / _FILE))
        for number in range(files):
            (data / f"{number:03}.bin").write_bytes(os.urandom(_FILE))
        size, hosts = files * _FILE, self.lab.up(3)
        self.run(_MANY, hosts, modules=0)
        for name in ("first", "second"):
            before = self.sent()
            seconds, sizes = self.run(_MOUNTED, hosts, volume=str(data))
            assert sizes == [size] * len(hosts), sizes
            sent = self.sent() - before
            print(f"{size / 1e9:.2f} GB to three hosts, {name} start: {seconds:.1f} s, {sent / size:.3f} copies sent")
        self._rsync(data, size)

    def _rsync(self, data: Path, size: int) -> None:
        (host,) = self.lab.up(1)
        ssh = " ".join(Hosts(self.lab, [host]).ssh(host)[:-1])
        began, before = time.perf_counter(), self.sent()
        subprocess.run(["rsync", "-a", "-e", ssh, str(data), f"root@{host.address}:/tmp"], check=True)
        seconds = time.perf_counter() - began
        print(f"rsync to one host: {seconds:.1f} s, {(self.sent() - before) / size:.3f} copies sent")


def _range(found: Sequence[float], unit: float = 1.0) -> str:
    """The median and the extremes."""
    low, middle, high = (unit * pick(found) for pick in (min, statistics.median, max))
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def main() -> None:
    """Print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", help="which parts to run; all if none is named")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    options = parser.parse_args()
    parts = options.part or _PARTS
    if not set(parts) <= set(_PARTS):
        parser.error(f"the parts are {', '.join(_PARTS)}")
    if "volume" in parts and shutil.which("rsync") is None:
        parser.error("the part volume compares with rsync, which is not installed")
    with tempfile.TemporaryDirectory() as folder, Lab() as lab:
        bench = _Bench(lab, Path(folder))
        for part in parts:
            getattr(bench, part)(options.gigabytes if part == "volume" else options.runs)


if __name__ == "__main__":
    main()
