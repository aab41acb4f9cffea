"""Pools whose results outlive the program, on this machine: nothing that was handed over is computed twice."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import skyward as sky
from skyward.core.events import Note
from skyward.core.packages.installed import Distribution
from skyward.core.resume.resuming import ResumingDispatcher, missing_here
from tests.core.resume import names


class Counted:
    """A call that leaves a line in a file for each time it is run, in whatever process."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "ran"
        self.file.touch()

    @property
    def ran(self) -> list[str]:
        return self.file.read_text().split()


@pytest.fixture
def counted(tmp_path: Path) -> Iterator[Counted]:
    os.environ["RESUME_COUNTED"] = str(tmp_path / "ran")  # not an argument, which would be a part of the identity
    yield Counted(tmp_path)
    del os.environ["RESUME_COUNTED"]


def count(what: object) -> None:
    with Path(os.environ["RESUME_COUNTED"]).open("a", encoding="utf-8") as opened:
        opened.write(f"{what}\n")


def double(x: Any) -> Any:
    count("double")
    return 2 * x


def draw() -> float:
    count("draw")
    return random.random()


def fail_once(x: int) -> int:
    """Fail for 3 unless a file says that it may succeed."""
    count(x)
    if x == 3 and not Path(os.environ["RESUME_COUNTED"] + "-fixed").exists():
        raise ValueError(x)
    return x


def open_pool(tmp_path: Path, **settings: Any) -> sky.Compute:
    pool = sky.Compute(concurrency=2, resume=tmp_path / "search.run", console=False, **settings)
    notes: list[str] = []
    pool.events.subscribe(lambda event: notes.append(event.text) if isinstance(event, Note) else None)
    pool.notes = notes  # type: ignore[attr-defined]
    return pool


@pytest.mark.slow
def test_every_way_to_submit_takes_what_is_there(tmp_path: Path, counted: Counted) -> None:
    """One by one, as a map, in chunks, and with the operators; and it does not matter which way it was computed."""
    call = sky.compute(double)
    results = []
    for _ in range(2):
        with open_pool(tmp_path) as pool:
            results.append(
                [
                    pool.submit(double, 1).result(),
                    list(pool.map(double, range(2, 6))),
                    list(pool.map(double, range(6, 13), chunksize=3)),
                    call(13) >> pool,
                    (call(14) & call(15)) >> pool,
                    (call(16) > pool).result(),
                ]
            )
            assert isinstance(pool.dispatcher, ResumingDispatcher)
    assert results[0] == results[1] == [2, [4, 6, 8, 10], [12, 14, 16, 18, 20, 22, 24], 26, [28, 30], 32]
    assert len(counted.ran) == 16
    with open_pool(tmp_path) as pool:
        assert list(pool.map(double, range(1, 20), chunksize=4)) == list(range(2, 40, 2))
    assert len(counted.ran) == 19
    assert names(tmp_path) == ["ran", "search.run"]


class Scale:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    def times(self, x: int) -> int:
        count("times")
        return self.factor * x


@pytest.mark.slow
def test_methods_are_taken_also_where_joblib_is_loaded(tmp_path: Path, counted: Counted) -> None:
    """joblib's caches have methods of their own, whose results are kept elsewhere."""
    for _ in range(2):
        with open_pool(tmp_path, plugins=[sky.plugins.joblib()]) as pool:
            assert pool.submit(Scale(3).times, 5).result() == 15
    assert counted.ran == ["times"]


@pytest.mark.slow
def test_each_node_runs_what_is_meant_for_each_node(tmp_path: Path, counted: Counted) -> None:
    """It may prepare the node."""
    for _ in range(2):
        with open_pool(tmp_path, nodes=2) as pool:
            assert sky.compute(double)(1) @ pool == [2, 2]
    assert len(counted.ran) == 4


@pytest.mark.slow
def test_draws_are_the_same_bit_for_bit(tmp_path: Path, counted: Counted) -> None:
    results = []
    for count in (20, 30):
        with open_pool(tmp_path) as pool:
            futures = [pool.submit(draw) for _ in range(count)]
            results.append([future.result() for future in futures])
    assert results[0] == results[1][:20]
    assert len(set(results[1])) == 30
    assert len(counted.ran) == 30


@pytest.mark.slow
def test_what_has_failed_is_run_again(tmp_path: Path, counted: Counted) -> None:
    with open_pool(tmp_path) as pool:
        futures = [pool.submit(fail_once, n) for n in range(6)]
        assert [future.exception() is None for future in futures] == [n != 3 for n in range(6)]
    (tmp_path / "ran-fixed").touch()
    with open_pool(tmp_path) as pool:
        assert list(pool.map(fail_once, range(6))) == [0, 1, 2, 3, 4, 5]
    assert sorted(counted.ran) == ["0", "1", "2", "3", "3", "4", "5"]


def arrays(n: int) -> dict[str, Any]:
    count(n)
    return {"small": np.arange(n), "large": np.full((200, 1000), n), "f": np.asfortranarray(np.ones((3, 4)) * n)}


@pytest.mark.slow
def test_results_are_as_they_were(tmp_path: Path, counted: Counted) -> None:
    """Large ones too, and they can be written to."""
    for _ in range(2):
        with open_pool(tmp_path) as pool:
            for n, result in enumerate(pool.map(arrays, range(3))):
                expected = {"small": np.arange(n), "large": np.full((200, 1000), n), "f": np.ones((3, 4)) * n}
                for name, value in expected.items():
                    np.testing.assert_array_equal(result[name], value)
                    assert (result[name].dtype, result[name].flags.writeable) == (value.dtype, True)
                assert result["f"].flags.f_contiguous
                result["large"] += 1
    assert len(counted.ran) == 3
    assert len(names(tmp_path / "search.run-files")) == 3


@pytest.mark.slow
def test_callbacks_and_cancelling_are_as_usual(tmp_path: Path, counted: Counted) -> None:
    """Futures of known results are completed in the pool's own threads."""
    with open_pool(tmp_path) as pool:
        list(pool.map(double, range(5)))
    with open_pool(tmp_path) as pool:
        told: list[tuple[int, str]] = []
        futures = [pool.submit(double, n) for n in range(5)]
        ended = threading.Semaphore(0)

        def done(future: Any) -> None:
            told.append((future.result(), threading.current_thread().name))
            ended.release()

        for future in futures:
            future.add_done_callback(done)
        for _ in futures:
            assert ended.acquire(timeout=30)
        assert sorted(result for result, _ in told) == [0, 2, 4, 6, 8]
        assert [future.result() for future in futures] == [0, 2, 4, 6, 8]
        assert not futures[0].cancel()
        assert futures[0].seconds is not None
    assert len(counted.ran) == 5


class Waiting:
    """Waits for another task's result when it is pickled."""

    def __init__(self, future: Any) -> None:
        self.future = future

    def __reduce__(self) -> Any:
        return int, (self.future.result(30),)


@pytest.mark.slow
def test_an_argument_may_wait_for_another_result(tmp_path: Path, counted: Counted) -> None:
    """While it is identified, results go on being handed over."""
    with open_pool(tmp_path) as pool:
        assert pool.submit(double, Waiting(pool.submit(double, 4))).result(20) == 16


@pytest.mark.slow
def test_a_pool_that_reads_data_only_reads_the_file_as_data(tmp_path: Path, counted: Counted) -> None:
    """What an earlier run has stored that was less careful is computed anew, and refused again."""
    with open_pool(tmp_path) as pool:
        assert isinstance(pool.submit(_odd, 1).result(), Odd)
        assert pool.submit(double, 1).result() == 2
    with open_pool(tmp_path, results="data") as pool:
        with pytest.raises(sky.PayloadError, match="Results are read as data here"):
            pool.submit(_odd, 1).result()
        assert pool.submit(double, 1).result() == 2
        assert any("stored results of _odd are recomputed: the result of a stored call" in n for n in pool.notes)  # type: ignore[attr-defined]
    assert sorted(counted.ran) == ["double", "odd", "odd"]
    with open_pool(tmp_path, results="data") as pool:
        assert list(pool.map(arrays, range(2)))[1]["large"][0, 0] == 1
    with open_pool(tmp_path, results="data") as pool:
        assert list(pool.map(arrays, range(2)))[1]["large"][0, 0] == 1
    assert len(counted.ran) == 5


class Odd:
    pass


def _odd(_: int) -> Odd:
    count("odd")
    return Odd()


@pytest.mark.slow
def test_a_file_in_use_starts_nothing(tmp_path: Path) -> None:
    with open_pool(tmp_path) as pool:
        with pytest.raises(sky.ResumeFileError, match="is in use by another pool of this program"):
            open_pool(tmp_path).start()
        assert pool.submit(abs, -1).result() == 1
    assert names(tmp_path) == ["search.run"]


@pytest.mark.parametrize(
    ("path", "why"),
    [
        (3, "is not the path of a file"),
        ("", "is not the path of a file"),
        ("a\0b", "is not the path of a file"),
        ("/", "is a folder"),
        ("/no such folder/x.run", "there is no folder /no such folder"),
    ],
)
def test_what_is_no_path_is_refused_at_once(path: Any, why: str) -> None:
    with pytest.raises(sky.ConfigError, match=why):
        sky.Compute(resume=path)


@pytest.mark.slow
def test_a_pool_without_a_file_knows_nothing_of_sqlite() -> None:
    text = """
        import sys
        import skyward as sky
        with sky.Compute(console=False) as pool:
            assert pool.submit(abs, -1).result() == 1
        print([name for name in ("sqlite3", "skyward.core.resume.store") if name in sys.modules])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(text)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- the end of the driver ---

SEARCH = """
import os, sys, time
import skyward as sky

def work(n):
    time.sleep(0.004)
    with open("ran", "a") as opened:
        opened.write(f"{n}\\n")
    return n * n, bytes(n * 1000), os.urandom(8)

with sky.Compute(concurrency=2, resume="search.run", console=False, orphan_timeout=5) as pool:
    futures = [pool.submit(work, n) for n in range(150)]
    for n, future in enumerate(futures):
        assert future.result()[:2] == (n * n, bytes(n * 1000))
        os.write(1, b"%d %s\\n" % (n, future.result()[2].hex().encode()))
"""


@pytest.mark.slow
def test_nothing_that_was_handed_over_is_computed_again(tmp_path: Path) -> None:
    """The driver ends at random moments; what it had handed over is the same, bit for bit, and has run once."""
    (tmp_path / "search.py").write_text(SEARCH)
    chance = random.Random(3)
    handed: dict[str, str] = {}
    before: dict[str, int] = {}
    for turn in range(30):
        with subprocess.Popen(
            [sys.executable, "search.py"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        ) as process:
            assert process.stdout is not None
            for _ in range(len(handed) + chance.randrange(1, 25)):
                if not (line := process.stdout.readline()):
                    break
                n, drawn = line.split()
                assert handed.setdefault(n, drawn) == drawn
            process.send_signal((signal.SIGKILL, signal.SIGINT, signal.SIGTERM)[turn % 3])
            for line in process.stdout.read().splitlines(keepends=True):
                if line.endswith("\n"):
                    n, drawn = line.split()
                    assert handed.setdefault(n, drawn) == drawn
        ran = (tmp_path / "ran").read_text().split()
        for n, times in before.items():
            assert ran.count(n) == times, f"{n} has run again in turn {turn}"
        # Slots may write down what they were doing for a moment more, but not of what was handed over.
        before = {n: ran.count(n) for n in handed}
        if len(handed) == 150:
            break
    assert len(handed) == 150
    assert sqlite3.connect(tmp_path / "search.run").execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_packages_that_only_nodes_have_are_known_by_what_asks_for_them() -> None:
    """This program's own count by their versions; of the others only the requirement can be known."""
    here = {"numpy": Distribution("numpy", "2.1.0"), "scikit-learn": Distribution("scikit-learn", "1.5.2")}
    asked = ["numpy==1.26.4", "polars", "x @ https://host/x.whl", "numpy @ https://host/n.whl"]
    assert missing_here(["numpy", "scikit_learn>=1.4", *asked], here) == [
        "numpy @ https://host/n.whl",
        "numpy==1.26.4",
        "polars",
        "x @ https://host/x.whl",
    ]
    assert missing_here(["numpy==2.1.0 --hash=sha256:00"], here) == []
