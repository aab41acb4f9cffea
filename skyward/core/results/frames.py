"""What results may contain of pandas: frames, series, indexes and their values.

pandas' compiled code reads and writes at positions and codes without checking them, so they are checked here.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

import numpy

from skyward.core.results.rules import Mark, RefusedPickle, Rule, attributes, called, made

__all__ = ["build_reconstructed", "reconstructed", "rule"]

pandas: Any = importlib.import_module("pandas")  # it has no type hints
_EXTENSIONS: Any = importlib.import_module("pandas.api.extensions")
_LIBS: dict[str, Any] = {
    name: importlib.import_module(f"pandas._libs.{name}") for name in ("arrays", "internals", "interval", "sparse")
}
_MODULE = re.compile(r"pandas(\.(core|_libs|arrays)(\.[a-z_]+)*)?")
_INTERNALS: Any = importlib.import_module("pandas.core.internals")
_MANAGERS = (_INTERNALS.managers.BlockManager, _INTERNALS.managers.SingleBlockManager)
_VALUES = (pandas.Timestamp, pandas.Timedelta, pandas.Period, pandas.Interval, pandas.tseries.offsets.BaseOffset)
_MASKED: Any = pandas.arrays.BooleanArray.__mro__[1]


def rule(module: str, name: str) -> Rule | None:
    """Return the rule for a name; None if there is none."""
    if (module, name) in _FUNCTIONS:
        return _FUNCTIONS[module, name]
    if name == "NA" and module in ("pandas", "pandas._libs.missing"):
        return Rule(pandas.NA)
    if module == "pytz":  # pandas before 3 used it for time zones
        return Rule(Mark(f"pytz.{name}"), _pytz(name)) if name in ("_p", "_UTC") else None
    if not _MODULE.fullmatch(module) or not name.isidentifier():
        return None
    kind = getattr(importlib.import_module(module), name, None)
    if not isinstance(kind, type) or (kind.__module__, kind.__qualname__) != (module, name):
        return None
    return _of_class(kind)


def _pytz(name: str) -> Any:
    pytz = importlib.import_module("pytz")

    def call(*args: Any) -> Any:
        if name == "_p" and (not args or args[0] not in pytz.all_timezones_set):
            raise RefusedPickle("asks for a time zone that does not exist")
        return getattr(pytz, name)(*args)

    return call


def _of_class(kind: type) -> Rule | None:
    if issubclass(kind, _MANAGERS):
        return Rule(kind, _manager(kind), new=made(kind), build=_build_manager)
    if issubclass(kind, (pandas.DataFrame, pandas.Series)):
        return Rule(kind, new=made(kind), build=_build_frame)
    if issubclass(kind, (_EXTENSIONS.ExtensionArray, _EXTENSIONS.ExtensionDtype)):
        return Rule(
            kind, called(kind) if issubclass(kind, _EXTENSIONS.ExtensionDtype) else None, made(kind), _build_extension
        )
    if issubclass(kind, pandas.Index):
        return Rule(kind)
    if issubclass(kind, _VALUES):
        return Rule(kind, called(kind), build=attributes)
    if issubclass(kind, _LIBS["sparse"].IntIndex):
        return Rule(kind, lambda length, indices: kind(length, indices, check_integrity=True))
    if issubclass(kind, _LIBS["sparse"].BlockIndex):
        return Rule(kind, called(kind))
    return None


def _call(module: str, name: str, *args: Any) -> Any:
    return getattr(_LIBS[module], name)(*args)


def _manager(kind: type) -> Any:
    return lambda blocks, axes: _whole(kind(blocks, axes))


def _build_manager(manager: Any, state: Any) -> Any:
    manager.__setstate__(state)
    return _whole(manager)


def _whole(manager: Any) -> Any:
    """Check that each row of a manager is in exactly one block."""
    if isinstance(manager, _MANAGERS[1]):
        fits = len(manager.blocks) == 1 and len(manager.blocks[0].values) == len(manager.axes[0])
    else:
        places = numpy.concatenate([block.mgr_locs.as_array for block in manager.blocks] or [numpy.zeros(0, int)])
        fits = numpy.array_equal(numpy.sort(places), numpy.arange(len(manager.axes[0])))
        fits = fits and all(block.shape == (len(block.mgr_locs), len(manager.axes[1])) for block in manager.blocks)
    if not fits:
        raise RefusedPickle("contains a frame whose columns do not match")
    return manager


def _build_frame(frame: Any, state: Any) -> Any:
    if type(state) is not dict or not isinstance(state.get("_mgr"), _MANAGERS):
        raise RefusedPickle("contains a frame without columns")
    frame.__setstate__(state)
    return frame


def _build_extension(array: Any, state: Any) -> Any:
    attributes(array, state)
    return _coded(array)


def _coded(array: Any) -> Any:
    """Check that the parts of an array match."""
    if isinstance(array, pandas.Categorical):
        _check_codes(array.codes, len(array.categories))
        fits = True
    elif isinstance(array, _MASKED):
        fits = array._mask.dtype == bool and array._data.shape == array._mask.shape  # noqa: SLF001
    elif isinstance(array, pandas.arrays.SparseArray):
        fits = len(array.sp_values) == array.sp_index.npoints
    elif isinstance(array, pandas.arrays.IntervalArray):
        fits = len(array.left) == len(array.right)
    else:
        fits = True
    if not fits:
        raise RefusedPickle("contains an array whose parts do not match")
    return array


def _check_codes(codes: Any, count: int) -> None:
    codes = numpy.asarray(codes)
    if codes.size and not (codes.dtype.kind in "iu" and codes.min() >= -1 and codes.max() < count):
        raise RefusedPickle("contains category codes out of range")


def _backed(kind: Any, checksum: Any, state: Any) -> Any:
    if not (
        isinstance(kind, type)
        and issubclass(kind, _LIBS["arrays"].NDArrayBacked)
        and kind.__module__.startswith("pandas")
    ):
        raise RefusedPickle("makes an array of a class that is not pandas'")
    array = _call("arrays", "__pyx_unpickle_NDArrayBacked", kind, checksum, state)
    return array if state is None else _coded(array)


def _interval(kind: Any, checksum: Any, state: Any) -> Any:
    if not (isinstance(kind, type) and issubclass(kind, (pandas.Interval, pandas.arrays.IntervalArray))):
        raise RefusedPickle("makes an interval from something else")
    return _call("interval", "__pyx_unpickle_IntervalMixin", kind, checksum, state)


def _block(values: Any, placement: Any, dimensions: Any) -> Any:
    if not isinstance(values, (numpy.ndarray, _EXTENSIONS.ExtensionArray)):
        raise RefusedPickle("contains a block that is not an array")
    return _call("internals", "_unpickle_block", values, placement, dimensions)


def _index(function: Any) -> Any:
    def call(kind: Any, arguments: Any) -> Any:
        if not (isinstance(kind, type) and issubclass(kind, pandas.Index) and type(arguments) is dict):
            raise RefusedPickle("makes an index of a class that is not pandas'")
        if issubclass(kind, pandas.MultiIndex):
            for codes, level in zip(arguments["codes"], arguments["levels"], strict=True):
                _check_codes(codes, len(level))
        return function(kind, arguments)

    return call


def reconstructed(kind: Any, base: Any, state: Any) -> Any:
    """Do what ``copyreg._reconstructor`` does for a manager.

    Parameters
    ----------
    kind, base, state
        Its arguments, as the pickle gives them.

    Raises
    ------
    RefusedPickle
        They are not those of a manager.
    """
    if kind not in _MANAGERS or base is not object or state is not None:
        raise RefusedPickle("makes an object in a way that data does not")
    return kind.__new__(kind)


build_reconstructed = _build_manager


def _functions() -> dict[tuple[str, str], Rule]:
    libs = "pandas._libs"
    times = (
        *(("nattype", "_nat_unpickle"), ("nattype", "__nat_unpickle")),  # the latter in pandas before 3
        *(("timestamps", "_unpickle_timestamp"), ("timedeltas", "_timedelta_unpickle")),
    )
    table = {
        (f"{libs}.arrays", "__pyx_unpickle_NDArrayBacked"): Rule(Mark("pandas array"), _backed, build=_build_extension),
        (f"{libs}.interval", "__pyx_unpickle_IntervalMixin"): Rule(Mark("interval"), _interval, build=attributes),
        (f"{libs}.internals", "_unpickle_block"): Rule(Mark("pandas block"), _block),
    }
    for module, name in times:
        full = f"{libs}.tslibs.{module}"
        function = getattr(importlib.import_module(full), name, None)
        if function is not None:
            table[full, name] = Rule(Mark(f"{full}.{name}"), called(function))
    makers = {
        "base": "_new_Index",
        "datetimes": "_new_DatetimeIndex",
        "interval": "_new_IntervalIndex",
        "timedeltas": "_new_TimedeltaIndex",
    }
    for module, name in makers.items():
        full = f"pandas.core.indexes.{module}"
        function = getattr(importlib.import_module(full), name, None)
        if function is not None:
            table[full, name] = Rule(Mark(f"{full}.{name}"), _index(function))
    return table


_FUNCTIONS = _functions()
