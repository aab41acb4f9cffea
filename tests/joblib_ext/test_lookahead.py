"""A call uses the slots that there are, not those that there were when it began."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from joblib import Parallel, delayed, parallel_config
from joblib.parallel import ParallelBackendBase

import skyward as sky
from skyward.core.interfaces import Trait
from skyward.core.spec import Machine, Order
from skyward.joblib_ext.lookahead import sent_at_once
from tests.lab import eventually


class Counts(ParallelBackendBase):  # type: ignore[misc]
    """Counts the batches that joblib sends before it waits for anything."""

    supports_retrieve_callback = True

    def __init__(self) -> None:
        super().__init__(nesting_level=0)
        self.sent = 0

    def effective_n_jobs(self, n_jobs: int) -> int:
        return n_jobs

    def submit(self, func: Any, callback: Any = None) -> None:
        self.sent += 1

    apply_async = submit

    def compute_batch_size(self) -> int:
        return 1


EXPRESSIONS = ("2 * n_jobs", "n_jobs", "3*n_jobs + 1", "1.5*n_jobs", "n_jobs // 2", "all", 7)


def test_as_many_as_joblib_sends_when_a_call_begins() -> None:
    for pre_dispatch, batch_size, jobs in itertools.product(EXPRESSIONS, ("auto", 1, 2, 3, 10), (2, 5, 8)):
        backend = Counts()
        with parallel_config(backend=backend):
            call = Parallel(jobs, return_as="generator", pre_dispatch=pre_dispatch, batch_size=batch_size)
            results = call(delayed(abs)(number) for number in range(1000))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nobody takes the results
            results.close()
        follows = isinstance(pre_dispatch, str) and pre_dispatch != "all"
        assert sent_at_once(pre_dispatch, batch_size, jobs) == (backend.sent if follows else 0)


@dataclass(frozen=True, eq=False)
class Late(sky.Local):
    """Nodes of this machine, of which all but the first come when the gate is opened."""

    traits = sky.Local.traits - {Trait.BATCH}

    gate: threading.Event = field(default_factory=threading.Event)
    first: threading.Lock = field(default_factory=threading.Lock)

    def create(self, order: Order) -> Sequence[Machine]:
        if not self.first.acquire(blocking=False):
            self.gate.wait(30)
        return super().create(order)


@pytest.fixture
def late() -> Iterator[Late]:
    provider = Late()
    yield provider
    provider.gate.set()


def meet(folder: str, number: int, others: int) -> int:
    """Return when so many tasks have begun at the same time, or have not in half a minute; how many have."""
    Path(folder, str(number)).touch()
    end = time.monotonic() + 30
    while (begun := len(list(Path(folder).iterdir()))) < others and time.monotonic() < end:
        time.sleep(0.01)
    return begun


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "tasks_at_once"),
    [({}, 4), ({"batch_size": 1, "pre_dispatch": "n_jobs", "return_as": "generator"}, 4), ({"n_jobs": -2}, 3)],
)
def test_a_call_comes_to_use_nodes_that_join(
    options: dict[str, Any], tasks_at_once: int, late: Late, tmp_path: Path
) -> None:
    """joblib has two tasks out for the one slot that there was; four slots get theirs while the first ones run."""
    with sky.Compute(late, nodes=(1, 4), plugins=[sky.plugins.joblib()], console=False) as pool:
        opener = threading.Thread(target=lambda: (eventually(lambda: list(tmp_path.iterdir()), 20), late.gate.set()))
        opener.start()
        calls = (delayed(meet)(str(tmp_path), number, tasks_at_once) for number in range(8))
        begun = list(Parallel(**{"n_jobs": -1, **options})(calls))
        opener.join()
        assert pool.total_slots == 4
    assert min(begun) >= tasks_at_once


def count_jobs(parallel: Any) -> int:
    return int(parallel._cached_effective_n_jobs)


@pytest.mark.slow
def test_slots_that_are_lost_count_no_more(tmp_path: Path) -> None:
    """joblib cuts what is left of the iterator by the slots that there are."""
    with sky.Compute(nodes=2, concurrency=2, plugins=[sky.plugins.joblib()], console=False) as pool:
        parallel = Parallel(n_jobs=-1, return_as="generator", batch_size=1)
        results = parallel(delayed(meet)(str(tmp_path), number, 4) for number in range(40))
        assert next(results) >= 4
        assert count_jobs(parallel) == 4
        opened = pool._running()
        session = next(life for life in opened.provisioner._lives.values() if life.name == "node-2").session
        opened._io.post(lambda: session.abandon("the test wants it gone"))
        eventually(lambda: count_jobs(parallel) == 2)
        assert len(list(results)) == 39


@pytest.mark.slow
def test_a_parallel_that_was_patched_does_no_harm() -> None:
    """Progress bars do so, and hide its signature."""
    script = """if True:
        from joblib import parallel
        init = parallel.Parallel.__init__
        parallel.Parallel.__init__ = lambda self, *args, **kwargs: init(self, *args, **kwargs)
        import skyward.joblib_ext.call
    """
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
