"""What joblib does not promise is there, and only one module relies on it."""

from __future__ import annotations

import ast
from pathlib import Path

import joblib
import pytest
from joblib import Parallel, delayed, parallel_config
from joblib.parallel import AutoBatchingMixin

import skyward as sky
from skyward.joblib_ext import joblib_private
from tests.joblib_ext.conftest import VERSION

ROOM = Path(joblib_private.__file__).parent
OTHERS = {"_callbacks", "_token", "_worker_connections"}  # of multiprocessing and scikit-learn


def private_names(path: Path) -> set[str]:
    """Private attributes of anything but the module's own objects, also by getattr."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"
    }
    own |= {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    read = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    read |= {
        ast.literal_eval(node.args[1])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr")
        if isinstance(node.args[1], ast.Constant)
    }
    return {name for name in read - own if name.startswith("_") and not name.endswith("__")}


@pytest.mark.parametrize("path", sorted(ROOM.glob("*.py")), ids=lambda path: path.stem)
def test_only_one_module_uses_private_parts(path: Path) -> None:
    found = private_names(path) - OTHERS
    assert found if path.stem == "joblib_private" else not found


def test_this_version_was_tried() -> None:
    assert ".".join(map(str, VERSION)) in joblib_private.TRIED, f"try joblib {joblib.__version__}, and add it to TRIED"


def test_a_parallel_has_what_is_used_of_it() -> None:
    """Each of them might else be missed without an error, since older versions lack some."""
    with parallel_config(backend="threading", n_jobs=2):
        parallel = Parallel(return_as="generator", pre_dispatch="3 * n_jobs", batch_size=1)
        assert joblib_private.counted_jobs(parallel) is None
        results = parallel(delayed(abs)(-i) for i in range(20))
        assert joblib_private.counted_jobs(parallel) == 2
        joblib_private.set_counted_jobs(parallel, 3)
        assert joblib_private.counted_jobs(parallel) == 3
        count = joblib_private.untaken(parallel, lambda: 0)
        assert count is not None
        assert count() > 0
        call = joblib_private.call_of(parallel)
        assert call
        with joblib_private.lock_of(parallel):
            pass
        assert next(results) == 0
        assert list(results) == list(range(1, 20))
        assert not joblib_private.take_batch(parallel, call), "the iterator has ended"
        assert not joblib_private.take_batch(parallel, "another call")
    assert hasattr(parallel, "_aborting")
    assert hasattr(parallel, "_raise_error_fast")
    assert hasattr(parallel, "_ready_batches")
    assert {"_effective_batch_size", "_smoothed_batch_duration"} <= set(vars(with_batches()))


def with_batches() -> AutoBatchingMixin:
    class Backend(AutoBatchingMixin):  # type: ignore[misc]
        parallel = None

    return Backend()


def test_pre_dispatch_is_evaluated_as_joblib_does() -> None:
    assert joblib_private.pre_dispatched_tasks("3*n_jobs + 1", 4) == 13


@pytest.mark.slow
def test_an_error_of_another_thread_is_raised_where_parallel_was_called() -> None:
    with sky.Compute(concurrency=2, plugins=[sky.plugins.joblib()], console=False):
        parallel = Parallel(n_jobs=2, batch_size=1)

        def calls() -> object:
            yield delayed(abs)(-1)
            joblib_private.raise_in_caller(parallel, joblib_private.call_of(parallel), KeyError("from elsewhere"))

        with pytest.raises(KeyError, match="from elsewhere"):
            parallel(calls())
        assert parallel([delayed(abs)(-1)] * 3) == [1, 1, 1]
        joblib_private.raise_in_caller(parallel, "a call that has ended", KeyError("too late"))
        assert parallel([delayed(abs)(-1)] * 3) == [1, 1, 1]
