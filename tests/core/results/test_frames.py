"""pandas' values come back as they were; what pandas' compiled code would follow out of memory is refused."""

from __future__ import annotations

import pickle

import pytest

from skyward.core.results.rules import RefusedPickle
from tests.core.results.hostile import Reduced, changed, read
from tests.lazily import Lazy

np = pytest.importorskip("numpy")
pd = Lazy("pandas")

COLUMNS = {
    "a": lambda: [1, 2],
    "b": lambda: ["x", "y"],
    "c": lambda: pd.to_datetime(["2020", "2021"]),
    "d": lambda: pd.Categorical(["u", None]),
    "e": lambda: pd.array([1, None], dtype="Int64"),
    "f": lambda: pd.to_datetime(["2020", "2021"]).tz_localize("Europe/Paris"),
    "g": lambda: pd.period_range("2020", periods=2, freq="M"),
    "h": lambda: pd.timedelta_range("1D", periods=2),
    "i": lambda: pd.arrays.SparseArray([0, 1]),
    "j": lambda: pd.arrays.IntervalArray.from_breaks([0, 1, 2]),
    "k": lambda: pd.array([True, None], dtype="boolean"),
    "l": lambda: pd.array(["a", None], dtype="string"),
    "m": lambda: np.array([None, [1]], dtype=object),
}


@pytest.fixture
def frame():
    return pd.DataFrame({name: make() for name, make in COLUMNS.items()})


@pytest.mark.parametrize("index", [None, ["a", "b"], "f"], ids=["all", "two indexes", "times"])
def test_frames_come_back(frame, index):
    if index is not None:
        frame = frame.set_index(index)
    pd.testing.assert_frame_equal(read(pickle.dumps(frame, protocol=5)), frame)


@pytest.mark.parametrize("content", [None, np.ones((3, 3))], ids=["empty", "numbers"])
def test_plain_frames_come_back(content):
    frame = pd.DataFrame(content)
    pd.testing.assert_frame_equal(read(pickle.dumps(frame, protocol=5)), frame)


@pytest.mark.parametrize("column", [*COLUMNS, None])
def test_series_and_indexes_come_back(frame, column):
    series = frame.dtypes if column is None else frame[column]
    pd.testing.assert_series_equal(read(pickle.dumps(series, protocol=5)), series)
    if column not in ("m", None):
        pd.testing.assert_index_equal(read(pickle.dumps(pd.Index(series), protocol=5)), pd.Index(series))


VALUES = {
    "Timestamp": lambda: pd.Timestamp("2020", tz="UTC"),
    "Timedelta": lambda: pd.Timedelta("1D"),
    "Period": lambda: pd.Period("2020-01"),
    "Interval": lambda: pd.Interval(0, 1),
    "NaT": lambda: pd.NaT,
    "NA": lambda: pd.NA,
    "MonthEnd": lambda: pd.offsets.MonthEnd(2),
    "RangeIndex": lambda: pd.RangeIndex(3),
    "CategoricalDtype": lambda: pd.CategoricalDtype(["a"]),
}


@pytest.mark.parametrize("make", VALUES.values(), ids=VALUES)
def test_values_come_back(make):
    value = make()
    back = read(pickle.dumps([value], protocol=5))[0]
    assert repr(back) == repr(value)
    assert type(back) is type(value)


# --- lies ---


def lie(value, change):
    """A pickle of what `change` makes of how a value is made."""
    return pickle.dumps(Reduced(*change(*value.__reduce__())), protocol=5)


def test_columns_that_lie_where_none_are():
    values, _, dimensions = (block := pd.DataFrame({"a": [1, 2]})._mgr.blocks[0]).__reduce__()[1]
    made = block.__reduce__()[0]
    for place in (slice(10**6, 10**6 + 1), slice(1, 2), np.array([-5])):
        stray = Reduced(made, (values, place, dimensions))
        data = lie(pd.DataFrame({"a": [1, 2]})._mgr, lambda kind, args, *_, block=stray: (kind, ((block,), args[1])))
        with pytest.raises((RefusedPickle, ValueError)):
            read(data)


@pytest.mark.parametrize("codes", [[5], [-2], [0.5]])
def test_categories_that_are_none(codes):
    codes = np.array(codes)
    made, args, state = pd.Categorical(["u"]).__reduce__()
    with pytest.raises((RefusedPickle, ValueError)):
        read(pickle.dumps(Reduced(made, args, (state[0], codes, *state[2:])), protocol=5))
    with pytest.raises((RefusedPickle, ValueError)):
        read(pickle.dumps(Reduced(made, (*args[:2], (state[0], codes, {})), None), protocol=5))
    levels = pd.MultiIndex.from_arrays([["u"]])
    data = lie(levels, lambda made, args, _: (made, (args[0], {**args[1], "codes": [codes]})))
    with pytest.raises(RefusedPickle):
        read(data)


def test_parts_of_an_array_that_do_not_fit():
    for value, part in ((pd.array([1, 2], dtype="Int64"), "_mask"), (pd.array([True, None], dtype="boolean"), "_data")):
        with pytest.raises(RefusedPickle):
            read(changed(value, **{part: getattr(value, part)[:1]}))
    with pytest.raises(RefusedPickle):
        read(changed(pd.arrays.SparseArray([0, 1]), _sparse_values=np.zeros(0, int)))


@pytest.mark.parametrize("name", ["read_pickle", "eval", "HDFStore", "ExcelFile", "io"])
def test_what_reads_files_or_runs_text_has_no_rule(name):
    from skyward.core.results import frames

    assert frames.rule("pandas", name) is None
    assert frames.rule("pandas.core.computation.eval", "eval") is None
    assert frames.rule(pd.DataFrame.__module__, "DataFrame") is not None
