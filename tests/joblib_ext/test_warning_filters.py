"""Warning filters travel with scikit-learn's tasks: those of modules that a node lacks must not harm it."""

from __future__ import annotations

import sys
import types
import warnings

import pytest
from joblib import Parallel, delayed

import skyward as sky
from skyward.core.payload import pickling
from skyward.joblib_ext import warning_filters


@pytest.fixture
def foreign(monkeypatch):
    """A warning of a module that exists in this process only."""
    module = types.ModuleType("only_here.warnings")
    kind = type("OnlyHereWarning", (UserWarning,), {"__module__": module.__name__})
    module.OnlyHereWarning = kind
    monkeypatch.setitem(sys.modules, "only_here", types.ModuleType("only_here"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=kind)
        yield kind


def seen(filters):
    with warnings.catch_warnings():
        warnings.resetwarnings()
        for action, _, category, _, _ in filters:
            warnings.simplefilter(action, category, append=True)
        warnings.warn("this is no error", UserWarning, stacklevel=1)
    return [(category.__module__, category.__qualname__) for _, _, category, _, _ in filters]


@pytest.mark.slow
def test_filters_of_unknown_modules_are_stand_ins_and_ours_stay(foreign):
    mine = list(warnings.filters)
    with sky.Compute(concurrency=2, plugins=[sky.plugins.joblib()], console=False):
        names = Parallel(n_jobs=2)([delayed(seen)(warnings.filters)] * 2)[0]
        assert warnings.filters == mine
    assert ("only_here.warnings", "OnlyHereWarning") in names
    assert names == [(entry[2].__module__, entry[2].__qualname__) for entry in mine]
    assert warnings.filters == mine


@pytest.mark.slow
def test_filters_are_as_before_after_an_exception(foreign):
    mine = list(warnings.filters)
    with pytest.raises(KeyError), sky.Compute(plugins=[sky.plugins.joblib()], console=False):
        raise KeyError
    assert warnings.filters == mine


def test_a_known_category_is_itself():
    for kind in (DeprecationWarning, UserWarning, pytest.PytestWarning):
        head, buffers = pickling.dumps(kind)
        assert pickling.loads(head, buffers) is kind


def test_a_category_of_a_function_travels_whole():
    class Local(UserWarning):
        note = "carried"

    assert warning_filters._reduce(Local) is None
    assert pickling.loads(*pickling.dumps(Local)).note == "carried"


def test_a_stand_in_matches_nothing():
    kind = warning_filters.find_category("no.such.module", "Some.Warn")
    assert kind.__bases__ == (Warning,)
    assert warning_filters.find_category("no.such.module", "Some.Warn") is kind
    assert not issubclass(UserWarning, kind)
    assert warning_filters.find_category("os", "path") is not __import__("os").path  # not a warning
