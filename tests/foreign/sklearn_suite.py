"""scikit-learn's own tests, of the installed version, with n_jobs=-1 wherever it calls `Parallel`.

Only modules that test what calls it. The backend is a configured one, so `prefer` does not change it, here and on loky.
"""

from __future__ import annotations

import os
from typing import Any

import joblib
import pytest

from skyward.joblib_ext.slot_backend import NAME
from tests.foreign import pool
from tests.foreign.runner import Suite, select

MODULES = {
    "cluster": ("mean_shift",),
    "compose": ("column_transformer",),
    "covariance": ("graphical_lasso",),
    "decomposition": ("dict_learning", "online_lda", "sparse_pca"),
    "ensemble": ("bagging", "forest", "iforest", "stacking", "voting"),
    "feature_selection": ("mutual_info", "rfe", "sequential"),
    "inspection": ("partial_dependence", "permutation_importance"),
    "linear_model": ("base", "coordinate_descent", "least_angle", "logistic", "omp", "sgd", "theil_sen"),
    "manifold": ("mds",),
    "metrics": ("pairwise",),
    "model_selection": ("classification_threshold", "plot", "search", "successive_halving", "validation"),
    "neighbors": ("neighbors",),
    "": ("calibration", "multiclass", "multioutput", "pipeline"),
}

FAILS: dict[str, str] = {}

BRIEF = {"ensemble": ("voting",), "inspection": ("permutation_importance",)}


def suite() -> Suite:
    return Suite("tests.foreign.sklearn_suite", _tests(MODULES), FAILS, brief=_tests(BRIEF), least=40, peer="loky")


def _tests(modules: dict[str, tuple[str, ...]]) -> list[str]:
    found = [
        ".".join(filter(None, ("sklearn", package, "tests", f"test_{name}")))
        for package, names in modules.items()
        for name in names
    ]
    return ["--noconftest", "-p", "sklearn.conftest", "--pyargs", *found]


# --- the plugin ---


def pytest_configure(config: pytest.Config) -> None:
    backend = os.environ["FOREIGN_BACKEND"]
    if backend == NAME:
        opened = pool.make().start()
        config.add_cleanup(lambda: opened.close(cancel=True))
    context = joblib.parallel_config(backend=backend, n_jobs=-1)
    config.add_cleanup(context.unregister)
    theirs = joblib.Parallel.__init__

    def all_jobs(self: joblib.Parallel, n_jobs: object = None, *args: Any, **options: Any) -> None:
        theirs(self, -1, *args, **options)

    joblib.Parallel.__init__ = all_jobs


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    select(config, items, lambda _: True)
