"""scikit-learn's parameter search: few large arrays, many cheap fits."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from benchmarks.model import Figures, Size, Stage, Workload

__all__ = ["WORKLOADS"]

_COLUMNS, _FOLDS = 100, 3
_GRID = {"var_smoothing": list(np.logspace(-9, -2, 8))}


def gridsearch_big(stage: Stage, run: int, mb: int) -> Figures:
    """24 fits of a model that costs little, on data that are large."""
    x, y, wanted = _sequential(mb)
    x[0, 0] = 0.5 + run * 1e-12  # no score changes, but no peer has seen these bytes in an earlier run
    with stage.timed() as lap:
        search = _search(stage.n_jobs).fit(x, y)
    if not np.array_equal(search.cv_results_["mean_test_score"], wanted):
        raise AssertionError("the search's scores are not those of a sequential run")
    return {"bit_equal": 1.0, **lap.costs(len(_GRID["var_smoothing"]) * _FOLDS)}


def _search(n_jobs: int | None) -> Any:
    # Here, so that drivers that fit nothing are not larger by it, and start sooner.
    from sklearn.model_selection import GridSearchCV  # noqa: PLC0415
    from sklearn.naive_bayes import GaussianNB  # noqa: PLC0415

    return GridSearchCV(GaussianNB(), _GRID, cv=_FOLDS, n_jobs=n_jobs, refit=False)


@functools.cache
def _sequential(mb: int) -> tuple[Any, Any, Any]:
    """Data, and the scores that a search without workers finds; once in a process, since it takes a while."""
    random = np.random.default_rng(0)
    x = random.random((mb * 125_000 // _COLUMNS, _COLUMNS))
    x[0, 0] = 0.5
    y = (x[:, :5].sum(axis=1) + random.normal(0, 0.5, len(x)) > 2.5).astype(int)
    return x, y, _search(1).fit(x, y).cv_results_["mean_test_score"]


WORKLOADS = (
    Workload(
        "gridsearch_big",
        "GridSearchCV, X of 80 MB, 24 cheap fits",
        "wall_s",
        gridsearch_big,
        {"smoke": Size(given={"mb": 4}), "usual": Size(given={"mb": 80}), "full": Size(given={"mb": 80})},
        higher=False,
        packages=("scikit-learn",),
    ),
)
