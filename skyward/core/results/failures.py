"""Exceptions in results: rebuilt from arguments and attributes, without running any code of their classes.

So an exception may be of any class that this process has loaded: what a program catches must not depend on where a task
ran. A class that does something by itself when an instance is destroyed is refused.
"""

from __future__ import annotations

import sys
from typing import Any

from skyward.core.results.rules import Mark, RefusedPickle, Rule
from skyward.core.visible import printed

__all__ = ["REBUILD", "is_known", "of_class", "rule"]

_ATTRIBUTES: Any = vars(BaseException)["__dict__"]  # bypasses what a class may define itself


def rule(module: str, name: str) -> Rule | None:
    """Return the rule for the name of an exception that is loaded here; None if there is none."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = vars(found).get(part) if isinstance(found, type) or type(found) is type(sys) else None
    if not isinstance(found, type) or (found.__module__, found.__qualname__) != (module, name):
        return None
    return of_class(found)


def of_class(kind: type) -> Rule | None:
    """Return the rule for a class, if it is a known exception."""
    return Rule(kind, lambda *args: _new(kind, args), build=_build) if is_known(kind) else None


def is_known(kind: object) -> bool:
    """Whether it is an exception class whose instances do nothing by themselves."""
    return isinstance(kind, type) and issubclass(kind, BaseException) and not hasattr(kind, "__del__")


def _rebuild(kind: Any, args: Any, state: Any) -> BaseException:
    if not is_known(kind) or type(args) is not tuple:
        raise RefusedPickle("makes an exception from something else")
    error = _new(kind, args)
    BaseException.args.__set__(error, _cleaned(args))  # type: ignore[attr-defined]
    return _build(error, state)


def _new(kind: Any, args: tuple[Any, ...]) -> BaseException:
    args = _cleaned(args)
    native = next(each for each in kind.__mro__ if each.__module__ == "builtins")
    try:
        error = native.__new__(kind, *args)
    except TypeError:
        error = native.__new__(kind)
    if not isinstance(error, kind):
        raise RefusedPickle("makes an exception from something else")
    return error  # type: ignore[no-any-return]


def _cleaned(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Make texts safe for a terminal, which is where most exceptions end up."""
    return tuple(printed(arg) if type(arg) is str else arg for arg in args)


def _build(error: BaseException, state: Any) -> BaseException:
    if state is None:
        return error
    if type(state) is not dict or not all(type(name) is str for name in state):
        raise RefusedPickle("gives an exception a state that is not a dict of attributes")
    if strange := [name for name in state if name.startswith("__") and name != "__notes__"]:
        raise RefusedPickle(f"sets {strange[0]} of an exception")
    _ATTRIBUTES.__get__(error).update(state)
    return error


REBUILD = Rule(Mark("skyward.core.payload.exceptions._rebuild"), _rebuild)
"""The rule for what a node's pickle of an exception calls."""
