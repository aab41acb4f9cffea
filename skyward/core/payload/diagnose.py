"""Explains a failed pickling: which part of the value can't be pickled, where it is, and why. Not used otherwise."""

from __future__ import annotations

import io
import types
from collections.abc import Iterator, Mapping
from typing import Any

from skyward.core.interrupts import is_interrupt
from skyward.core.payload.by_value import Pickler

__all__ = ["describe", "find_culprit", "first_line", "in_short"]

_MAX_DEPTH = 12
_MAX_ITEMS = 10_000


def find_culprit(value: Any, what: str) -> str:
    """Describe the innermost part that does not pickle, as in ``argument 2.estimator._logger (a _thread.lock)``.

    Parameters
    ----------
    value
        What could not be pickled.
    what
        What to call it.
    """
    path, seen = what, {id(value)}
    for _ in range(_MAX_DEPTH):
        for step, part in _parts(value):
            if id(part) not in seen and not _pickles(part):
                seen.add(id(part))
                path, value = path + step, part
                break
        else:
            break
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"{path} (a {name})"


def _pickles(value: Any) -> bool:
    try:
        Pickler(io.BytesIO(), protocol=5).dump(value)
    except BaseException as error:
        if is_interrupt(error):
            raise
        return False
    return True


def _can_be_reduced(value: Any) -> bool:
    """Whether a value says what it is made of; if not, it is the culprit itself."""
    try:
        value.__reduce_ex__(5)
    except BaseException as error:
        if is_interrupt(error):
            raise
        return False
    return True


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """The parts of a value that its pickle would contain, each with the expression that leads to it."""
    if isinstance(value, Mapping):
        for count, (key, item) in enumerate(value.items()):
            if count > _MAX_ITEMS:
                return
            yield f"[{key!r}]", item
            yield f".keys()[{count}]", key
    elif isinstance(value, (list, tuple, set, frozenset)):
        for index, item in enumerate(value):
            if index > _MAX_ITEMS:
                return
            yield f"[{index}]", item
    elif isinstance(value, types.FunctionType):
        yield from _function_parts(value)
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
        yield ".__func__", value.__func__
    elif _can_be_reduced(value):
        state = getattr(value, "__dict__", None)
        if isinstance(state, dict):
            for name, item in state.items():
                yield f".{name}", item
        for name in getattr(type(value), "__slots__", ()):
            if isinstance(name, str) and hasattr(value, name):
                yield f".{name}", getattr(value, name)
        for index, item in enumerate(getattr(value, "args", ()) if isinstance(value, BaseException) else ()):
            yield f".args[{index}]", item
        if hasattr(value, "func") and hasattr(value, "keywords"):  # functools.partial has no __dict__ entries for these
            yield ".func", value.func
            yield ".args", value.args
            yield ".keywords", value.keywords


def _function_parts(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield f" -> {name} (closed over)", cell.cell_contents
        except ValueError:  # an empty cell
            continue
    for name in function.__code__.co_names:
        if name in function.__globals__ and not isinstance(function.__globals__[name], types.ModuleType):
            yield f" -> {name} (global)", function.__globals__[name]
    for index, item in enumerate(function.__defaults__ or ()):
        yield f" -> default {index}", item


def describe(error: BaseException) -> str:
    """Full name and text of an exception. Never raises."""
    try:
        return f"{type(error).__module__}.{type(error).__qualname__}: {error}"
    except Exception:  # the user's __str__ is broken
        return f"{type(error).__module__}.{type(error).__qualname__}"


def first_line(error: BaseException) -> str:
    """The first line of `describe`."""
    return describe(error).splitlines()[0]


def in_short(error: BaseException) -> str:
    """Type and first line of the text of an exception, of bounded length. Never raises."""
    name = type(error).__name__
    try:
        lines = str(error).strip().splitlines()
    except BaseException:  # the user's __str__ is broken
        lines = []
    return f"{name}: {lines[0]:.200}" if lines else name
