"""What the user's program itself defines goes to nodes by value, since nothing there has it by its name.

cloudpickle does that for functions, classes and type variables. Here is what it leaves to pickle, which names them, or
which fails: functions in a ``functools.cache``, generic functions of ``functools.singledispatch``, cached properties
(Python 3.11 gives each a lock) and ``typing.NewType``. A cache arrives empty.
"""

from __future__ import annotations

import functools
import sys
import types
import typing
from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import cloudpickle

__all__ = ["Pickler", "is_asked_for", "is_by_name", "is_of_the_program"]

_PROGRAM = ("__main__", "__mp_main__")


def is_of_the_program(module: str) -> bool:
    """Whether a module's name is that of the program that the user has started."""
    return module in _PROGRAM


def is_asked_for(module: str) -> bool:
    """Whether the user has asked cloudpickle to pickle what is in a module by value."""
    asked = cloudpickle.list_registry_pickle_by_value()
    return bool(asked) and any(module == name or module.startswith(f"{name}.") for name in asked)


def is_by_name(thing: Any) -> bool:
    """Whether a function, class or the like is sent by its name: it is found there, and is not the program's own."""
    module = getattr(thing, "__module__", None)
    if not isinstance(module, str) or is_of_the_program(module):
        return False
    found: Any = sys.modules.get(module)
    for part in getattr(thing, "__qualname__", "").split("."):
        found = getattr(found, part, None)
    return found is thing and not is_asked_for(module)


# --- caches ---


def _reduce_cache(function: Any) -> Any:
    if is_by_name(function):
        return function.__qualname__
    return _cached, (function.__wrapped__, function.cache_parameters())


def _cached(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def _reduce_cached_property(made: functools.cached_property[Any]) -> Any:
    return _cached_property, (made.func, made.attrname)


def _cached_property(function: Callable[[Any], Any], name: str | None) -> functools.cached_property[Any]:
    made = functools.cached_property(function)
    made.attrname = name  # as `__set_name__`, which is called for the attributes of a new class only
    return made


# --- generic functions ---


def _reduce_generic(function: types.FunctionType) -> Any:
    """Return what ``__reduce__`` would for a generic function of the program; None for any other function."""
    registry = vars(function).get("registry")
    if not isinstance(registry, types.MappingProxyType) or object not in registry or is_by_name(function):
        return None
    return _generic, (registry[object], dict(registry))


def _generic(function: Callable[..., Any], registry: Mapping[type, Callable[..., Any]]) -> Any:
    made = functools.singledispatch(function)
    for kind, each in registry.items():
        made.register(kind, each)
    return made


# --- types ---


def _reduce_new_type(made: Any) -> Any:
    if is_by_name(made):
        return made.__qualname__
    return _new_type, (made.__module__, made.__qualname__, made.__supertype__)


def _new_type(module: str, name: str, parent: Any) -> Any:
    make: Any = typing.NewType
    made = make(name, parent)
    made.__module__, made.__qualname__ = module, name
    return made


_REDUCERS: dict[type, Callable[[Any], Any]] = {
    type(functools.cache(is_by_name)): _reduce_cache,
    functools.cached_property: _reduce_cached_property,
    typing.NewType: _reduce_new_type,
}


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's, with these reducers."""

    dispatch_table: ClassVar[Any] = ChainMap(_REDUCERS, cloudpickle.Pickler.dispatch_table)

    def reducer_override(self, obj: Any) -> Any:
        """Return what ``__reduce__`` would, or NotImplemented for what this leaves to pickle."""
        if type(obj) is types.FunctionType and (reduced := _reduce_generic(obj)) is not None:
            return reduced
        return super().reducer_override(obj)
