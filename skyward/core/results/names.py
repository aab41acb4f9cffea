"""Which names the results of a pool may refer to: those of data, and those its user trusts."""

from __future__ import annotations

import copyreg
import functools
import importlib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from skyward.core.errors import ConfigError
from skyward.core.payload import driver_classes
from skyward.core.results import failures, stdlib
from skyward.core.results.rules import Mark, RefusedPickle, Rule, attributes

__all__ = ["Allowed", "Trusted", "library"]

# Modules with the rules of one library each, imported when a result refers to that library.
_LIBRARIES = {
    "numpy": "skyward.core.results.arrays",
    "pandas": "skyward.core.results.frames",
    "pytz": "skyward.core.results.frames",
    "scipy": "skyward.core.results.models",
    "sklearn": "skyward.core.results.models",
}
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def library(root: str) -> Any:
    """Import the module with the rules of a library."""
    return importlib.import_module(_LIBRARIES[root])


@dataclass(frozen=True, slots=True)
class Trusted:
    """What a user allows in results in addition to data.

    Attributes
    ----------
    names
        Module and qualified name of classes and functions.
    modules
        Modules whose classes are trusted, including those of their submodules.
    objects
        Classes and functions that were given as objects; those of ``__main__`` have no name elsewhere.
    """

    names: frozenset[tuple[str, str]] = frozenset()
    modules: frozenset[str] = frozenset()
    objects: tuple[object, ...] = ()

    @classmethod
    def parse(cls, value: object) -> Trusted:
        """Parse classes, functions, and strings such as ``"package.module"`` or ``"package.module:Class"``.

        Raises
        ------
        ConfigError
            `value` is anything else.
        """
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ConfigError(f'trusted={value!r} is not a list; write trusted=[Point], or ["package.module:Point"]')
        names, modules = set(), set()
        for item in value:
            if isinstance(item, str):
                module, colon, name = item.partition(":")
                if not _DOTTED.fullmatch(module) or (colon and not _DOTTED.fullmatch(name)):
                    raise ConfigError(f'trusted: {item!r} is not "package.module" or "package.module:Class"')
                (names.add((module, name)) if colon else modules.add(module))
            elif callable(item) and hasattr(item, "__qualname__") and hasattr(item, "__module__"):
                names.add((item.__module__, item.__qualname__))
            else:
                raise ConfigError(f"trusted: {item!r} is not a class; use classes, or names of modules")
        return cls(frozenset(names), frozenset(modules), tuple(item for item in value if not isinstance(item, str)))

    def rule(self, module: str, name: str) -> Rule | None:
        """Return the rule for a name; None if it is not trusted."""
        given = next((item for item in self.objects if _is_called(item, module, name)), None)
        if given is not None:
            return _of_trusted(given)
        named = (module, name) in self.names
        if not named and not any(module == each or module.startswith(f"{each}.") for each in self.modules):
            return None
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part, None)
        is_class = isinstance(found, type) and _is_called(found, module, name)
        if found is None or not (named or is_class):
            return None  # a module is trusted for its own classes, not for what it imports
        return _of_trusted(found)


def _is_called(item: object, module: str, name: str) -> bool:
    return (getattr(item, "__module__", None), getattr(item, "__qualname__", None)) == (module, name)


def _of_trusted(found: Any) -> Rule:
    if not isinstance(found, type):
        return Rule(found, found, build=_full_state, items=True)
    return Rule(found, found, functools.partial(found.__new__, found), build=_full_state, items=True)


def _full_state(made: Any, state: Any) -> Any:
    """Set the state as pickle itself does."""
    if hasattr(type(made), "__setstate__"):
        made.__setstate__(state)
        return made
    slots = None
    if isinstance(state, tuple) and len(state) == 2:
        state, slots = state
    attributes(made, state or None)
    for name, value in (slots or {}).items():
        setattr(made, name, value)
    return made


class Allowed:
    """The names that the results of one pool may refer to.

    Parameters
    ----------
    trusted
        What its user trusts in addition to data.
    """

    def __init__(self, trusted: Trusted) -> None:
        self._trusted = trusted
        self._known: dict[tuple[str, str], Rule] = {
            ("skyward.core.payload.exceptions", "_rebuild"): failures.REBUILD,
            ("skyward.core.payload.driver_classes", "find_owned"): Rule(Mark("find_owned"), self._owned),
            ("cloudpickle.cloudpickle", "_builtin_type"): Rule(Mark("_builtin_type"), self._builtin_type),
            ("copyreg", "_reconstructor"): Rule(Mark("_reconstructor"), self._remade, build=_build_remade),
        }

    def __repr__(self) -> str:
        return f"<Allowed {len(self._known)} names so far; {self._trusted}>"

    def __call__(self, module: str, name: str) -> Rule:
        """Return the rule for a name. Raises `RefusedPickle` if there is none."""
        rule = self._known.get((module, name))
        if rule is None:
            rule = self._known[module, name] = self._find(module, name)
        return rule

    def _find(self, module: str, name: str) -> Rule:
        rule = self._trusted.rule(module, name) or stdlib.rule(module, name) or failures.rule(module, name)
        root = module.partition(".")[0]
        if rule is None and root in _LIBRARIES:
            rule = library(root).rule(module, name)
        if rule is None:
            raise _refusal(module, name)
        return rule

    def _owned(self, tracker: Any, module: Any, name: Any) -> Rule:
        """Return the rule for a class that was sent by value, if it is an exception or trusted."""
        kind = driver_classes.find(tracker) if type(tracker) is str else None
        if kind is None:
            raise RefusedPickle(
                f"contains a {name} of {module}, a class that was made on the node; its code is not accepted",
                is_odd=False,
            )
        if any(item is kind for item in self._trusted.objects):
            return _of_trusted(kind)
        rule = self._trusted.rule(kind.__module__, kind.__qualname__) or failures.of_class(kind)
        if rule is None:
            raise RefusedPickle(f"contains a {kind.__qualname__} of {kind.__module__}", kind.__qualname__)
        return rule

    def _builtin_type(self, name: Any) -> Rule:
        rule = stdlib.rule("types", name) if type(name) is str else None
        if rule is None:
            raise _refusal("types", str(name))
        return rule

    def _remade(self, kind: Any, base: Any, state: Any) -> Any:
        if isinstance(kind, type) and self._trusted.rule(kind.__module__, kind.__qualname__):
            return copyreg._reconstructor(kind, base, state)  # type: ignore[attr-defined]  # noqa: SLF001
        return _rules_of(kind).reconstructed(kind, base, state)


def _build_remade(made: Any, state: Any) -> Any:
    if type(made).__module__.partition(".")[0] in _LIBRARIES:
        return _rules_of(type(made)).build_reconstructed(made, state)
    return _full_state(made, state)


def _rules_of(kind: Any) -> Any:
    root = kind.__module__.partition(".")[0] if isinstance(kind, type) else ""
    if root not in ("pandas", "scipy"):
        raise RefusedPickle("makes an object in a way that data does not")
    return library(root)


def _refusal(module: str, name: str) -> RefusedPickle:
    """Explain why a name is refused; what to trust is suggested only if this process knows it to be a class."""
    if module.partition(".")[0] == "cloudpickle":
        code = "contains a function or class with its code, which is how lambdas and those of __main__ are sent"
        return RefusedPickle(code, is_odd=False)
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = vars(found).get(part) if hasattr(found, "__dict__") else None
    if not isinstance(found, type) or (found.__module__, found.__qualname__) != (module, name):
        return RefusedPickle(f"refers to {module}.{name}, which is not data")
    if module.partition(".")[0] in sys.stdlib_module_names:
        return RefusedPickle(f"contains a {module}.{name}, which is not data", is_odd=False)
    return RefusedPickle(f"contains a {module}.{name}", f"{module}:{name}")
