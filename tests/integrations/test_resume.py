"""joblib and scikit-learn with a file that keeps results: what is there is not computed again, whatever the batches."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from joblib import Memory, Parallel, delayed, parallel_config

import skyward as sky
from skyward.core.events import Note
from skyward.core.resume.listing import overview
from tests.integrations.resumed import draw, fill, get_value, set_value, square
from tests.lazily import Lazy

sk = Lazy("tests.integrations.counting")

pytestmark = pytest.mark.slow


@pytest.fixture
def ran(tmp_path: Path) -> Iterator[Path]:
    """A line for each call that was run; where is no argument, which would be a part of the identity."""
    os.environ["RESUME_COUNTED"] = str(tmp_path / "ran")
    (tmp_path / "ran").touch()
    yield tmp_path / "ran"
    del os.environ["RESUME_COUNTED"]


def open_pool(tmp_path: Path, plugin: Any = sky.plugins.joblib) -> sky.Compute:
    return sky.Compute(concurrency=2, plugins=[plugin()], resume=tmp_path / "search.run", console=False)


def test_other_batches_take_what_is_there(tmp_path: Path, ran: Path) -> None:
    """Also a batch of which only a part is there."""
    with open_pool(tmp_path):
        assert Parallel(n_jobs=-1, batch_size=3)(delayed(square)(n) for n in range(10)) == [n * n for n in range(10)]
    assert len(ran.read_text().split()) == 10
    for size in (1, 4, "auto"):
        with open_pool(tmp_path):
            found = Parallel(n_jobs=-1, batch_size=size)(delayed(square)(n) for n in range(-1, 12))
        assert found == [n * n for n in range(-1, 12)]
    assert sorted(map(int, ran.read_text().split())) == list(range(-1, 12))


@pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
def test_draws_keep_their_order(tmp_path: Path, ran: Path, return_as: str) -> None:
    results = []
    for size in (1, 7):
        with open_pool(tmp_path):
            draws = Parallel(n_jobs=-1, batch_size=size, return_as=return_as)(delayed(draw)(0) for _ in range(40))
            results.append(list(draws))
    assert len(set(results[0])) == len(ran.read_text().split()) == 40
    if return_as == "generator_unordered":
        results = [sorted(each) for each in results]
    assert results[0] == results[1]


@pytest.mark.filterwarnings("ignore:.*tasks")  # were done in vain, as joblib says
def test_an_abandoned_call_does_not_shift_the_next(tmp_path: Path, ran: Path) -> None:
    """How far ahead it had run is chance."""
    results = []
    for ahead in (2, 20):
        with open_pool(tmp_path):
            first = Parallel(n_jobs=-1, batch_size=1, pre_dispatch=ahead, return_as="generator")(
                delayed(draw)(0) for _ in range(40)
            )
            taken = [next(first) for _ in range(2)]
            first.close()
            results.append((taken, Parallel(n_jobs=-1)(delayed(draw)(0) for _ in range(5))))
    assert results[0] == results[1]


def test_an_initializer_is_a_part_of_the_identity(tmp_path: Path, ran: Path) -> None:
    for value in (1, 1, 2):
        with open_pool(tmp_path), parallel_config(backend="skyward", initializer=set_value, initargs=(value,)):
            assert Parallel(n_jobs=-1)(delayed(get_value)() for _ in range(3)) == [value] * 3
    assert len(ran.read_text().split()) == 6


def test_what_is_written_into_a_map_is_written_again(tmp_path: Path, ran: Path) -> None:
    """joblib's documented way to write results to a file: a stored result would leave it empty."""
    for _ in range(2):
        output = np.memmap(tmp_path / "output", np.float64, "w+", shape=5)
        with open_pool(tmp_path) as pool:
            notes: list[str] = []
            pool.events.subscribe(lambda event, to=notes: to.append(event.text) if isinstance(event, Note) else None)
            Parallel(n_jobs=-1)(delayed(fill)(output, n) for n in range(5))
        assert output.tolist() == [0, 1, 2, 3, 4]
        assert any("a call of fill can't be identified, and is not stored: it can write" in note for note in notes)
    assert len(ran.read_text().split()) == 10


def test_cached_functions_stay_in_their_cache(tmp_path: Path, ran: Path) -> None:
    """`joblib.Memory` keeps them already; both work side by side."""
    results = []
    for _ in range(2):
        cached = Memory(tmp_path / "cache", verbose=0).cache(square)
        with open_pool(tmp_path) as pool:
            assert Parallel(n_jobs=-1)(delayed(cached)(n) for n in range(4)) == [0, 1, 4, 9]
            assert list(pool.map(cached, range(4))) == [0, 1, 4, 9]
            drawn = [*Parallel(n_jobs=-1)(delayed(draw)(n) for n in range(4)), *pool.map(draw, range(4))]
        results.append(drawn)
    assert results[0] == results[1]
    assert sorted(ran.read_text().split()) == ["0", "1", "2", "3", *["draw"] * 8]
    assert overview(str(tmp_path / "search.run")).results == 8


# --- scikit-learn ---


def test_a_search_is_not_fitted_again(tmp_path: Path, ran: Path) -> None:
    """A grid, the cross-validation of several estimators, and one that has no fixed random state."""
    results = []
    for _ in range(2):
        with open_pool(tmp_path, sky.plugins.sklearn):
            search = sk.GridSearchCV(sk.Counting(random_state=0), {"depth": [1, 2, 3]}, n_jobs=-1, cv=4, refit=False)
            search.fit(sk.X, sk.Y)
            scores = sk.cross_val_score(sk.Counting(), sk.X, sk.Y, n_jobs=-1, cv=5)
            results.append((search.cv_results_["mean_test_score"].tolist(), search.best_params_, scores.tolist()))
    assert results[0] == results[1]
    assert len(ran.read_text().split()) == 12 + 5
    with open_pool(tmp_path, sky.plugins.sklearn):
        search = sk.GridSearchCV(sk.Counting(random_state=0), {"depth": [1, 2, 3, 4]}, n_jobs=-1, cv=4, refit=False)
        search.fit(sk.X, sk.Y)
    assert len(ran.read_text().split()) == 12 + 5 + 4
    with open_pool(tmp_path, sky.plugins.sklearn):  # other data
        search.fit(sk.X[:50], sk.Y[:50])
    assert len(ran.read_text().split()) == 12 + 5 + 4 + 16


PROGRAM = """
    import numpy as np
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import RandomizedSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    import skyward as sky

    class Counting(RandomForestClassifier):
        def fit(self, X, y):
            with open("ran", "a") as opened:
                opened.write("fit\\n")
            return super().fit(X, y)

    X = np.random.default_rng(0).random((80, 3))
    y = (X[:, 0] > 0.5).astype(int)
    with sky.Compute(concurrency=2, plugins=[sky.plugins.sklearn()], resume="search.run"):
        search = RandomizedSearchCV(
            make_pipeline(StandardScaler(), Counting(n_estimators=3, random_state=0)),
            {"counting__max_depth": range(1, 9)}, n_iter=4, cv=3, n_jobs=-1, random_state=1, refit=False,
        ).fit(X, y)
        print(search.cv_results_["mean_test_score"].tolist(), search.best_params_)
"""


def test_a_programs_search_resumes_in_the_next_process(tmp_path: Path, ran: Path) -> None:
    """With a class of the program itself, and another seed of strings' hashes each time."""
    (tmp_path / "search.py").write_text(textwrap.dedent(PROGRAM))
    told = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "search.py"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        told.add(done.stdout)
        assert "took 0 results, stored 12" in done.stderr or "took 12 results, stored 0" in done.stderr
    assert len(told) == 1
    assert ran.read_text().split() == ["fit"] * 12
