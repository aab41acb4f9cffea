"""Users' programs, for the tests of a plain system: ``python programs.py NAME ARGUMENTS`` ends by saying "right"."""

from __future__ import annotations

import json
import multiprocessing.managers
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from joblib import Parallel, delayed

import skyward as sky


def system() -> tuple[str, bool]:
    return sys.platform, hasattr(os, "waitid")


def total(array: Any) -> float:
    return float(array.sum())


def where() -> tuple[int, int]:
    return os.getpid(), os.getppid()


def fill(array: Any, row: int) -> None:
    array[row] = row


def say(path: str) -> None:
    """Report the processes of a task that goes on for long, in a file."""
    child = subprocess.Popen(["sleep", "120"])
    Path(f"{path}.new").write_text(json.dumps([os.getpid(), os.getppid(), child.pid]))
    Path(f"{path}.new").rename(path)
    time.sleep(120)


def end_once(marker: str, how: int) -> int:
    """Kill this slot the first time."""
    if not Path(marker).exists():
        Path(marker).touch()
        subprocess.Popen(["sleep", "120"])
        os.kill(os.getpid(), how)
        time.sleep(60)
    return os.getpid()


def count(calls: Any, number: int) -> int:
    calls.append(number)
    return number


def squared(number: int) -> int:
    Path(f"calls-{number}-{time.monotonic_ns()}").touch()
    return number**2


def arrays() -> None:
    """Arrays of all sizes in and out, shared ones, and a file that tasks fill."""
    sizes = [1, 10, 100_000, 1_000_000, 5] * 4
    table = np.random.default_rng(0).random(2_000_000)
    filled = np.memmap("filled", mode="w+", shape=(6, 1000), dtype=float)
    with sky.Compute(nodes=2, concurrency=2, plugins=[sky.plugins.joblib()]):
        assert Parallel(n_jobs=-1)(delayed(system)() for _ in range(8)) == [("darwin", False)] * 8
        sums = Parallel(n_jobs=-1)(delayed(total)(np.ones(size)) for size in sizes)
        assert sums == [float(size) for size in sizes]
        products = Parallel(n_jobs=-1)(delayed(np.multiply)(table, factor) for factor in range(4))
        assert all((product == table * factor).all() for factor, product in enumerate(products))
        Parallel(n_jobs=-1)(delayed(fill)(filled, row) for row in range(6))
    assert (filled[:] == np.arange(6.0)[:, None]).all()


def search() -> None:
    """scikit-learn's search, the same as without a pool."""
    from sklearn.datasets import load_iris
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC

    x, y = load_iris(return_X_y=True)
    scores = []
    for n_jobs in (1, -1):
        grid = GridSearchCV(SVC(), {"C": [0.1, 1, 10], "gamma": [0.1, 1]}, n_jobs=n_jobs)
        with sky.Compute(concurrency=2, plugins=[sky.plugins.sklearn()]):
            scores.append(grid.fit(x, y).cv_results_["mean_test_score"])
    assert (scores[0] == scores[1]).all()


def deaths(how: str) -> None:
    """A slot is killed; its task runs again elsewhere, and its neighbours go on."""
    with sky.Compute(concurrency=2, console=False) as pool:
        first = {pool.submit(where).result()[0] for _ in range(8)}
        again = pool.submit(end_once, os.path.abspath("marker"), int(how))
        assert [pool.submit(abs, -number).result() for number in range(20)] == list(range(20))
        assert again.result() not in first


def limits() -> None:
    """What runs for too long, or is not wanted any more, ends."""
    with sky.Compute(concurrency=2, console=False) as pool:
        sleeper = pool.submit(time.sleep, 100)
        while not sleeper.running():
            time.sleep(0.01)
        pool.submit(abs, -1).result()
        sleeper.cancel()
        assert [pool.submit(abs, -number).result() for number in range(8)] == list(range(8))
    print("cancelled", flush=True)


def kept() -> None:
    """Results that are kept are not computed again: by joblib.Memory, and by resume=."""
    cached = joblib.Memory("cache", verbose=0).cache(squared)
    for _ in range(2):
        with sky.Compute(concurrency=2, plugins=[sky.plugins.joblib()], resume="kept.run"):
            assert Parallel(n_jobs=-1)(delayed(squared)(number) for number in range(10)) == [n**2 for n in range(10)]
            assert Parallel(n_jobs=-1)(delayed(cached)(number) for number in range(20, 25)) == [
                n**2 for n in range(20, 25)
            ]
    calls = len(list(Path.cwd().glob("calls-*")))
    assert calls == 15, calls


def managers() -> None:
    """A manager's objects are used by tasks."""
    with multiprocessing.managers.SyncManager() as manager:
        calls = manager.list()
        with sky.Compute(concurrency=2, plugins=[sky.plugins.joblib()]):
            Parallel(n_jobs=-1)(delayed(count)(calls, number) for number in range(10))
        assert sorted(calls) == list(range(10))


def hosts(options: str) -> None:
    """Nodes on real Linux hosts."""
    given = json.loads(options)
    with sky.Compute(
        provider=sky.SSH(**given["provider"]),
        nodes=len(given["provider"]["hosts"]),
        concurrency=2,
        image=sky.Image(index=given["index"]),
        plugins=[sky.plugins.joblib()],
        console=False,
    ):
        sizes = [1, 10, 100_000, 1_000_000, 5] * 2
        assert Parallel(n_jobs=-1)(delayed(total)(np.ones(size)) for size in sizes) == [float(size) for size in sizes]


def busy(path: str) -> None:
    """Tasks that run until somebody ends them."""
    with sky.Compute(nodes=2, concurrency=1, console=False) as pool:
        futures = [pool.submit(say, f"{path}/{number}") for number in range(2)]
        print("running", flush=True)
        for future in futures:
            future.exception()


PROGRAMS = (arrays, search, deaths, limits, kept, managers, hosts, busy)

if __name__ == "__main__":
    assert sys.platform == "darwin"
    assert not Path("/proc/self").exists()
    assert not hasattr(os, "waitid")
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(200)
    {program.__name__: program for program in PROGRAMS}[sys.argv[1]](*sys.argv[2:])
    print("right")
