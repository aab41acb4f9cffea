"""pandas' values come back as they were; what pandas' compiled code would follow out of memory is refused."""

from __future__ import annotations

import pickle

import pytest

from skyward.core.results.rules import Refused
from tests.core.results.hostile import Reduced, changed, read

np = pytest.importorskip("numpy")
pd = pytest.importorskip("pandas")

FRAME = pd.DataFrame(
    {
        "a": [1, 2],
        "b": ["x", "y"],
        "c": pd.to_datetime(["2020", "2021"]),
        "d": pd.Categorical(["u", None]),
        "e": pd.array([1, None], dtype="Int64"),
        "f": pd.to_datetime(["2020", "2021"]).tz_localize("Europe/Paris"),
        "g": pd.period_range("2020", periods=2, freq="M"),
        "h": pd.timedelta_range("1D", periods=2),
        "i": pd.arrays.SparseArray([0, 1]),
        "j": pd.arrays.IntervalArray.from_breaks([0, 1, 2]),
        "k": pd.array([True, None], dtype="boolean"),
        "l": pd.array(["a", None], dtype="string"),
        "m": np.array([None, [1]], dtype=object),
    }
)


@pytest.mark.parametrize(
    "frame",
    [FRAME, FRAME.set_index(["a", "b"]), FRAME.set_index("f"), pd.DataFrame(), pd.DataFrame(np.ones((3, 3)))],
    ids=["all", "two indexes", "times", "empty", "numbers"],
)
def test_frames_come_back(frame):
    pd.testing.assert_frame_equal(read(pickle.dumps(frame, protocol=5)), frame)


@pytest.mark.parametrize("column", [*FRAME, None])
def test_series_and_indexes_come_back(column):
    series = FRAME.dtypes if column is None else FRAME[column]
    pd.testing.assert_series_equal(read(pickle.dumps(series, protocol=5)), series)
    if column not in ("m", None):
        pd.testing.assert_index_equal(read(pickle.dumps(pd.Index(series), protocol=5)), pd.Index(series))


@pytest.mark.parametrize(
    "value",
    [
        *(pd.Timestamp("2020", tz="UTC"), pd.Timedelta("1D"), pd.Period("2020-01"), pd.Interval(0, 1), pd.NaT, pd.NA),
        *(pd.offsets.MonthEnd(2), pd.RangeIndex(3), pd.CategoricalDtype(["a"])),
    ],
    ids=repr,
)
def test_values_come_back(value):
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
        with pytest.raises((Refused, ValueError)):
            read(data)


@pytest.mark.parametrize("codes", [[5], [-2], [0.5]])
def test_categories_that_are_none(codes):
    codes = np.array(codes)
    made, args, state = pd.Categorical(["u"]).__reduce__()
    with pytest.raises((Refused, ValueError)):
        read(pickle.dumps(Reduced(made, args, (state[0], codes, *state[2:])), protocol=5))
    with pytest.raises((Refused, ValueError)):
        read(pickle.dumps(Reduced(made, (*args[:2], (state[0], codes, {})), None), protocol=5))
    levels = pd.MultiIndex.from_arrays([["u"]])
    data = lie(levels, lambda made, args, _: (made, (args[0], {**args[1], "codes": [codes]})))
    with pytest.raises(Refused):
        read(data)


def test_parts_of_an_array_that_do_not_fit():
    for value, part in ((pd.array([1, 2], dtype="Int64"), "_mask"), (pd.array([True, None], dtype="boolean"), "_data")):
        with pytest.raises(Refused):
            read(changed(value, **{part: getattr(value, part)[:1]}))
    with pytest.raises(Refused):
        read(changed(pd.arrays.SparseArray([0, 1]), _sparse_values=np.zeros(0, int)))


@pytest.mark.parametrize("name", ["read_pickle", "eval", "HDFStore", "ExcelFile", "io"])
def test_what_reads_files_or_runs_text_has_no_rule(name):
    from skyward.core.results import frames

    assert frames.rule("pandas", name) is None
    assert frames.rule("pandas.core.computation.eval", "eval") is None
    assert frames.rule(pd.DataFrame.__module__, "DataFrame") is not None
