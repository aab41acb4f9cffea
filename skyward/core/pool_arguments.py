"""Checks what `Compute` is given, before anything is started: each mistake gets an error that says what to write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from skyward.core import registry
from skyward.core.errors import ConfigError
from skyward.core.interfaces import Plugin, Provider, Trait

__all__ = ["either", "of_strangers", "plugins", "providers", "reads_data"]


def either(name: str, value: Any, other_name: str, other: Any, convert: Callable[[Any], Any] = lambda v: v) -> Any:
    """One of two spellings of an argument."""
    if value is not None and other is not None:
        raise ConfigError(f"{name}={value!r} and {other_name}={other!r} both set the same; give one")
    return convert(other) if other is not None else value


def providers(value: object) -> tuple[Provider, ...]:
    """Providers from an object, a name, a list of these, or None."""
    if value is None:
        return (registry.load(registry.PROVIDERS, "local")(),)
    if isinstance(value, (list, tuple)):
        if not value:
            raise ConfigError("provider=[] names no provider; leave it out for this machine")
        return tuple(provider for item in value for provider in providers(item))
    if isinstance(value, str):
        return (registry.provider(value),)
    if isinstance(value, type):
        raise ConfigError(f"provider={value.__name__} is a class; write {value.__name__}()")
    if not isinstance(value, Provider):
        raise ConfigError(
            f"provider={value!r} is not a provider; give an object such as sky.Local(), or one of the names "
            f"{', '.join(registry.names(registry.PROVIDERS))}"
        )
    return (value,)


def reads_data(results: object, providers: Sequence[Provider]) -> bool:
    """Whether results are read as data: as `results` says, else where machines are strangers'."""
    if results not in (None, "data", "any"):
        raise ConfigError(f'results={results!r} is unknown; it is "data", "any", or None to leave it to the provider')
    return results == "data" or (results is None and of_strangers(providers))


def of_strangers(providers: Sequence[Provider]) -> bool:
    """Whether any of the machines may be a stranger's."""
    return any(Trait.STRANGERS in provider.traits for provider in providers)


def plugins(value: object) -> tuple[Plugin, ...]:
    """The plugins of a list."""
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"plugins={value!r} is not a list; write plugins=[sky.plugins.joblib()]")
    for item in value:
        if not isinstance(item, Plugin):
            raise ConfigError(
                f"plugins: {item!r} is not a plugin; did you forget the parentheses of sky.plugins.joblib()?"
            )
    return tuple(value)
