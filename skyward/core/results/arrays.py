"""What results may contain of numpy: arrays, their types, scalars and random generators.

numpy trusts its pickles: a type whose state claims that it has no objects, or places its fields beyond its size, lets
its author read and write anywhere. So types are rebuilt from their description and must come out identical, and arrays
are made from bytes whose number must match.
"""

from __future__ import annotations

import functools
import math
import re
from typing import Any

import numpy

from skyward.core.results.rules import Mark, Pending, RefusedPickle, Rule, called

__all__ = ["rule"]

_SCALAR: Any = numpy.float64(0).__reduce__()[0]
_SPEC = re.compile(r"[?biufcOSUVMm]\d{0,9}")
_UNIT = re.compile(rb"[A-Za-z]{1,7}")
_MT19937_WORDS = 624


def rule(module: str, name: str) -> Rule | None:
    """Return the rule for a name; None if there is none."""
    module = module.replace("numpy.core.", "numpy._core.")
    found = _RULES.get((module, name))
    if found is not None or module not in ("numpy", "numpy._core._multiarray_umath") or not name.isidentifier():
        return found
    value = vars(numpy).get(name)  # not by getattr, which imports on demand
    if isinstance(value, type) and issubclass(value, numpy.generic):
        return Rule(value)
    if isinstance(value, numpy.ufunc) or name in _REDUCTIONS:  # such as functions that an estimator is given to call
        return Rule(value)
    return None


# --- types ----------------------------------------------------------------------------------------------------------


def _dtype(spec: Any, _align: Any = False, _copy: Any = False) -> Pending:
    if spec is not numpy.record and not (type(spec) is str and _SPEC.fullmatch(spec)):
        raise RefusedPickle("contains an array of an unknown type")
    return Pending(spec)


def _build_dtype(pending: Pending, state: Any) -> numpy.dtype[Any]:
    (spec,) = pending.args
    try:
        return _plain_dtype(spec, state)
    except TypeError:  # a structured type contains a dict, which can't be hashed
        return _make_dtype(spec, state)


def _make_dtype(spec: Any, state: Any) -> numpy.dtype[Any]:
    version, order, parts, names, fields, size, alignment, flags, *rest = state
    meta, unit = _metadata(rest[0] if rest else None, version)
    if names is not None:
        dtype = _structure(names, fields, size, bool(flags & 0x80))
    elif parts is not None:
        base, shape = parts
        dtype = numpy.dtype((_checked(base), shape))
    else:
        dtype = numpy.dtype(spec if unit is None else f"{spec}[{unit}]")
    if spec is numpy.record:
        dtype = numpy.dtype((numpy.record, dtype))
    if order == ">":
        dtype = dtype.newbyteorder(order)
    if meta:
        dtype = numpy.dtype(dtype, metadata=dict(meta))
    claimed = (order, parts, names, fields, size, alignment, flags)
    if dtype.__reduce__()[2][1:8] != claimed:
        raise RefusedPickle("contains an array whose type is not what it claims")
    return dtype


_plain_dtype = functools.lru_cache(maxsize=256)(_make_dtype)  # the same few are in most results


def _metadata(given: Any, version: int) -> tuple[Any, str | None]:
    """The user's metadata of a type, and the unit of a date or a duration."""
    if version < 4:
        return given, None
    meta, (unit, number, denominator, event) = given
    if not _UNIT.fullmatch(unit) or type(number) is not int or (denominator, event) != (1, 1):
        raise RefusedPickle("contains dates in an unknown unit")
    return meta, None if unit == b"generic" else f"{number}{unit.decode()}"


def _structure(names: Any, fields: Any, size: int, align: bool) -> numpy.dtype[Any]:
    rows = [fields[name] for name in names]
    described: dict[str, Any] = {
        "names": list(names),
        "formats": [_checked(row[0]) for row in rows],
        "offsets": [row[1] for row in rows],
        "itemsize": size,
    }
    if any(len(row) > 2 for row in rows):
        described["titles"] = [row[2] if len(row) > 2 else None for row in rows]
    return numpy.dtype(described, align=align)  # type: ignore[call-overload,no-any-return]


def _checked(dtype: Any) -> numpy.dtype[Any]:
    if not isinstance(dtype, numpy.dtype):
        raise RefusedPickle("contains an array with an invalid dtype")
    return dtype


# --- arrays ---------------------------------------------------------------------------------------------------------


def _shape(shape: Any) -> tuple[int, ...]:
    if type(shape) is not tuple or not all(type(size) is int and size >= 0 for size in shape):
        raise RefusedPickle("contains an array of an impossible shape")
    return shape


def _reconstruct(kind: Any, _shape: Any, _code: Any) -> Pending:
    if not any(kind is known for known in _VIEWS):
        raise RefusedPickle("makes an array of a class that is not numpy's")
    return Pending(kind)


def _build_array(pending: Pending, state: Any) -> Any:
    (kind,) = pending.args
    *_, shape, dtype, fortran, raw = state
    array = _from_raw(_shape(shape), _checked(dtype), "F" if fortran else "C", raw)
    return array if kind is numpy.ndarray else array.view(kind)


def _from_raw(shape: tuple[int, ...], dtype: numpy.dtype[Any], order: Any, raw: Any) -> Any:
    count = math.prod(shape)
    if type(raw) is list and dtype.hasobject and len(raw) == count:
        flat = numpy.empty(count, dtype)
        if dtype.kind == "O":
            flat[:] = numpy.fromiter(raw, dtype, count)  # which does not take a list of lists for a matrix
        else:
            for index, item in enumerate(raw):
                flat[index] = item
        return flat.reshape(shape, order=order)
    if type(raw) is not bytes or dtype.hasobject or len(raw) != count * dtype.itemsize:
        raise RefusedPickle("contains an array that is not as large as it claims")
    if not raw:
        return numpy.empty(shape, dtype)
    return numpy.frombuffer(bytearray(raw), dtype).reshape(shape, order=order)


def _from_buffer(used: dict[int, Any], buffer: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> Any:
    if _checked(dtype).hasobject or isinstance(buffer, numpy.ndarray):
        raise RefusedPickle("makes an array of objects from bytes")
    array: Any = numpy.frombuffer(buffer, dtype)
    address = array.__array_interface__["data"][0]
    if array.nbytes > 1 and address in used:  # Python caches bytes of length one
        raise RefusedPickle("makes two arrays from one buffer")
    used[address] = buffer
    if order == "K" and axes is not None:
        return array.reshape(_shape(shape)).transpose(axes)
    return array.reshape(_shape(shape), order=order)


def _scalar(dtype: Any, data: Any) -> Any:
    if _checked(dtype).hasobject or type(data) is not bytes or len(data) != dtype.itemsize:
        raise RefusedPickle("contains a number that is not as large as it claims")
    return _SCALAR(dtype, data)


# --- masked arrays --------------------------------------------------------------------------------------------------


def _masked(kind: Any, base: Any, _shape: Any, _code: Any) -> Pending:
    if kind is not numpy.ma.MaskedArray or base is not numpy.ndarray:
        raise RefusedPickle("makes a masked array of a class that is not numpy's")
    return Pending()


def _build_masked(_: Pending, state: Any) -> Any:
    *_rest, shape, dtype, fortran, raw, mask, fill = state
    order = "F" if fortran else "C"
    data = _from_raw(_shape(shape), _checked(dtype), order, raw)
    hidden = _from_raw(shape, numpy.ma.make_mask_descr(dtype), order, mask)
    made = numpy.ma.MaskedArray(data, mask=hidden)
    if fill is not None:
        made.fill_value = fill
    return made


# --- random ---------------------------------------------------------------------------------------------------------

_BITS = {
    kind.__name__: kind
    for kind in (
        *(numpy.random.MT19937, numpy.random.PCG64, numpy.random.PCG64DXSM),
        *(numpy.random.Philox, numpy.random.SFC64),
    )
}


def _bit_generator(kind: Any = "MT19937") -> Any:
    name = kind if type(kind) is str else getattr(kind, "__name__", None)
    if name not in _BITS or (type(kind) is not str and kind is not _BITS[name]):
        raise RefusedPickle("makes a random generator of a class that is not numpy's")
    return _BITS[name]()


def _random(kind: Any) -> Any:
    def call(bits: Any = "MT19937", _constructor: Any = None) -> Any:
        return kind(_bit_generator(bits) if type(bits) is str else _checked_bits(bits))

    return call


def _checked_bits(bits: Any) -> Any:
    if type(bits) not in _BITS.values():
        raise RefusedPickle("makes a random generator from something else")
    return bits


def _build_random(generator: Any, state: Any) -> Any:
    inner = state[0] if type(state) is tuple else state
    position = inner["state"].get("pos", 0) if type(inner) is dict else 0
    if type(position) is not int or not 0 <= position <= _MT19937_WORDS:
        raise RefusedPickle("contains a random generator in an impossible state")
    if type(state) is tuple and not isinstance(state[1], (numpy.random.SeedSequence, type(None))):
        raise RefusedPickle("contains a random generator with an invalid seed")
    generator.__setstate__(state)
    return generator


def _seeds(kind: Any, _checksum: Any, state: Any) -> Any:
    if kind is not numpy.random.SeedSequence or state is not None:
        raise RefusedPickle("makes a seed sequence from something else")
    return Pending()


def _build_seeds(_: Pending, state: Any) -> Any:
    entropy, children, pool, size, spawn_key, *_rest = state
    seeds = numpy.random.SeedSequence(entropy, spawn_key=spawn_key, pool_size=size, n_children_spawned=children)
    if not numpy.array_equal(seeds.pool, pool):
        raise RefusedPickle("contains a seed sequence that is not what it claims")
    return seeds


# --- the table ------------------------------------------------------------------------------------------------------

_VIEWS = (numpy.ndarray, numpy.matrix, numpy.recarray)
_REDUCTIONS = frozenset(("mean", "median", "max", "min", "sum", "prod", "std", "var", "amax", "amin", "any", "all"))
_MASKED_TYPE: Any = type(numpy.ma.masked)


def _rules() -> dict[tuple[str, str], Rule]:
    multi, pickled, bits = "numpy._core.multiarray", "numpy.random._pickle", "numpy.random.bit_generator"
    functions: dict[tuple[str, str], dict[str, Any]] = {
        ("numpy._core.numeric", "_frombuffer"): {"call": _from_buffer, "memory": True},
        (multi, "_reconstruct"): {"call": _reconstruct, "build": _build_array},
        (multi, "scalar"): {"call": _scalar},
        ("numpy.ma.core", "_mareconstruct"): {"call": _masked, "build": _build_masked},
        (pickled, "__bit_generator_ctor"): {"call": _bit_generator, "build": _build_random},
        (pickled, "__generator_ctor"): {"call": _random(numpy.random.Generator), "build": _build_random},
        (pickled, "__randomstate_ctor"): {"call": _random(numpy.random.RandomState), "build": _build_random},
        (bits, "__pyx_unpickle_SeedSequence"): {"call": _seeds, "build": _build_seeds},
    }
    table = {name: Rule(Mark(".".join(name)), **what) for name, what in functions.items()}
    table["numpy", "dtype"] = Rule(numpy.dtype, _dtype, build=_build_dtype)
    table["numpy", "ndarray"] = Rule(numpy.ndarray)
    for kind in (*_VIEWS, *_BITS.values(), numpy.ma.MaskedArray, numpy.record, numpy.random.SeedSequence):
        table[kind.__module__, kind.__name__] = table.get((kind.__module__, kind.__name__)) or Rule(kind)
    table[_MASKED_TYPE.__module__, _MASKED_TYPE.__name__] = Rule(_MASKED_TYPE, called(_MASKED_TYPE, type(None)))
    return table


_RULES = _rules()
