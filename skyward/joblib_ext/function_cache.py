"""Caches pickles of functions as long as pickling a function again would certainly give the same result.

A function of a module is pickled by its name. A function of ``__main__``, or a lambda, is pickled with its code and all
that it uses: its globals, closure and defaults. These may change between two tasks of a call, and each task must see
them as they were when it was submitted. So a pickle is cached only if all of them are constants, and is used only as
long as they are the very same objects.
"""

from __future__ import annotations

import operator
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle

from skyward.core.payload.by_value import is_asked_for
from skyward.joblib_ext.computing import Computing

__all__ = ["StableFunctions"]

_ATOMS = (int, float, complex, str, bytes, bool, type(None), type(...))
_NAMED = (type, types.FunctionType, types.BuiltinFunctionType)
_MAX_FUNCTIONS = 32  # in the cache
_MISSING = object()
_SIZE = object()
_PLAIN = ("__code__", "__defaults__", "__doc__", "__name__", "__qualname__", "__module__")  # attributes of a function
_TABLES = ("__kwdefaults__", "__annotations__", "__dict__")  # those that are dicts
_attributes = operator.attrgetter(*_PLAIN, *_TABLES)
_ATTRIBUTES = object()


class StableFunctions:
    """Pickles of the functions of one call."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Any, bytes | None, list[tuple[Any, Any]]]] = {}

    def __repr__(self) -> str:
        return f"<StableFunctions {len(self._kept)}>"

    def pickled(self, function: Callable[..., Any]) -> bytes | None:
        """Return the function's pickle; None if it can't be cached, so the function must be pickled each time."""
        known = self._kept.get(id(function))
        if known is not None and known[0] is function:
            _, data, uses = known
            if data is None:
                return None
            for where, value in uses:
                if where[1] is _ATTRIBUTES:  # all at once, since each task looks at them
                    if not all(map(operator.is_, _attributes(where[0]), value)):
                        break
                elif _value_at(where) is not value:
                    break
            else:
                return data
        data, uses = self._make(function)
        if len(self._kept) >= _MAX_FUNCTIONS:
            self._kept.clear()
        self._kept[id(function)] = function, data, uses
        return data

    @staticmethod
    def _make(function: Callable[..., Any]) -> tuple[bytes | None, list[tuple[Any, Any]]]:
        uses: list[tuple[Any, Any]] = []
        if not _is_stable(function, uses, set()):
            return None, []
        try:
            return bytes(cloudpickle.dumps(function, protocol=5)), uses
        except Exception:  # pickling the task raises it again, and reports it
            return None, []


# Where a value was found: (dict, key), (dict, _SIZE), (object, attribute), or (module name, path in the module); or a
# tuple of values: (function, _ATTRIBUTES).
_Place = tuple[Any, Any]


def _value_at(place: _Place) -> Any:
    """Return the present value."""
    where, key = place
    if isinstance(where, dict):
        return len(where) if key is _SIZE else where.get(key, _MISSING)
    if isinstance(where, str):
        return _by_name(where, key)
    try:
        return getattr(where, key)
    except (AttributeError, ValueError):  # the latter from an empty cell
        return _MISSING


def _by_name(module: str, path: str) -> Any:
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, _MISSING)
    return found


def _is_stable(value: Any, uses: list[tuple[Any, Any]], seen: set[int]) -> bool:
    """Whether a value can't change without becoming another object.

    Parameters
    ----------
    value
        The value.
    uses
        Extended by the places that must keep their values, with these values.
    seen
        Ids of the values looked at so far; extended.
    """
    kind = type(value)
    if kind in _ATOMS or kind is types.CodeType or value is _MISSING or id(value) in seen:
        return True
    seen.add(id(value))
    if kind in (tuple, frozenset):
        return all(_is_stable(part, uses, seen) for part in value)
    if kind is types.ModuleType:
        name = str(value.__name__)
        uses.append(((sys.modules, name), value))
        return sys.modules.get(name) is value and not is_asked_for(name)
    if isinstance(value, _NAMED):
        module, path = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
        if isinstance(module, str) and module != "__main__" and _by_name(module, path) is value:
            uses.append(((module, path), value))
            return not is_asked_for(module)
    if kind is Computing:
        return _is_stable(value.function, uses, seen)
    if kind is types.FunctionType:
        parts = list(_parts(value))
        uses.append(((value, _ATTRIBUTES), _attributes(value)))
        uses += [(place, part) for place, part in parts if place[0] is not value]
        return all(_is_stable(part, uses, seen) for _, part in parts)
    return False


def _parts(function: types.FunctionType) -> Iterator[tuple[_Place, Any]]:
    """Yield what is pickled with a function that is pickled by value, each with its place."""
    for name in _PLAIN:
        yield (function, name), getattr(function, name)
    for table in (getattr(function, name) for name in _TABLES):
        if table is not None:
            yield (table, _SIZE), len(table)
            for key, part in table.items():
                yield (table, key), part
    for cell in function.__closure__ or ():
        yield (cell, "cell_contents"), _value_at((cell, "cell_contents"))
    for name in _global_names(function.__code__):
        # A name that is missing, such as that of a built-in or an attribute, must stay missing.
        yield (function.__globals__, name), function.__globals__.get(name, _MISSING)


def _global_names(code: types.CodeType) -> set[str]:
    """Return the names that code, and code nested in it, may look up in globals; includes names of attributes."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names
