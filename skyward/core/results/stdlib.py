"""What results may contain of the standard library: values, and no way to reach anything else."""

from __future__ import annotations

import array
import builtins
import collections
import datetime
import decimal
import fractions
import pathlib
import random
import types
import uuid
import zoneinfo
from collections.abc import Sequence
from typing import Any

from skyward.core.results.rules import Mark, Pending, RefusedPickle, Rule, attributes, called, made

__all__ = ["rule"]


def rule(module: str, name: str) -> Rule | None:
    """Return the rule for a name; None if there is none."""
    return _RULES.get((module, name))


def _of_none(value: Any) -> type:
    if value is not None and value is not NotImplemented and value is not Ellipsis:
        raise RefusedPickle("asks for the type of something")
    return type(value)


def _attribute(of: Any, name: Any) -> Rule:
    """Allow ``getattr`` for the constructor of time zones, and nothing else."""
    if of is not zoneinfo.ZoneInfo or name != "_unpickle":
        raise RefusedPickle(f"asks for an attribute {name!r}" if isinstance(name, str) else "asks for an attribute")
    return _ZONE


def _zone(key: Any, from_cache: Any) -> zoneinfo.ZoneInfo:
    if type(key) is not str:
        raise RefusedPickle("asks for a time zone that does not exist")
    return zoneinfo.ZoneInfo(key) if from_cache else zoneinfo.ZoneInfo.no_cache(key)


def _default_dict(factory: Any = None) -> Any:
    if factory is not None and factory not in _FACTORIES:
        raise RefusedPickle("contains a defaultdict whose factory is not a plain type")
    return collections.defaultdict(factory)


def _deque(items: Sequence[Any] = (), maxlen: int | None = None) -> Any:
    if items or not (maxlen is None or type(maxlen) is int):
        raise RefusedPickle("makes a deque in an unusual way")
    return collections.deque(maxlen=maxlen)


def _uuid(_: Any, state: Any) -> uuid.UUID:
    safe = state.get("is_safe", uuid.SafeUUID.unknown.value)
    return uuid.UUID(int=state["int"], is_safe=uuid.SafeUUID(safe))


def _array(kind: Any, code: Any, machine_format: Any, data: Any) -> Any:
    if kind is not array.array or type(data) is not bytes:
        raise RefusedPickle("makes an array from something else")
    return array._array_reconstructor(kind, code, machine_format, data)  # type: ignore[attr-defined]  # noqa: SLF001


def _random(generator: Any, state: Any) -> Any:
    generator.setstate(state)
    return generator


def _counter(counts: Any) -> Any:
    if type(counts) is not dict:
        raise RefusedPickle("makes a Counter from something that is not a dict")
    return collections.Counter(counts)


_ZONE = Rule(Mark("zoneinfo.ZoneInfo._unpickle"), _zone)
_FACTORIES = (int, float, str, bool, list, dict, set, tuple, bytes, complex, frozenset, collections.Counter)

_VALUES = (*_FACTORIES, bytearray, range, slice, object, zoneinfo.ZoneInfo)
_PATHS = (
    *(pathlib.PurePath, pathlib.PurePosixPath, pathlib.PureWindowsPath),
    *(pathlib.Path, pathlib.PosixPath, pathlib.WindowsPath),
)


def _rules() -> dict[tuple[str, str], Rule]:
    rules = [Rule(kind) for kind in _VALUES]
    rules += [
        Rule(complex, called(complex, float, int)),
        Rule(bytearray, called(bytearray, bytes)),
        Rule(range, called(range, int)),
        Rule(slice, called(slice)),
        Rule(set, called(set, list)),
        Rule(frozenset, called(frozenset, list)),
        Rule(object, new=made(object), call=called(object)),
        Rule(datetime.date, called(datetime.date, bytes, int)),
        Rule(datetime.time, called(datetime.time)),
        Rule(datetime.datetime, called(datetime.datetime)),
        Rule(datetime.timedelta, called(datetime.timedelta, int)),
        Rule(datetime.timezone, called(datetime.timezone)),
        Rule(decimal.Decimal, called(decimal.Decimal, str)),
        Rule(fractions.Fraction, called(fractions.Fraction, int)),
        Rule(uuid.UUID, new=lambda: Pending("UUID"), build=_uuid),
        Rule(uuid.SafeUUID, called(uuid.SafeUUID)),
        Rule(collections.OrderedDict, called(collections.OrderedDict), build=attributes, items=True),
        Rule(collections.defaultdict, _default_dict, build=attributes, items=True),
        Rule(collections.Counter, _counter),
        Rule(collections.deque, _deque, build=attributes, items=True),
        Rule(types.SimpleNamespace, called(types.SimpleNamespace), build=attributes),
        Rule(random.Random, called(random.Random), build=_random),
        *(
            Rule(kind, new=made(kind), build=attributes)
            for kind in (collections.UserDict, collections.UserList, collections.UserString, collections.ChainMap)
        ),
    ]
    table = {(rule.value.__module__, rule.value.__qualname__): rule for rule in rules}
    for path in _PATHS:
        table["pathlib", path.__name__] = table[path.__module__, path.__name__] = Rule(path, called(path, str))
    for name in ("Ellipsis", "NotImplemented"):
        table["builtins", name] = Rule(getattr(builtins, name))
    table["builtins", "type"] = Rule(Mark("type"), _of_none)
    table["builtins", "getattr"] = Rule(Mark("getattr"), _attribute)
    table["array", "_array_reconstructor"] = Rule(Mark("array._array_reconstructor"), _array)
    return table | {("array", "array"): Rule(array.array)}


_RULES = _rules()
