"""scikit-learn on a pool gives the scores that it gives without, also where results are read as data."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Iterator

import joblib
import pytest

import skyward as sky
from skyward.joblib_ext.backend import SkywardBackend
from tests.lab import eventually
from tests.lazily import Lazy

numpy = pytest.importorskip("numpy")
sk = Lazy("tests.estimators")


@pytest.fixture(scope="module")
def pool() -> Iterator[sky.Compute]:
    with sky.Compute(nodes=2, concurrency=2, plugins=[sky.plugins.sklearn()], results="data", console=False) as opened:
        yield opened


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("pool")]  # driver and nodes import scikit-learn


@pytest.fixture(scope="module")
def digits():
    X, y = sk.load_digits(return_X_y=True)
    return X[:400], y[:400]


@pytest.fixture(scope="module")
def cancer():
    X, y = sk.load_breast_cancer(return_X_y=True)
    return X[:300, :8], y[:300]


def both(compute):
    """What it gives with all slots of the pool, and in a plain loop."""
    return compute(-1), compute(1)


@pytest.fixture
def batches(monkeypatch):
    """How many batches went to the pool."""
    counted = []
    submit = SkywardBackend.submit

    def count(self, func, callback=None):
        counted.append(len(func))
        return submit(self, func, callback)

    monkeypatch.setattr(SkywardBackend, "submit", count)
    return counted


def same_search(search):
    ours, plain = both(search)
    assert ours.best_params_ == plain.best_params_
    assert ours.best_score_ == plain.best_score_
    for key in plain.cv_results_:
        if "time" not in key and "params" not in key:
            numpy.testing.assert_array_equal(ours.cv_results_[key], plain.cv_results_[key])


@pytest.mark.slow
def test_grid_search_of_svc(digits, batches):
    grid = {"C": [0.1, 1, 10], "gamma": ["scale", 0.01]}
    same_search(lambda n_jobs: sk.GridSearchCV(sk.SVC(), grid, cv=3, n_jobs=n_jobs).fit(*digits))
    assert sum(batches) == 18


@pytest.mark.slow
def test_grid_search_of_forests(digits):
    grid = {"n_estimators": [5, 10], "max_depth": [3, None]}
    same_search(
        lambda n_jobs: sk.GridSearchCV(sk.RandomForestClassifier(random_state=0), grid, cv=3, n_jobs=n_jobs).fit(
            *digits
        )
    )


def test_randomized_search(digits):
    space = {"C": [0.01, 0.1, 1, 10], "gamma": [0.001, 0.01, 0.1]}
    same_search(
        lambda n_jobs: sk.RandomizedSearchCV(sk.SVC(), space, n_iter=4, cv=3, n_jobs=n_jobs, random_state=1).fit(
            *digits
        )
    )


def test_cross_val_score(cancer):
    ours, plain = both(
        lambda n_jobs: sk.cross_val_score(
            sk.GradientBoostingClassifier(n_estimators=10, random_state=0), *cancer, cv=5, n_jobs=n_jobs
        )
    )
    numpy.testing.assert_array_equal(ours, plain)


def test_cross_validate_with_four_metrics(cancer):
    scoring = ["accuracy", "precision", "recall", "f1"]
    ours, plain = both(
        lambda n_jobs: sk.cross_validate(
            sk.RandomForestClassifier(n_estimators=10, random_state=0), *cancer, cv=5, n_jobs=n_jobs, scoring=scoring
        )
    )
    for metric in scoring:
        numpy.testing.assert_array_equal(ours[f"test_{metric}"], plain[f"test_{metric}"])


@pytest.mark.slow
def test_rfecv(cancer):
    ours, plain = both(
        lambda n_jobs: sk.RFECV(
            sk.RandomForestClassifier(n_estimators=5, random_state=0), step=1, cv=3, n_jobs=n_jobs
        ).fit(*cancer)
    )
    assert ours.n_features_ == plain.n_features_
    numpy.testing.assert_array_equal(ours.ranking_, plain.ranking_)
    numpy.testing.assert_array_equal(ours.cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"])


@pytest.mark.slow
def test_voting_classifier(cancer):
    def score(n_jobs):
        ensemble = sk.VotingClassifier(
            [
                ("rf", sk.RandomForestClassifier(n_estimators=10, random_state=0)),
                ("gb", sk.GradientBoostingClassifier(n_estimators=10, random_state=0)),
                ("lr", sk.make_pipeline(sk.StandardScaler(), sk.LogisticRegression())),
            ],
            voting="soft",
            n_jobs=n_jobs,
        )
        return sk.cross_val_score(ensemble, *cancer, cv=3, n_jobs=n_jobs)

    numpy.testing.assert_array_equal(*both(score))


def test_a_forest_itself_is_spread(digits, batches):
    ours, plain = both(lambda n_jobs: sk.RandomForestClassifier(20, random_state=0, n_jobs=n_jobs).fit(*digits))
    assert sum(batches) == 20
    numpy.testing.assert_array_equal(ours.predict_proba(digits[0]), plain.predict_proba(digits[0]))


def test_without_n_jobs_nothing_leaves_this_process(digits, batches):
    sk.cross_val_score(sk.SVC(), *digits, cv=3)
    assert batches == []


def test_large_data_reach_the_nodes_read_only():
    """As with joblib's own backends, so estimators that copy on demand behave the same."""
    rng = numpy.random.RandomState(0)
    X, y = rng.randn(20_000, 10), rng.randint(0, 2, 20_000)
    ours, plain = both(
        lambda n_jobs: sk.cross_val_score(
            sk.make_pipeline(sk.StandardScaler(), sk.LogisticRegression(max_iter=20)), X, y, cv=3, n_jobs=n_jobs
        )
    )
    numpy.testing.assert_allclose(ours, plain)


def test_learning_curve(digits):
    ours, plain = both(lambda n_jobs: sk.learning_curve(sk.SVC(), *digits, cv=3, n_jobs=n_jobs, train_sizes=[50, 100]))
    for one, other in zip(ours, plain, strict=True):
        numpy.testing.assert_array_equal(one, other)


def test_a_fit_that_fails_warns_and_scores_nan(digits):
    grid = {"C": [-1.0, 1.0]}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        search = sk.GridSearchCV(sk.SVC(), grid, cv=3, n_jobs=-1).fit(*digits)
    assert numpy.isnan(search.cv_results_["mean_test_score"][0])
    assert any("fits failed" in str(warning.message) for warning in caught)


def test_an_error_of_a_fit_is_its_own(digits):
    with pytest.raises(ValueError, match="The 'C' parameter of SVC"):
        sk.GridSearchCV(sk.SVC(), {"C": [-1.0, 1.0]}, cv=3, n_jobs=-1, error_score="raise").fit(*digits)


def test_the_configuration_travels(digits):
    import sklearn

    with sklearn.config_context(assume_finite=True):
        seen = sklearn.utils.parallel.Parallel(n_jobs=2)(
            sklearn.utils.parallel.delayed(sklearn.get_config)() for _ in range(2)
        )
    assert [config["assume_finite"] for config in seen] == [True, True]


@pytest.mark.slow
def test_callbacks_hear_of_what_happens_on_nodes(digits):
    """Progress bars and monitors listen on a socket of this process."""
    callback = pytest.importorskip("sklearn.callback")
    if not hasattr(sk.LogisticRegression, "set_callbacks"):
        pytest.skip("this scikit-learn's estimators take no callbacks")

    def logged(n_jobs):
        monitor = callback.ScoringMonitor(scoring="accuracy")
        estimator = sk.LogisticRegression(max_iter=5).set_callbacks(monitor)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sk.GridSearchCV(estimator, {"C": [0.1, 1]}, cv=3, n_jobs=n_jobs).fit(*digits)
        return len(monitor.get_logs().data)

    ours, plain = both(logged)
    assert ours == plain > 6


@pytest.mark.slow
def test_callbacks_keep_no_connection_of_an_earlier_fit(pool, digits):
    """One thread of the driver listens to each connection."""
    callback = pytest.importorskip("sklearn.callback")
    if not hasattr(sk.LogisticRegression, "set_callbacks"):
        pytest.skip("this scikit-learn's estimators take no callbacks")
    kept = callback.ScoringMonitor(scoring="accuracy")

    def fit(monitor):
        estimator = sk.LogisticRegression(max_iter=5).set_callbacks(monitor)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sk.GridSearchCV(estimator, {"C": [0.1, 1]}, cv=3, n_jobs=-1).fit(*digits)
        return len(monitor.get_logs().data)

    def listened():
        return sum("_handle" in thread.name for thread in threading.enumerate())

    rows = fit(kept)
    for _ in range(4):
        assert fit(callback.ScoringMonitor(scoring="accuracy")) == rows
    assert fit(kept) == rows
    joblib.Parallel(n_jobs=-1, batch_size=1)(
        [joblib.delayed(time.sleep)(0.2)] * pool.total_slots
    )  # all slots have another call
    eventually(lambda: listened() == 0)


@pytest.mark.slow
def test_two_searches_at_a_time_in_two_threads(pool, digits):
    scores = {}

    def run(C):
        with joblib.parallel_config(backend="skyward"):
            scores[C] = sk.cross_val_score(sk.SVC(C=C), *digits, cv=3, n_jobs=2).tolist()

    threads = [threading.Thread(target=run, args=(C,)) for C in (0.1, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert scores == {C: sk.cross_val_score(sk.SVC(C=C), *digits, cv=3).tolist() for C in (0.1, 1)}
