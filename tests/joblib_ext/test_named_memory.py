"""The name of a folder as an estimator's ``memory=``: in tasks it is that folder of the driver's."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import numpy as np
import pytest
from joblib import Memory, parallel_config
from joblib import hash as hash_of
from sklearn.cluster import FeatureAgglomeration
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.tree import DecisionTreeClassifier

import skyward as sky
from skyward.joblib_ext import cache_desk, named_memory
from tests.estimators import Scaler
from tests.joblib_ext.conftest import VERSION
from tests.joblib_ext.counted import Counted

if VERSION < (1, 4):
    pytest.skip("joblib 1.4 has what the lookup needs", allow_module_level=True)

pytestmark = pytest.mark.slow  # it imports scikit-learn


@pytest.fixture(params=["the folder", "the driver"], autouse=True)
def _way(request: pytest.FixtureRequest, pool: sky.Compute, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nodes of this machine can do as those elsewhere: ask the driver for everything."""
    pool.dispatcher.context.shared = request.param == "the folder"
    monkeypatch.chdir(request.getfixturevalue("counted").folder)
    yield
    pool.dispatcher.context.shared = True


def test_the_name_of_a_folder_is_a_folder_of_the_driver(pool: sky.Compute, counted: Counted) -> None:
    """Also in a pipeline within a pipeline; and the name is what comes back."""
    random = np.random.default_rng(0)
    X, y = random.normal(size=(60, 3)), random.integers(0, 2, 60)
    inner = Pipeline([("scale", Scaler(str(counted.log)))], memory="./named")
    whole = Pipeline([("inner", inner), ("tree", DecisionTreeClassifier(random_state=0))], memory="./named")
    search = GridSearchCV(whole, {"tree__max_depth": [1, 2, 3, 4]}, cv=3, n_jobs=-1, refit=False)
    with parallel_config(backend="skyward"):
        search.fit(X, y)
        assert len(counted.ran) == 3
        search.fit(X, y)
        assert len(counted.ran) == 3
    fitted = pool.submit(lambda: (whole.fit(X, y), repr(whole), isinstance(whole.memory, Memory))).result()
    assert fitted[2], "there it is the driver's, wherever the task runs"
    assert (fitted[0].memory, fitted[0].named_steps["inner"].memory) == ("./named", "./named")
    assert "memory='./named'" in fitted[1]
    assert len(counted.ran) == 4
    whole.fit(X, y)
    assert len(counted.ran) == 4, "what a task has fitted is a hit here, with scikit-learn alone"
    assert list(counted.folder.glob("named/joblib/*"))


def test_estimators_without_a_name_go_as_they_are(pool: sky.Compute, counted: Counted) -> None:
    (counted.folder / "file").touch()
    for memory in (None, "", "file/cache"):
        pipeline = Pipeline([("scale", Scaler(str(counted.log)))], memory=memory)
        assert pool.submit(lambda: pipeline.memory).result() == memory  # noqa: B023
    held = Memory("other", verbose=0)
    pipeline = Pipeline([("scale", Scaler(str(counted.log)))], memory=held)
    assert pool.submit(lambda: pipeline.memory).result().location == "other"


def test_a_name_in_a_task_counts_as_the_name(pool: sky.Compute) -> None:
    """For joblib's hash, and for a copy or a pickle made there."""
    cluster = FeatureAgglomeration(memory="named")

    def nested() -> tuple[object, ...]:
        again = pickle.loads(pickle.dumps(cluster))
        copied = copy.deepcopy(cluster)
        kinds = {type(one.memory).__name__ for one in (cluster, again, copied)}
        return kinds, hash_of(cluster), cluster.fit(np.eye(4)).n_clusters_

    assert pool.submit(nested).result() == ({"NamedMemory"}, hash_of(cluster), 2)


def test_registering_twice_changes_nothing() -> None:
    before = dict(named_memory.pickling.POOL_REDUCERS)
    named_memory.register(cache_desk.store_of)
    assert named_memory.pickling.POOL_REDUCERS == before
