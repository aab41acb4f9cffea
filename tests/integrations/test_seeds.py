"""The examples of the documents that the API was promised in, as they are printed there.

Changed are the provider, and times: `sleep` is shortened, for these tests wait for nothing, and forests and searches
have a tenth of their trees and iterations. So are numbers of nodes: scikit-learn is imported on each, which takes
seconds of one processor here. Filled in are the data, which the documents leave out. What they import from scikit-learn
is in `sk` here.
"""

from __future__ import annotations

import itertools
import os
import re
from time import perf_counter

import pytest
from joblib import Memory, Parallel, delayed, dump, load
from joblib.parallel import BACKENDS, get_active_backend

import skyward as sky
from skyward import ComputePool, Local, S3Volume
from skyward.integrations import JoblibPool, ScikitLearnPool
from skyward.integrations.joblib import SkywardBackend, sklearn_backend
from tests.integrations.tasks import process, process_group, process_item, slow_item, slow_task
from tests.lazily import Lazy

np = pytest.importorskip("numpy")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

sk = Lazy("tests.estimators")
X = np.random.default_rng(0).normal(size=(60, 4))
y = (X[:, 0] + X[:, 1] > 0).astype(int)


@pytest.fixture(autouse=True)
def _joblib_is_as_before():
    before = type(get_active_backend()[0])
    yield
    assert type(get_active_backend()[0]) is before is not SkywardBackend


# --- joblib concurrency: JoblibPool, and the plugin ---


def test_joblib_pool_spreads_2000_tasks():
    with JoblibPool(provider=Local(), nodes=10, concurrency=10) as pool:
        assert pool.total_slots == 100
        results = Parallel(n_jobs=-1)(delayed(slow_task)(i) for i in range(2000))
    assert results == [i * 2 for i in range(2000)]


def test_the_plugin_spreads_2000_tasks(capsys):
    with sky.Compute(
        provider=sky.Local(),
        nodes=10,
        worker=sky.Worker(concurrency=10),
        plugins=[sky.plugins.joblib()],
    ) as compute:
        t0 = perf_counter()

        results = Parallel(n_jobs=-1)(
            delayed(slow_task)(i) for i in range(2000)
        )  # fmt: skip
        elapsed = perf_counter() - t0

        print("Tasks: 2000 | Nodes: 10 | Concurrency: 10")
        print("Effective workers: 100")
        print(f"Total time: {elapsed:.2f}s")
        print(f"Throughput: {2000 / elapsed:.2f} tasks/s")
        print(f"Ideal time: {2000 / 100 * 5:.0f}s")
        print(f"Efficiency: {(2000 / 100 * 5) / elapsed * 100:.1f}%")
        assert compute.total_slots == 100
    assert results == [i * 2 for i in range(2000)]
    assert "Ideal time: 100s" in capsys.readouterr().out


# --- the plugin's page ---


def test_compute_pool_is_another_name():
    with sky.ComputePool(
        provider=sky.Local(),
        nodes=10,
        worker=sky.Worker(concurrency=10),
        plugins=[sky.plugins.joblib()],
    ) as pool:
        results = Parallel(n_jobs=-1)(
            delayed(slow_task)(i) for i in range(2000)
        )  # fmt: skip
    assert pool is not None
    assert results == [i * 2 for i in range(2000)]


def test_high_concurrency():
    with sky.ComputePool(
        provider=sky.Local(),
        nodes=2,
        vcpus=64,
        worker=sky.Worker(concurrency=120),
        plugins=[sky.plugins.joblib()],
    ) as pool:
        assert pool.total_slots == 240
        results = Parallel(n_jobs=-1)(
            delayed(slow_task)(i) for i in range(20000)
        )  # fmt: skip
    assert results == [i * 2 for i in range(20000)]


def test_the_sklearn_plugin():
    param_grid = {"C": [0.1, 1, 10]}
    with sky.ComputePool(
        provider=sky.Local(),
        nodes=4,
        worker=sky.Worker(concurrency=4),
        plugins=[sky.plugins.sklearn()],
    ) as pool:
        grid = sk.GridSearchCV(sk.SVC(), param_grid, cv=5, n_jobs=-1)
        grid.fit(X, y)
        assert pool.total_slots == 16
    assert grid.best_params_ == sk.GridSearchCV(sk.SVC(), param_grid, cv=5).fit(X, y).best_params_


@pytest.mark.parametrize(("asked", "workers"), [(-1, 40), (20, 20)])
def test_effective_parallelism(capsys, asked, workers):
    with sky.Compute(nodes=4, worker=sky.Worker(concurrency=10), plugins=[sky.plugins.joblib()]):
        Parallel(n_jobs=asked, verbose=1)(delayed(process)(i) for i in range(100))
    assert f"with {workers} concurrent workers" in capsys.readouterr().err


@pytest.mark.parametrize("version", ["1.4.0", None])
def test_version_of_the_plugin(version):
    image = sky.plugins.joblib(version=version).transform_image(sky.Image(), driver_environment=False)
    assert any(item.startswith(f"joblib=={version or ''}") for item in image.pip)


# --- joblib integration ---


def test_basic_parallel_execution():
    # Distribute across 4 cloud nodes
    with JoblibPool(provider=Local(), nodes=4, concurrency=4):
        results = Parallel(n_jobs=-1)(
            delayed(process)(x) for x in range(100)
        )  # fmt: skip
    assert results[:5] == [0, 1, 4, 9, 16]


def test_distributed_grid_search():
    X_train, y_train = X, y
    param_grid = {
        "n_estimators": [10, 20, 30],
        "max_depth": [10, 20, 30, None],
        "min_samples_split": [2, 5, 10],
    }

    with ScikitLearnPool(provider=Local(), nodes=2, concurrency=4):
        grid = sk.GridSearchCV(
            sk.RandomForestClassifier(),
            param_grid,
            cv=5,
            n_jobs=-1,  # Distributed!
        )
        grid.fit(X_train, y_train)

    print(f"Best params: {grid.best_params_}")
    print(f"Best score: {grid.best_score_}")
    assert len(grid.cv_results_["params"]) == 36


def test_usage_of_joblib_pool(capsys):
    params = range(20)

    def expensive_computation(params):
        return params + 1

    with JoblibPool(
        provider=Local(),
        nodes=4,
        concurrency=4,
        cpu=8,
        memory="16GB",
        allocation="spot-if-available",
    ) as pool:
        # Access pool if needed
        print(f"Total slots: {pool.total_slots}")

        results = Parallel(n_jobs=-1)(
            delayed(expensive_computation)(p) for p in params
        )  # fmt: skip
    assert results == [p + 1 for p in params]
    assert "Total slots: 16" in capsys.readouterr().out


def test_grid_search_with_verbose():
    param_grid = {
        "C": [0.1, 1, 10, 100],
        "gamma": ["scale", "auto", 0.1, 0.01],
        "kernel": ["rbf", "poly"],
    }

    with ScikitLearnPool(
        provider=Local(),
        nodes=2,
        concurrency=4,
        memory="8GB",
    ):
        grid = sk.GridSearchCV(
            sk.SVC(),
            param_grid,
            cv=5,
            n_jobs=-1,
            verbose=2,
        )
        grid.fit(X, y)
    assert grid.best_score_ == sk.GridSearchCV(sk.SVC(), param_grid, cv=5).fit(X, y).best_score_


def test_usage_with_cross_val_score():
    with ScikitLearnPool(provider=Local(), nodes=2, concurrency=4):
        scores = sk.cross_val_score(
            sk.GradientBoostingClassifier(),
            X, y,
            cv=10,
            n_jobs=-1,
        )  # fmt: skip

    print(f"Mean: {scores.mean():.3f} (+/- {scores.std() * 2:.3f})")
    assert len(scores) == 10


def test_usage_with_randomized_search():
    from scipy.stats import randint, uniform

    param_distributions = {
        "hidden_layer_sizes": [(100,), (100, 50), (100, 100)],
        "alpha": uniform(0.0001, 0.01),
        "learning_rate_init": uniform(0.001, 0.01),
        "max_iter": randint(200, 500),
    }

    with ScikitLearnPool(provider=Local(), nodes=2, concurrency=2):
        search = sk.RandomizedSearchCV(
            sk.MLPClassifier(),
            param_distributions,
            n_iter=5,
            cv=3,
            n_jobs=-1,
        )
        search.fit(X, y)
    assert len(search.cv_results_["params"]) == 5


def test_manual_backend_activation():
    model, params = sk.SVC(), {"C": [0.1, 1]}
    pool = ComputePool(
        provider=Local(),
        nodes=4,
        image=sky.Image(pip=["scikit-learn", "joblib"]),
    )

    with pool, sklearn_backend(pool):
        grid = sk.GridSearchCV(model, params, n_jobs=-1)
        grid.fit(X, y)
    assert grid.best_params_ == sk.GridSearchCV(model, params).fit(X, y).best_params_


def test_manual_registration(monkeypatch):
    from joblib import parallel_backend
    from joblib.parallel import register_parallel_backend

    monkeypatch.setitem(BACKENDS, "skyward", BACKENDS["skyward"])  # put back afterwards
    fn, data = process, range(10)

    # Create pool
    pool = ComputePool(Local(), nodes=2, concurrency=2)
    with pool:
        # Register backend
        register_parallel_backend("skyward", lambda: SkywardBackend(pool))

        # Use backend
        with parallel_backend("skyward"):
            results = Parallel(n_jobs=-1)(delayed(fn)(x) for x in data)
    assert results == [x**2 for x in data]


def test_match_concurrency_to_resources():
    # CPU-bound: match to CPU cores
    with JoblibPool(provider=Local(), nodes=4, cpu=8, concurrency=8) as pool:
        assert pool.total_slots == 32

    # Memory-bound: lower concurrency
    with JoblibPool(provider=Local(), nodes=4, memory="32GB", concurrency=2) as pool:
        assert pool.total_slots == 8


def test_use_appropriate_node_count():
    model, small_param_grid, large_param_dist = sk.SVC(), {"C": [1, 2]}, {"C": list(np.linspace(0.1, 10, 200))}
    # Small search space: fewer nodes
    with ScikitLearnPool(provider=Local(), nodes=1, concurrency=4):
        grid = sk.GridSearchCV(model, small_param_grid, n_jobs=-1)
        grid.fit(X, y)

    # Large search space: more nodes
    with ScikitLearnPool(provider=Local(), nodes=2, concurrency=4):
        grid = sk.RandomizedSearchCV(model, large_param_dist, n_iter=100, n_jobs=-1)
        grid.fit(X, y)


def test_volumes():
    pool = ScikitLearnPool(
        provider=Local(),
        nodes=4,
        volume=[S3Volume("/data", "my-bucket", "datasets/")],
    )
    assert pool is not None


def test_spot_instances():
    model, params = sk.SVC(), {"C": [0.1, 1]}
    with ScikitLearnPool(
        provider=Local(),
        nodes=2,
        allocation="always-spot",  # Maximum savings
    ):
        grid = sk.GridSearchCV(model, params, n_jobs=-1)
        grid.fit(X, y)


def test_ensemble_model_training():
    ensemble = sk.VotingClassifier([
        ("rf", sk.RandomForestClassifier(n_estimators=100)),
        ("gb", sk.GradientBoostingClassifier(n_estimators=100)),
        ("lr", sk.LogisticRegression()),
    ], voting="soft")  # fmt: skip

    with ScikitLearnPool(provider=Local(), nodes=2, concurrency=4):
        # Each base estimator's cross-validation runs in parallel
        scores = sk.cross_val_score(ensemble, X, y, cv=5, n_jobs=-1)
    assert len(scores) == 5


def test_feature_selection():
    with ScikitLearnPool(provider=Local(), nodes=2, concurrency=4):
        selector = sk.RFECV(
            sk.RandomForestClassifier(n_estimators=50),
            step=1,
            cv=5,
            n_jobs=-1,
        )
        selector.fit(X, y)
        print(f"Optimal features: {selector.n_features_}")
    assert 1 <= selector.n_features_ <= 4


def test_multi_metric_evaluation():
    with ScikitLearnPool(provider=Local(), nodes=2, concurrency=4):
        scores = sk.cross_validate(
            sk.RandomForestClassifier(),
            X, y,
            cv=5,
            n_jobs=-1,
            scoring=["accuracy", "precision", "recall", "f1"],
        )  # fmt: skip

    for metric in ["accuracy", "precision", "recall", "f1"]:
        key = f"test_{metric}"
        print(f"{metric}: {scores[key].mean():.3f} (+/- {scores[key].std() * 2:.3f})")


def test_backend_not_configured():
    # Wrong
    pool = JoblibPool(provider=Local(), nodes=4)
    with pytest.raises(sky.PoolNotActive, match="Backend not configured"):
        Parallel(n_jobs=-1, backend=SkywardBackend(pool))(delayed(process)(x) for x in range(3))  # Error!

    # Correct
    with JoblibPool(provider=Local(), nodes=4):
        assert Parallel(n_jobs=-1)(delayed(process)(x) for x in range(3)) == [0, 1, 4]  # Works


def test_low_parallelism(capsys):
    # Check effective jobs
    with JoblibPool(provider=Local(), nodes=4, concurrency=4) as pool:
        print(f"Total slots: {pool.total_slots}")  # Should be 16

        # Must use n_jobs=-1 for full parallelism
        Parallel(n_jobs=-1, verbose=1)(delayed(process)(x) for x in range(3))  # Uses all 16 slots
        assert Parallel(n_jobs=1)([delayed(os.getpid)()]) == [os.getpid()]  # Only 1 slot!
    said = capsys.readouterr()
    assert "Total slots: 16" in said.out
    assert "with 16 concurrent workers" in said.err


def test_serialization_errors(capsys):
    import threading

    import cloudpickle

    def my_function(x):
        return x

    my_data = threading.Lock()

    # Test serialization
    try:
        cloudpickle.dumps(my_function)
        cloudpickle.dumps(my_data)
    except Exception as e:
        print(f"Serialization failed: {e}")
    assert "Serialization failed: cannot pickle" in capsys.readouterr().out
    with JoblibPool(provider=Local()), pytest.raises(sky.PayloadError, match="lock"):
        Parallel(n_jobs=-1)([delayed(my_function)(my_data)])


# --- joblib's own features, inside a pool ---


@pytest.fixture
def block(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with sky.Compute(nodes=2, concurrency=2, plugins=[sky.plugins.joblib()], console=False) as pool:
        yield pool


def test_memory(block):
    # Create cache directory
    memory = Memory("./cachedir", verbose=0)
    called = []

    @memory.cache
    def expensive_function(param1, param2):
        """This function's results will be cached."""
        import time

        time.sleep(0.02)  # Simulate expensive computation
        called.append(1)
        return param1 + param2

    # First call: computed (takes 2 seconds)
    result = expensive_function(10, 20)

    # Second call: cached (instant)
    result = expensive_function(10, 20)
    assert result == 30
    assert len(called) == 1

    # Clear specific function cache
    expensive_function.clear()

    # Clear all cache
    memory.clear()

    # Get cache location
    print(memory.location)
    assert expensive_function(10, 20) == 30
    assert len(called) == 2

    # Reduce cache size (keep only N recent)
    memory.reduce_size(bytes_limit=1e9)


def test_simple_parallelization(block):
    # Sequential (baseline)
    results_seq = [process_item(i) for i in range(100)]

    # Parallel (automatic load balancing)
    results_par = Parallel(n_jobs=4)(
        delayed(process_item)(i) for i in range(100)
    )  # fmt: skip
    assert results_par == results_seq
    for backend in ("loky", "threading", "multiprocessing"):
        parallel = Parallel(n_jobs=-1, verbose=10, backend=backend, batch_size="auto", pre_dispatch="2*n_jobs")
        assert parallel(delayed(process_item)(i) for i in range(3)) == [0, 1, 4]


def test_persistence(block):
    # Save
    data = {"arrays": [np.random.rand(1000, 1000)], "params": {"alpha": 0.1}}
    dump(data, "results.pkl")

    # Load
    data_loaded = load("results.pkl")
    assert data_loaded["params"] == data["params"]
    np.testing.assert_array_equal(data_loaded["arrays"][0], data["arrays"][0])


def simulate_plainly(param1, param2, seed):
    np.random.seed(seed)
    return param1 * param2 + np.random.rand()


def test_parameter_sweep_with_caching(block, tmp_path):
    memory = Memory(str(tmp_path / "cache"), verbose=0)

    @memory.cache
    def simulate(param1, param2, seed):
        import numpy as np

        np.random.seed(seed)
        # Complex simulation...
        return param1 * param2 + np.random.rand()

    # Run parameter sweep (cached)
    param_grid = [(p1, p2, s) for p1 in [0.1, 0.5, 1.0]
                              for p2 in [1, 2, 3]
                              for s in range(10)]  # fmt: skip

    results = Parallel(n_jobs=-1)(
        delayed(simulate)(*params) for params in param_grid
    )  # fmt: skip
    assert results == [simulate_plainly(*params) for params in param_grid]
    assert results == Parallel(n_jobs=-1)(delayed(simulate)(*params) for params in param_grid)


def test_resumable_workflow(block):
    def load_data():
        return [1, 2, 3]

    memory = Memory("./cache", verbose=0)

    @memory.cache
    def stage1(data):
        # Long computation
        return [item * 2 for item in data]

    @memory.cache
    def stage2(data):
        # Another long computation
        return sum(data)

    # If script crashes after stage1, stage1 won't rerun
    data = load_data()
    step1_result = stage1(data)  # Cached if already done
    step2_result = stage2(step1_result)  # Cached if already done
    assert step2_result == 12


def test_nested_parallelism(block):
    # Outer parallel loop over groups
    groups = [range(10 * i, 10 * (i + 1)) for i in range(5)]
    results = Parallel(n_jobs=5)(
        delayed(process_group)(i, group) for i, group in enumerate(groups)
    )  # fmt: skip
    assert list(itertools.chain(*results)) == [i**2 for i in range(50)]


def test_progress_monitoring(block, capsys):
    # With progress bar
    results = Parallel(n_jobs=4, verbose=10)(
        delayed(slow_item)(i) for i in range(20)
    )  # fmt: skip
    said = capsys.readouterr().err
    assert results == [i * 2 for i in range(20)]
    # The numbers in the document are an older joblib's; loky prints these with the one that is installed.
    assert re.search(r"\[Parallel\(n_jobs=4\)\]: Done +\d+ tasks      \| elapsed:", said)
    assert "[Parallel(n_jobs=4)]: Done  20 out of  20 | elapsed:" in said


def test_hashing_for_cache_keys(block):
    memory = Memory("./cache", verbose=0)

    # Default: all arguments matter
    @memory.cache
    def compute(data, param):
        return data + param

    # Custom: ignore certain arguments
    @memory.cache(ignore=["verbose"])
    def compute_custom(data, param, verbose=False):
        if verbose:
            print("Computing...")
        return data + param

    assert compute(1, 2) == compute_custom(1, 2) == compute_custom(1, 2, verbose=True)


def test_memory_mapped_arrays(block):
    large_array = np.arange(1_000_000.0)

    # Save with memory mapping
    dump(large_array, "data.pkl")

    # Load memory-mapped (doesn't load into RAM immediately)
    data_mmap = load("data.pkl", mmap_mode="r")
    sums = Parallel(n_jobs=2)(delayed(np.sum)(data_mmap) for _ in range(2))
    assert sums == [large_array.sum()] * 2


def test_combining_with_numpy(block):
    def parallel_dot_product(matrices):
        """Compute dot products in parallel."""

        def compute_dot(A, B):
            return np.dot(A, B)

        results = Parallel(n_jobs=-1)(
            delayed(compute_dot)(matrices[i], matrices[i + 1])
            for i in range(0, len(matrices) - 1, 2)
        )  # fmt: skip
        return results  # noqa: RET504 - as printed

    matrices = [np.full((20, 20), i) for i in range(6)]
    for i, product in enumerate(parallel_dot_product(matrices)):
        np.testing.assert_array_equal(product, matrices[2 * i] @ matrices[2 * i + 1])


def test_performance_tips(block):
    assert Parallel(n_jobs=4, batch_size=10)(delayed(process_item)(i) for i in range(40)) == [i**2 for i in range(40)]
    # Bad: overhead dominates
    assert Parallel(n_jobs=4)(delayed(lambda x: x + 1)(i) for i in range(10)) == list(range(1, 11))
    # Try different backend
    assert Parallel(n_jobs=4, backend="threading")(delayed(process_item)(i) for i in range(3)) == [0, 1, 4]
    # Or increase timeout
    assert Parallel(n_jobs=4, timeout=300)(delayed(process_item)(i) for i in range(3)) == [0, 1, 4]
    # Use max_nbytes to limit memory
    assert Parallel(n_jobs=4, max_nbytes="100M")(delayed(process_item)(i) for i in range(3)) == [0, 1, 4]


def test_real_world_example(block, tmp_path):
    files = [str(tmp_path / f"{i}.txt") for i in range(3)]
    for i, file in enumerate(files):
        np.savetxt(file, np.full((3, 3), i))
    memory = Memory(str(tmp_path / "analysis_cache"), verbose=0)

    @memory.cache
    def load_and_preprocess(filename):
        """Load and preprocess data file."""
        data = np.loadtxt(filename)
        # Expensive preprocessing
        return data - 1

    @memory.cache
    def analyze_dataset(data, method="pca"):
        """Perform analysis."""
        if method == "pca":
            # PCA analysis
            return data.sum()
        # Other analysis
        return data.mean()

    # Parallel data loading (cached)
    datasets = Parallel(n_jobs=3)(
        delayed(load_and_preprocess)(f) for f in files
    )  # fmt: skip

    # Parallel analysis (cached)
    results = Parallel(n_jobs=3)(
        delayed(analyze_dataset)(data, method="pca")
        for data in datasets
    )  # fmt: skip
    assert results == [-9.0, 0.0, 9.0]
