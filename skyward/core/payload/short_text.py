"""A call as a short text, for messages about its failure, without running any code of its arguments.

What a class has for ``__repr__`` may take seconds, raise, or print megabytes; so objects are described by their class
and the attributes that are named like parameters, and arrays by their shape. Values with names like ``password`` are
left out, since messages end up in logs. Used for failures only.
"""

from __future__ import annotations

import collections
import functools
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from skyward.core.labels import label

__all__ = ["call_text", "short_text"]

_WIDTH = 80  # characters of an argument
_LINE = 100  # characters of a call that is written in one line
_MAX_ARGUMENTS = 12
_MAX_ITEMS = 6
_DEPTH = 3  # containers and objects inside one another
_MAX_BITS = 256  # of an integer that is written out

_PLAIN = (type(None), bool, float, complex, range, slice, type(...), type(NotImplemented))
_TEXTS = (str, bytes, bytearray)
_BRACKETS: dict[Any, tuple[str, str]] = {
    list: ("[", "]"), tuple: ("(", ")"), set: ("{", "}"), frozenset: ("{", "}"), collections.deque: ("[", "]"),
}  # fmt: skip
_MAPPINGS = (dict, collections.OrderedDict, collections.defaultdict, collections.Counter, types.MappingProxyType)
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, type)
_SHORT_ANYWAY = {"datetime", "decimal", "fractions", "pathlib", "uuid", "zoneinfo"}  # modules whose reprs are
_SHAPED = {"cupy", "jax", "jaxlib", "numpy", "pandas", "polars", "pyarrow", "scipy", "tensorflow", "torch", "xarray"}
_SECRET = re.compile(r"passw|secret|credential|(api|private|access)_?key|(^|_)(pwd|token|auth)$", re.IGNORECASE)


def call_text(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Write a call: in one line if it is short, else with a line for each argument. Never raises.

    Parameters
    ----------
    function, args, kwargs
        What was called.
    """
    try:
        name, names = label(function), _parameters(function)
    except Exception:  # a __getattr__ of the user's
        name, names = type(function).__qualname__, ()
    try:
        parts = [
            _hidden(names[index] if index < len(names) else "") or short_text(value)
            for index, value in enumerate(islice(args, _MAX_ARGUMENTS))
        ]
        parts += [
            f"{key}={_hidden(key) or short_text(value)}"
            for key, value in islice(kwargs.items(), _MAX_ARGUMENTS - len(parts))
        ]
        if (more := len(args) + len(kwargs) - len(parts)) > 0:
            parts.append(f"... ({more} more)")
    except Exception:  # as above
        parts = ["..."]
    line = f"{name}({', '.join(parts)})"
    return line if len(line) <= _LINE else "".join([f"{name}(\n", *(f"    {part},\n" for part in parts), ")"])


def short_text(value: Any) -> str:
    """Describe a value in about 80 characters at most. Never raises, and runs no code of the user's classes."""
    try:
        text = _text(value, _DEPTH)
    except Exception:  # what looked like an array, say, is something else
        text = f"<{type(value).__qualname__}>"
    text = text.replace("\n", "\\n")
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 3]}..."


def _hidden(name: str) -> str:
    return "'***'" if _SECRET.search(name) else ""


def _text(value: Any, depth: int) -> str:
    kind = type(value)
    if kind in _PLAIN:
        return repr(value)
    if kind is int:
        return repr(value) if value.bit_length() <= _MAX_BITS else f"<int of {value.bit_length():,} bits>"
    if kind in _TEXTS:
        return _excerpt(value)
    if kind in _BRACKETS:
        return _items(value, kind, depth)
    if kind in _MAPPINGS:
        return _pairs(value, depth)
    if kind in _FUNCTIONS:
        return label(value)
    if kind is functools.partial:
        return f"partial({label(value)}, ...)"
    return _object(value, kind, depth)


def _excerpt(value: str | bytes | bytearray) -> str:
    if len(value) <= _WIDTH:
        return repr(value)
    count = f"{len(value):,} {'characters' if isinstance(value, str) else 'bytes'}"
    return f"{value[: _WIDTH - len(count) - 8]!r}... {count}"


def _items(value: Any, kind: type, depth: int) -> str:
    if depth == 0:
        return f"<{kind.__name__} of {len(value):,}>"
    texts = [_text(item, depth - 1) for item in islice(value, _MAX_ITEMS)]
    if len(value) > _MAX_ITEMS:
        texts.append(f"... {len(value):,} in total")
    opening, closing = _BRACKETS[kind]
    comma = "," if kind is tuple and len(value) == 1 else ""
    return f"{opening}{', '.join(texts)}{comma}{closing}"


def _pairs(value: Mapping[Any, Any], depth: int) -> str:
    if depth == 0:
        return f"<{type(value).__name__} of {len(value):,}>"
    texts = [
        f"{_text(key, depth - 1)}: {(type(key) is str and _hidden(key)) or _text(item, depth - 1)}"
        for key, item in islice(value.items(), _MAX_ITEMS)
    ]
    if len(value) > _MAX_ITEMS:
        texts.append(f"... {len(value):,} in total")
    return f"{{{', '.join(texts)}}}"


def _object(value: Any, kind: type, depth: int) -> str:
    root = kind.__module__.partition(".")[0]
    if root in _SHORT_ANYWAY:
        return repr(value)
    if root in _SHAPED:
        return _shaped(value, kind)
    state = _state(value)
    if depth == 0 or state is None:
        return f"<{kind.__qualname__}>"
    defaults = _defaults(kind)
    texts = [
        f"{name}={_hidden(name) or _text(state[name], depth - 1)}"
        for name in _names(kind)
        if name in state and not _same(state[name], defaults.get(name, defaults))
    ]
    return f"{kind.__qualname__}({', '.join(texts)})"


def _shaped(value: Any, kind: type) -> str:
    if any(base.__name__ == "generic" for base in kind.__mro__):  # numpy's scalars
        return repr(value) if value.nbytes <= _WIDTH else f"<{kind.__name__} of {value.nbytes:,} bytes>"
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    what = " ".join(str(part) for part in (dtype, shape and tuple(shape)) if part is not None)
    return f"<{kind.__name__} {what}>" if what else f"<{kind.__name__}>"


def _state(value: Any) -> Mapping[str, Any] | None:
    try:
        state = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return None
    return state if type(state) is dict else None


def _names(kind: type) -> Iterable[str]:
    """Parameters of the class, whose attributes often have the same names: of dataclasses and scikit-learn's models."""
    init = vars(kind).get("__init__") or getattr(kind, "__init__", None)
    return _parameters(init)[1:]


def _defaults(kind: type) -> Mapping[str, Any]:
    init = vars(kind).get("__init__") or getattr(kind, "__init__", None)
    if type(init) is not types.FunctionType:
        return {}
    code, values = init.__code__, init.__defaults__ or ()
    names = code.co_varnames[code.co_argcount - len(values) : code.co_argcount]
    return {**dict(zip(names, values, strict=True)), **(init.__kwdefaults__ or {})}


def _parameters(function: object) -> tuple[str, ...]:
    if type(function) is not types.FunctionType:
        return ()
    code = function.__code__
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def _same(value: Any, default: Any) -> bool:
    """Whether it is the default, without comparing by code of others."""
    return value is default or (type(value) is type(default) and type(value) in (int, float, str) and value == default)
