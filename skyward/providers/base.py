"""Providers on libcloud: everything that they have in common, so that an adapter is what differs.

An adapter subclasses `CloudProvider` as a frozen dataclass, says how a driver is made, and turns libcloud's values into
ours in five methods. It comes from third parties too, so what is public here is kept.
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
from skyward.core.spec import Machine, MachineId, Offer, Order, Resources

__all__ = ["SECRET", "Check", "CloudProvider"]

_T = TypeVar("_T")

SECRET = {"secret": True}
"""Metadata of a dataclass field that must not be written down."""

_PAUSE = (0.5, 20.0)  # seconds before an API is asked again: at first, and at most


class _UnforeseenError(CloudError):
    """None of the errors that are known: a fault of the adapter's, say. What was done is not known; not asked again."""


class _Driver(threading.local):
    """A libcloud driver for each thread: one shared by two mixes up their replies."""

    driver: Any = None


# Not in the providers themselves: those are frozen, and pickled without their connections.
_drivers: weakref.WeakKeyDictionary[CloudProvider, _Driver] = weakref.WeakKeyDictionary()
_lock = threading.Lock()  # guards the table


class CloudProvider:
    """A cloud, through a libcloud driver. Subclasses are frozen dataclasses (``eq=False``).

    Attributes
    ----------
    name, traits, patience, settle
        As `skyward.core.interfaces.Rental` says.
    retry_for
        Seconds for which a call that failed on the way, or came too soon, is repeated.
    """

    name: ClassVar[str]
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.SPOT, Trait.DESTROYS, Trait.RENTED})
    patience: ClassVar[float] = 900.0
    listing_delay: ClassVar[float] = 10.0
    poll: ClassVar[float] = 3.0
    retry_for: float = 60.0

    # --- what an adapter says ---

    @abstractmethod
    def make_driver(self) -> Any:
        """A new libcloud driver. Raises `AuthFailed`, saying where credentials were sought, if there are none."""

    @abstractmethod
    def list_offers(self, driver: Any, resources: Resources) -> Iterable[Offer]:
        """All offers; those that surely do not meet `resources` may be left out."""

    @abstractmethod
    def create_machines(self, driver: Any, order: Order) -> Sequence[Machine]:
        """Take ``order.offer``: one machine, or up to ``order.count`` with ``Trait.BATCH``.

        The machine gets the order's tag and name (so that `list_machines` can tell them), our host key and user key and
        the watchdog; see `skyward.providers.first_boot`.
        """

    @abstractmethod
    def list_machines(self, driver: Any, tag: str | None) -> Sequence[Machine]:
        """Machines with this tag, or with any tag of ours (they all begin with ``sky-``) if it is None."""

    @abstractmethod
    def destroy_machine(self, driver: Any, id: MachineId) -> None:
        """End one machine with all that belongs to it. `NotFound` counts as done; `CloudError` is tried again."""

    def clear_leftovers(self, driver: Any, tag: str) -> None:
        """Remove what else carries the tag."""

    def resolved(self) -> Mapping[str, object]:
        """Arguments that were left out, as the environment has them now: region, project; no secrets.

        They are written down, since who looks for machines later may do so in another environment.
        """
        return {}

    def map_error(self, error: Exception) -> SkywardError | None:
        """The vendor's own errors in our words; None leaves an error to the base."""
        return None

    def examine(self, driver: Any) -> Iterable[Check]:
        """What ``skyward doctor`` looks at besides the credentials: balance, quotas, permissions."""
        return ()

    # --- what core and the command line call ---

    def offers(self, resources: Resources) -> Sequence[Offer]:
        """Kinds of machines that can be had."""
        return self._call(lambda driver: list(self.list_offers(driver, resources)))

    def create(self, order: Order) -> Sequence[Machine]:
        """Begin machines. Asked again only where that can't make more than was ordered."""
        again = (CloudError,) if Trait.SAFE_CREATE in self.traits else (RateLimited,)
        try:
            return self._call(lambda driver: self.create_machines(driver, order), again)
        except AuthFailed as error:
            cause = error.__cause__
            if error.scope is None and isinstance(cause, BaseHTTPError) and int(cause.code) == 403:
                # It is known who orders: this is forbidden (spot machines, say), and something else may not be.
                raise AuthFailed(str(error), scope=Scope.OFFER) from cause
            raise

    def machines(self, tag: str) -> Sequence[Machine]:
        """Machines that carry the tag."""
        return self._call(lambda driver: self.list_machines(driver, tag))

    def all_machines(self) -> Sequence[Machine]:
        """Machines that carry any tag of ours."""
        return self._call(lambda driver: self.list_machines(driver, None))

    def destroy(self, ids: Sequence[MachineId]) -> None:
        """End machines; those that can be ended are, whatever happens to the others.

        Raises
        ------
        ProvisioningError
            The first that could not be ended.
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
        """Remove what else carries the tag."""
        self._call(lambda driver: self.clear_leftovers(driver, tag))

    def settings(self) -> dict[str, object]:
        """The arguments that are no secrets and no defaults, and what the environment said in place of others."""
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
        """Findings for ``skyward doctor``; the first is whether the credentials work at all."""
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
            advice = "is there a network, a proxy in between, an outage at the provider?"
            return [Check("reachability", False, str(error), advice)]
        except SkywardError as error:
            return [Check("credentials", False, str(error), advice)]
        found = [Check("credentials", True, f"accepted; {count} machine(s) of ours")]
        try:
            found += self._call(lambda driver: list(self.examine(driver)))
        except SkywardError as error:
            found.append(Check("account", False, str(error), "the key may lack a permission"))
        return found

    def hurried(self, seconds: float) -> Self:
        """The same, asking again for so long only: for somebody who waits for the answer."""
        other = copy.copy(self)
        object.__setattr__(other, "retry_for", seconds)
        return other

    # --- the edge ---

    def _call(self, function: Callable[[Any], _T], again: tuple[type[SkywardError], ...] = (CloudError,)) -> _T:
        """Call with this thread's driver: errors mapped, and repeated while `again` says so."""
        first, most = _PAUSE
        backoff = tenacity.wait_random_exponential(multiplier=first, max=most)

        def wait(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome is not None else None
            return max(backoff(state), getattr(error, "wait", None) or 0.0)

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
            local.driver = None  # its connection, or its token, may be what is broken
            mapped = self.map_error(error) or self._mapped(error)
            renewable = isinstance(mapped, AuthFailed) and mapped.scope in (None, Scope.ACCOUNT, Scope.REGION)
            if renewable and not fresh:  # credentials may have expired, and be renewed by now
                return self._call_once(function)
            raise mapped from error

    def _mapped(self, error: Exception) -> SkywardError:
        """libcloud's and requests' errors in our words."""
        text = f"{self.name}: {_short(error)}"
        if isinstance(error, InvalidCredsError):
            return AuthFailed(f"{self.name}: {error.value}")  # as a text it would be in quotes
        if isinstance(error, RateLimitReachedError):
            return RateLimited(text, float(error.retry_after or 0) or None)
        if isinstance(error, MalformedResponseError):
            # Its text ends with the whole page.
            return CloudError(f"{self.name}: {error.value}: this is no answer of the API; a proxy, or an outage?")
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
    """An error's text without a whole HTML page in it."""
    text = " ".join(str(error.message if isinstance(error, BaseHTTPError) else error).split())
    return text if len(text) < 500 else f"{text[:500]} …"


def _default(item: dataclasses.Field[Any]) -> object:
    return item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
