"""What all providers on libcloud have in common, so that an adapter contains only what differs.

An adapter subclasses `CloudProvider` as a frozen dataclass, makes a driver, and translates libcloud's values into ours
in five methods. Third parties write adapters too, so the public names here are stable.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import threading
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self, TypeVar

import requests
import tenacity
from libcloud.common.exceptions import BaseHTTPError, RateLimitReachedError
from libcloud.common.types import InvalidCredsError, MalformedResponseError

from skyward.core.errors import (
    AuthFailed,
    CloudError,
    NotFound,
    ProvisioningError,
    RateLimited,
    SkywardError,
)
from skyward.core.interfaces import Check, Trait
from skyward.core.scope import Scope
from skyward.core.spec import Machine, MachineId, Offer, Offers, Order, Resources

__all__ = ["SECRET", "Check", "CloudProvider"]

_T = TypeVar("_T")

SECRET = {"secret": True}
"""Metadata of a dataclass field that must not be recorded."""

_PAUSE = (0.5, 20.0)  # seconds before a call is retried: first, and max


class _UnforeseenError(CloudError):
    """An error of no known type, such as a bug in the adapter. What was done is unknown; not retried."""


class _Driver(threading.local):
    """A libcloud driver for each thread: threads that share one get each other's replies."""

    driver: Any = None


# Not in the providers themselves, which are frozen, and pickled without their connections.
_drivers: weakref.WeakKeyDictionary[CloudProvider, _Driver] = weakref.WeakKeyDictionary()
_lock = threading.Lock()  # guards the table


class CloudProvider:
    """A cloud, through a libcloud driver. Subclasses are frozen dataclasses (``eq=False``).

    Attributes
    ----------
    name, traits, usual_start, patience, listing_delay, poll
        See `skyward.core.interfaces.Rental`.
    retry_for
        Seconds for which a call that failed on the network or was rate-limited is retried.
    """

    name: ClassVar[str]
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.SPOT, Trait.DESTROYS, Trait.RENTED})
    patience: ClassVar[float] = 900.0
    listing_delay: ClassVar[float] = 10.0
    poll: ClassVar[float] = 3.0
    usual_start: ClassVar[float] = 100.0
    retry_for: float = 60.0

    # --- what an adapter implements ---

    @abstractmethod
    def make_driver(self) -> Any:
        """Make a libcloud driver. Raises `AuthFailed`, naming where credentials were looked for, if there are none."""

    @abstractmethod
    def list_offers(self, driver: Any, resources: Resources) -> Iterable[Offer]:
        """List all offers; those that certainly do not meet `resources` may be left out."""

    @abstractmethod
    def create_machines(self, driver: Any, order: Order) -> Sequence[Machine]:
        """Create one machine of ``order.offer``, or up to ``order.count`` with ``Trait.BATCH``.

        The machine gets the order's tag and name (so that `list_machines` can return them), our host key and user key,
        and the watchdog; see `skyward.providers.first_boot`.
        """

    @abstractmethod
    def list_machines(self, driver: Any, tag: str | None) -> Sequence[Machine]:
        """List machines with this tag; None: with any tag of ours, which all begin with ``sky-``."""

    @abstractmethod
    def destroy_machine(self, driver: Any, id: MachineId) -> None:
        """Terminate one machine with all that belongs to it. `NotFound` counts as done; `CloudError` is retried."""

    def clear_leftovers(self, driver: Any, tag: str) -> None:
        """Remove everything else that carries the tag."""

    def resolved(self) -> Mapping[str, object]:
        """Return arguments that were left to the environment, such as region and project, without secrets.

        They are recorded, since whoever looks for machines later may do so in another environment.
        """
        return {}

    def map_error(self, error: Exception) -> SkywardError | None:
        """Map one of the vendor's own errors to ours; None leaves an error to the base class."""
        return None

    def examine(self, driver: Any) -> Iterable[Check]:
        """Check what ``skyward doctor`` shows beyond the credentials: balance, quotas, permissions."""
        return ()

    # --- called by core and the command line ---

    def offers(self, resources: Resources) -> Sequence[Offer]:
        """See `Provider.offers`."""
        return self._call(lambda driver: Offers(self.list_offers(driver, resources)))

    def create(self, order: Order) -> Sequence[Machine]:
        """See `Provider.create`. Retried only where that can't create more than was ordered."""
        again = (CloudError,) if Trait.SAFE_CREATE in self.traits else (RateLimited,)
        try:
            return self._call(lambda driver: self.create_machines(driver, order), again)
        except AuthFailed as error:
            cause = error.__cause__
            if error.scope is None and isinstance(cause, BaseHTTPError) and int(cause.code) == 403:
                # The account is known: this (spot machines, say) is forbidden, and something else may not be.
                raise AuthFailed(str(error), scope=Scope.OFFER) from cause
            raise

    def machines(self, tag: str) -> Sequence[Machine]:
        """See `Provider.machines`."""
        return self._call(lambda driver: self.list_machines(driver, tag))

    def all_machines(self) -> Sequence[Machine]:
        """See `Rental.all_machines`."""
        return self._call(lambda driver: self.list_machines(driver, None))

    def destroy(self, ids: Sequence[MachineId]) -> None:
        """Terminate machines; each is tried, whatever happens to the others.

        Raises
        ------
        ProvisioningError
            Why the first one that failed could not be terminated.
        """
        failed: SkywardError | None = None
        for id in ids:
            try:
                self._call(functools.partial(self.destroy_machine, id=id))
            except NotFound:
                pass
            except SkywardError as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def clear(self, tag: str) -> None:
        """See `Rental.clear`."""
        self._call(lambda driver: self.clear_leftovers(driver, tag))

    def settings(self) -> dict[str, object]:
        """See `Rental.settings`: the arguments that are not secrets or defaults, and what the environment supplied."""
        values = {
            item.name: getattr(self, item.name)
            for item in dataclasses.fields(self)  # type: ignore[arg-type]
            if item.init and not item.metadata.get("secret") and getattr(self, item.name) != _default(item)
        }
        given = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {**self.resolved(), **given}

    @classmethod
    def found(cls) -> Sequence[Self]:
        """See `Inspectable.found`."""
        return ()

    def check_credentials(self) -> None:
        """See `Inspectable.check_credentials`."""
        self.make_driver()

    def examination(self) -> list[Check]:
        """See `Inspectable.examination`; the first finding is whether the credentials work at all."""
        advice = "see docs/clouds.md for how credentials are found"
        try:
            self._call(lambda _: None)
        except AuthFailed as error:
            return [Check("credentials", None, str(error), f"if you use {self.name}, {advice}")]
        except SkywardError as error:
            return [Check("settings", False, str(error), advice)]
        try:
            count = len(self.all_machines())
        except CloudError as error:
            advice = "is the network down, is a proxy in between, or is the provider out of service?"
            return [Check("reachability", False, str(error), advice)]
        except SkywardError as error:
            return [Check("credentials", False, str(error), advice)]
        found = [Check("credentials", True, f"accepted; {count} machine(s) of skyward's")]
        try:
            found += self._call(lambda driver: list(self.examine(driver)))
        except SkywardError as error:
            found.append(Check("account", False, str(error), "the key may lack a permission"))
        return found

    def hurried(self, seconds: float) -> Self:
        """See `Inspectable.hurried`."""
        other = copy.copy(self)
        object.__setattr__(other, "retry_for", seconds)
        return other

    # --- the edge ---

    def _call(self, function: Callable[[Any], _T], again: tuple[type[SkywardError], ...] = (CloudError,)) -> _T:
        """Call with this thread's driver, map errors, and retry on those in `again`."""
        first, longest = _PAUSE
        backoff = tenacity.wait_random_exponential(multiplier=first, max=longest)

        def wait(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome is not None else None
            return max(backoff(state), (error.wait or 0.0) if isinstance(error, RateLimited) else 0.0)

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(
                lambda error: isinstance(error, again) and not isinstance(error, _UnforeseenError)
            ),
            stop=tenacity.stop_before_delay(self.retry_for),
            wait=wait,
            reraise=True,
        )
        result: _T = retrying(self._call_once, function)
        return result

    def _call_once(self, function: Callable[[Any], _T]) -> _T:
        with _lock:
            local = _drivers.setdefault(self, _Driver())
        fresh = local.driver is None
        try:
            if fresh:
                local.driver = self.make_driver()
            return function(local.driver)
        except SkywardError:
            raise
        except Exception as error:
            local.driver = None  # its connection or its token may be what is broken
            mapped = self.map_error(error) or self._mapped(error)
            renewable = isinstance(mapped, AuthFailed) and mapped.scope in (None, Scope.ACCOUNT, Scope.REGION)
            if renewable and not fresh:  # credentials may have expired, and have been renewed since
                return self._call_once(function)
            raise mapped from error

    def _mapped(self, error: Exception) -> SkywardError:
        """Map an error of libcloud's or requests'."""
        text = f"{self.name}: {_short(error)}"
        if isinstance(error, InvalidCredsError):
            return AuthFailed(f"{self.name}: {error.value}")  # str() would put it in quotes
        if isinstance(error, RateLimitReachedError):
            return RateLimited(text, float(error.retry_after or 0) or None)
        if isinstance(error, MalformedResponseError):
            # Its text contains the whole page.
            return CloudError(
                f"{self.name}: {error.value}: this is not a reply of the API; is a proxy in between, or is it down?"
            )
        if isinstance(error, BaseHTTPError):
            return _of_status(int(error.code), text)
        if isinstance(error, (requests.exceptions.RequestException, OSError)):
            return CloudError(f"{text} ({type(error).__name__})")
        return _UnforeseenError(f"{self.name}: {type(error).__name__}: {_short(error)}")


def _of_status(status: int, text: str) -> SkywardError:
    if status == 429:
        return RateLimited(text)
    if status in (401, 403):
        return AuthFailed(text)
    if status == 404:
        return NotFound(text)
    return CloudError(text) if status >= 500 or status == 408 else ProvisioningError(text)


def _short(error: Exception) -> str:
    """Shorten an error's text, which may contain a whole HTML page."""
    text = " ".join(str(error.message if isinstance(error, BaseHTTPError) else error).split())
    return text if len(text) < 500 else f"{text[:500]} …"


def _default(item: dataclasses.Field[Any]) -> object:
    return item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
