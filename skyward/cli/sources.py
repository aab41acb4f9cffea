"""Which providers a command queries: those given, those in the ledger, or all with credentials.

They are queried in parallel; one that fails does not affect the others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Generic, TypeAlias, TypeVar

import typer

from skyward.core import registry
from skyward.core.errors import AuthFailed, CloudError, ConfigError, PluginNotFound, SkywardError
from skyward.core.interfaces import Inspectable, Provider, Rental, Trait
from skyward.core.machines.ledger import PoolEntry

__all__ = [
    "Answer",
    "NamedProviders",
    "ProviderSource",
    "ask",
    "at_once",
    "chosen",
    "named",
    "of_pool",
    "places",
    "plain",
]

_S = TypeVar("_S")
_T = TypeVar("_T")
_HURRY = 15.0  # seconds for which a failing API is retried while somebody waits
_SETTING = re.compile(r",(?=[A-Za-z_]\w*=)")

NamedProviders: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--provider",
        "-p",
        metavar="NAME[:SETTING=VALUE,...]",
        help="A provider, optionally with settings, such as verda:region=FIN-01. May be repeated.",
    ),
]


@dataclass(frozen=True)
class ProviderSource:
    """A provider with its settings, or the error that explains why there is none.

    Equal sources have the same `key`: the provider's name, and its settings as JSON.
    """

    key: tuple[str, str]
    made: Provider | SkywardError

    def __str__(self) -> str:
        return self.key[0]

    @property
    def place(self) -> str:
        """What it covers, in the syntax of `--provider`: a cloud may show only one region or project."""
        name, _, first = str(self).partition(":")
        settings = {key: value for key, value in json.loads(self.key[1]).items() if not isinstance(value, dict)}
        texts = [
            f"{key}={value if isinstance(value, str) else json.dumps(value)}"
            for key, value in settings.items()
            if value != first
        ]
        return ":".join(filter(None, (name, ",".join(filter(None, (first, *texts))))))

    @property
    def provider(self) -> Provider:
        """The provider; raises the error if there is none."""
        if isinstance(self.made, SkywardError):
            raise self.made
        return self.made

    @property
    def rental(self) -> Rental:
        """The provider, if it rents machines; otherwise raises `ConfigError`."""
        provider = self.provider
        if not isinstance(provider, Rental):
            raise ConfigError(f"{self} rents no machines, so there is nothing to manage")
        return provider

    @property
    def is_bare(self) -> bool:
        """Whether it has no provider because it needs settings and none were given."""
        error = isinstance(self.made, ConfigError) and not isinstance(self.made, PluginNotFound)
        return error and self.key[1] == "{}" and ":" not in str(self)


@dataclass(frozen=True)
class Answer(Generic[_T]):
    """The answer of one source, or its error."""

    source: ProviderSource
    value: _T | None
    error: SkywardError | None

    @property
    def trouble(self) -> str:
        """The error, prefixed with the source's name."""
        text = str(self.error)
        return text if text.startswith(str(self.source)) else f"{self.source}: {text}"


def named(texts: Iterable[str]) -> list[ProviderSource]:
    """Parse ``verda``, ``verda:region=FIN-01`` or ``libcloud:digitalocean,key=...``.

    Values may be JSON. In a list, quotes may be missing.
    """
    sources = []
    for text in texts:
        name, _, rest = text.partition(":")
        settings: dict[str, object] = {}
        for number, part in enumerate(_SETTING.split(rest) if rest else []):
            key, equals, value = part.partition("=")
            if equals and key.isidentifier():
                settings[key] = _value(value)
            elif number == 0 and part and not equals and "," not in part:
                name = f"{name}:{part}"
            else:
                raise typer.BadParameter(f"{text!r} is not NAME:SETTING=VALUE,SETTING=VALUE", param_hint="--provider")
        sources.append(_source(name, settings))
    return sources


def of_pool(pool: PoolEntry) -> list[ProviderSource]:
    """The providers of a pool in the ledger."""
    return [_source(name, settings) for name, settings in pool.providers]


def chosen(texts: Sequence[str] | None, pools: Iterable[PoolEntry] = ()) -> tuple[list[ProviderSource], list[str]]:
    """The sources to query: those of the pools, and those given, or else all that are set up.

    Parameters
    ----------
    texts
        What was given with ``--provider``.
    pools
        Pools in the ledger.

    Returns
    -------
    tuple
        The sources, and the names of those that are not set up.

    Raises
    ------
    ConfigError
        There is no source to query.
    """
    asked, others = [source for pool in pools for source in of_pool(pool)], list[str]()
    if texts:
        asked += named(texts)
    else:
        known = plain()
        is_set_up = at_once(_is_set_up, known)  # in parallel, since some need the network
        asked += [source for source, yes in zip(known, is_set_up, strict=True) if yes]
        others = [str(source) for source, yes in zip(known, is_set_up, strict=True) if not yes]
    if not asked:
        raise ConfigError("no provider has credentials here; run `skyward doctor` to see where each looks for them")
    return asked, others


def plain() -> list[ProviderSource]:
    """All providers that rent machines, with default settings, and those that can't be loaded."""
    sources = []
    # Sequentially: threads that import at the same time may deadlock.
    for name in registry.names(registry.PROVIDERS):
        try:
            kind = registry.load(registry.PROVIDERS, name)
        except ConfigError as error:
            sources.append(ProviderSource((name, "{}"), error))
            continue
        if Trait.RENTED in kind.traits:
            several = kind.found() if issubclass(kind, Inspectable) else ()
            sources += [_of(provider, {}) for provider in several] or [_source(name, {})]
    return sources


def places(sources: Iterable[ProviderSource], others: Sequence[str]) -> str:
    """Which sources were queried, and which were not."""
    asked = ", ".join(sorted({source.place for source in sources}))
    return f"{asked} (not set up, so not queried: {', '.join(others)})" if others else asked


def ask(sources: Sequence[ProviderSource], question: Callable[[ProviderSource], _T]) -> list[Answer[_T]]:
    """Query all sources in parallel; equal ones only once."""

    def one(source: ProviderSource) -> Answer[_T]:
        try:
            return Answer(source, question(source), None)
        except SkywardError as error:
            return Answer(source, None, error)
        except Exception as error:  # an unmapped error of one provider must not lose the others' answers
            return Answer(source, None, CloudError(f"{source}: {type(error).__name__}: {error}"))

    return at_once(one, list({source.key: source for source in sources}.values()))


def at_once(function: Callable[[_S], _T], items: Sequence[_S], max_threads: int = 100) -> list[_T]:
    """Map a function over items in parallel threads.

    Parameters
    ----------
    function
        The function.
    items
        Its arguments.
    max_threads
        How many calls may run at the same time.
    """
    # Not in a with-block, which would wait for running queries after Ctrl-C.
    threads = ThreadPoolExecutor(max(1, min(max_threads, len(items))), "skyward-cli")
    try:
        return list(threads.map(function, items))
    finally:
        threads.shutdown(wait=False)


def _is_set_up(source: ProviderSource) -> bool:
    if isinstance(source.made, Inspectable):
        try:
            source.made.check_credentials()
        except AuthFailed:  # the usual case: few have accounts everywhere
            return False
        except Exception:  # noqa: S110  reported when the source is queried
            pass
    return not source.is_bare


def _source(name: str, settings: Mapping[str, object]) -> ProviderSource:
    try:
        return _of(registry.provider(name, settings), settings)
    except SkywardError as error:
        return ProviderSource((name, json.dumps(settings, sort_keys=True)), error)


def _of(provider: Provider, given: Mapping[str, object]) -> ProviderSource:
    settings = provider.settings() if isinstance(provider, Rental) else given
    key = (provider.name, json.dumps(settings, sort_keys=True))
    return ProviderSource(key, provider.hurried(_HURRY) if isinstance(provider, Inspectable) else provider)


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        pass
    if text.startswith("[") and text.endswith("]"):  # the shell has removed the quotes, or nobody has written any
        return [part.strip().strip("\"'") for part in text[1:-1].split(",")]
    if "," in text:
        raise typer.BadParameter(
            f"{text!r}: if this is a list, put it in brackets, [{text}]; if it is a string with a comma, put it in "
            "quotes",
            param_hint="--provider",
        )
    return text
