"""Which providers a command asks: those that are named, those that the ledger knows, or all with credentials.

They are asked at the same time; one that fails takes nothing from the others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Protocol, Self, TypeAlias, TypeVar, runtime_checkable

import typer

from skyward.core import registry
from skyward.core.errors import AuthFailed, CloudError, ConfigError, SkywardError
from skyward.core.interfaces import Provider, Rental, Trait
from skyward.core.ledger import PoolEntry

__all__ = ["Answer", "NamedProviders", "Source", "ask", "found", "named", "of_pool", "rentals"]

_T = TypeVar("_T")
_HURRY = 15.0  # seconds for which an API that fails is asked again while somebody waits
_SETTING = re.compile(r",(?=[A-Za-z_]\w*=)")

NamedProviders: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--provider",
        "-p",
        metavar="NAME[:SETTING=VALUE,...]",
        help="A provider, perhaps with its settings, such as verda:region=FIN-01. May be repeated.",
    ),
]


@runtime_checkable
class _Cloud(Protocol):
    """What `skyward.providers.base.CloudProvider` has besides a Rental's methods."""

    def make_driver(self) -> Any: ...

    def hurried(self, seconds: float) -> Self: ...


@dataclass(frozen=True)
class Source:
    """A provider with its settings, or why there is none.

    Equal ones have the same `key`: the name, and the settings as JSON.
    """

    key: tuple[str, str]
    made: Provider | SkywardError

    def __str__(self) -> str:
        return self.key[0]

    @property
    def provider(self) -> Provider:
        """The provider; raises why there is none."""
        if isinstance(self.made, SkywardError):
            raise self.made
        return self.made

    @property
    def rental(self) -> Rental:
        """The provider, if it rents machines."""
        provider = self.provider
        if not isinstance(provider, Rental):
            raise ConfigError(f"{self} has no machines that cost: there is nothing to look after")
        return provider


@dataclass(frozen=True)
class Answer(Generic[_T]):
    """What one source said."""

    source: Source
    value: _T | None
    error: SkywardError | None

    @property
    def trouble(self) -> str:
        """The error, beginning with the source's name."""
        text = str(self.error)
        return text if text.startswith(str(self.source)) else f"{self.source}: {text}"


def named(texts: Iterable[str]) -> list[Source]:
    """From ``verda``, ``verda:region=FIN-01`` or ``libcloud:digitalocean,key=...``; values may be JSON."""
    sources = []
    for text in texts:
        name, _, rest = text.partition(":")
        settings: dict[str, object] = {}
        positional: list[object] = []
        for number, part in enumerate(_SETTING.split(rest) if rest else []):
            key, equals, value = part.partition("=")
            if equals and key.isidentifier():
                settings[key] = _value(value)
            elif number == 0 and part and not equals:
                positional.append(part)
            else:
                raise typer.BadParameter(f"{text!r} is not NAME:SETTING=VALUE,SETTING=VALUE", param_hint="--provider")
        sources.append(_source(name, settings, *positional))
    return sources


def of_pool(pool: PoolEntry) -> list[Source]:
    """Those that a pool of the ledger buys from."""
    return [_source(name, settings) for name, settings in pool.providers]


def found(tell: Callable[[str], None]) -> list[Source]:
    """All that rent machines and for which credentials are found; `tell` is told of those that are broken."""

    def look(name: str) -> Source | None:
        try:
            return _source(name, {}) if _is_set_up(registry.load(registry.PROVIDERS, name)) else None
        except SkywardError as error:
            tell(str(error))
        except Exception as error:  # a plug-in's own; the others are wanted all the same
            tell(f"{name}: {type(error).__name__}: {error}")
        return None

    names = rentals()
    with ThreadPoolExecutor(max(1, len(names)), "skyward-find") as threads:  # it may take time: some ask a network
        return [source for source in threads.map(look, names) if source is not None]


def rentals() -> list[str]:
    """Names of all registered providers that rent machines, and of those that can't be loaded."""
    names = []
    # All are imported here, one after another: threads that do so at the same time may wait for each other for ever.
    for name in registry.names(registry.PROVIDERS):
        try:
            if Trait.RENTED in registry.load(registry.PROVIDERS, name).traits:
                names.append(name)
        except ConfigError:
            names.append(name)
    return names


def ask(sources: Sequence[Source], question: Callable[[Source], _T]) -> list[Answer[_T]]:
    """Put a question to all at the same time; equal ones are asked once."""
    different = list({source.key: source for source in sources}.values())

    def one(source: Source) -> Answer[_T]:
        try:
            return Answer(source, question(source), None)
        except SkywardError as error:
            return Answer(source, None, error)
        except Exception as error:  # a gap in a provider's error map must not cost the others' answers
            return Answer(source, None, CloudError(f"{source}: {type(error).__name__}: {error}"))

    with ThreadPoolExecutor(max(1, len(different)), "skyward-ask") as threads:
        return list(threads.map(one, different))


def _is_set_up(kind: Callable[[], Provider]) -> bool:
    try:
        provider = kind()
    except TypeError:  # it is nothing without arguments: only a pool, or --provider, can say them
        return False
    try:
        if isinstance(provider, _Cloud):
            provider.make_driver()
    except AuthFailed:  # the usual case: not everybody has an account everywhere
        return False
    return True


def _source(name: str, settings: Mapping[str, object], *positional: object) -> Source:
    key = (name, json.dumps([*positional, settings], sort_keys=True))
    try:
        provider = registry.provider(name, settings, *positional)
    except SkywardError as error:
        return Source(key, error)
    return Source(key, provider.hurried(_HURRY) if isinstance(provider, _Cloud) else provider)


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text
