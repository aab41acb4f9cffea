"""What all adapters get from their base: mapped errors, a driver for each thread, retries, no recorded secrets."""

from __future__ import annotations

import gc
import os
import pickle
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import requests
from libcloud.common.exceptions import BaseHTTPError, RateLimitReachedError
from libcloud.common.types import InvalidCredsError, MalformedResponseError

import skyward as sky
from skyward.core.errors import (
    AuthFailed,
    CloudError,
    NoCapacity,
    NotFound,
    ProvisioningError,
    RateLimited,
    SkywardError,
)
from skyward.core.interfaces import Rental, Trait
from skyward.core.scope import Scope
from skyward.core.spec import Machine, MachineId, Offer, Order, Resources
from skyward.providers import base
from skyward.providers.base import SECRET, Check, CloudProvider

ORDER = Order("sky-1", 1, Resources(), name="sky-1-1", offer=Offer("small"))


class SoldOutError(Exception):
    """The vendor's own."""


class Driver:
    """What a libcloud driver is to the base: something that is made, and raises."""

    def __init__(self, script: Iterator[Exception | None]) -> None:
        self.thread = threading.get_ident()
        self._script = script

    def __call__(self) -> None:
        assert self.thread == threading.get_ident(), "one driver is used by two threads"
        error = next(self._script, None)
        if error is not None:
            raise error


@dataclass(frozen=True, eq=False)
class Cloud(CloudProvider):
    """Each call of the API meets the next of `errors`; `calls` counts them."""

    name: ClassVar[str] = "cloud"

    token: str | None = field(default=None, metadata=SECRET)
    region: str = "here"
    zones: Sequence[str] = ("a", "b")
    disk: int | None = None
    errors: list[Exception | None] = field(default_factory=list, metadata=SECRET)
    calls: list[str] = field(default_factory=list, metadata=SECRET)
    drivers: list[Driver] = field(default_factory=list, init=False, repr=False)

    def make_driver(self) -> Any:
        if self.token == "none":
            raise AuthFailed("cloud: no credentials: neither token= nor CLOUD_TOKEN")
        self.drivers.append(Driver(self._script()))
        return self.drivers[-1]

    def _script(self) -> Iterator[Exception | None]:
        while self.errors:
            yield self.errors.pop(0)

    def _call_api(self, driver: Driver, name: str) -> None:
        self.calls.append(name)
        driver()

    def list_offers(self, driver: Any, resources: Resources) -> Iterable[Offer]:
        self._call_api(driver, "offers")
        yield Offer("small")

    def create_machines(self, driver: Any, order: Order) -> Sequence[Machine]:
        self._call_api(driver, "create")
        return [Machine("i-1", None, "i-1")]

    def list_machines(self, driver: Any, tag: str | None) -> Sequence[Machine]:
        self._call_api(driver, "list")
        return [Machine("i-1", None, "i-1", tag=tag or "sky-9")]

    def destroy_machine(self, driver: Any, id: MachineId) -> None:
        self._call_api(driver, f"destroy {id}")

    def map_error(self, error: Exception) -> SkywardError | None:
        return NoCapacity(f"cloud: {error}") if isinstance(error, SoldOutError) else None

    def examine(self, driver: Any) -> Iterable[Check]:
        self._call_api(driver, "balance")
        yield Check("balance", True, "5 USD")


class SafeCloud(Cloud):
    """The same order twice makes one machine."""

    traits: ClassVar[frozenset[Trait]] = Cloud.traits | {Trait.SAFE_CREATE}


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds for which the base would have slept."""
    slept: list[float] = []
    monkeypatch.setattr(base.tenacity.nap.time, "sleep", slept.append)
    return slept


def test_it_is_a_rental() -> None:
    assert isinstance(Cloud(), Rental)


# --- errors ---


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (SoldOutError("none left"), NoCapacity),
        (InvalidCredsError("who are you"), AuthFailed),
        (BaseHTTPError(401, "who are you"), AuthFailed),
        (BaseHTTPError(403, "you may not"), AuthFailed),
        (BaseHTTPError(404, "no such thing"), NotFound),
        (BaseHTTPError(400, "what is this"), ProvisioningError),
        (BaseHTTPError(409, "not so"), ProvisioningError),
        (BaseHTTPError(500, "oh"), CloudError),
        (BaseHTTPError(503, "later"), CloudError),
        (BaseHTTPError(408, "too slow"), CloudError),
        (BaseHTTPError(429, "slowly"), RateLimited),
        (RateLimitReachedError(), RateLimited),
        (MalformedResponseError("Failed to parse JSON", "<html>" * 500), CloudError),
        (requests.exceptions.ConnectionError("reset"), CloudError),
        (requests.exceptions.ReadTimeout("slow"), CloudError),
        (ConnectionResetError("reset"), CloudError),
        (TimeoutError("slow"), CloudError),
        (KeyError("surprise"), CloudError),
    ],
    ids=repr,
)
def test_errors_are_in_our_words(error: Exception, kind: type[SkywardError]) -> None:
    """With the provider's name, the vendor's words, no page of HTML, and the cause."""
    with pytest.raises(kind) as caught:
        Cloud(errors=[error] * 50).hurried(0).offers(Resources())
    assert isinstance(caught.value, RateLimited) is (kind is RateLimited)
    assert caught.value.__cause__ is error
    assert str(caught.value).startswith("cloud: ")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(("status", "scope"), [(401, None), (403, Scope.OFFER)])
def test_what_may_not_be_ordered_says_nothing_of_other_offers(status: int, scope: Scope | None) -> None:
    """An account that may not have spot machines may have others; one that nobody knows may have none."""
    it = Cloud(errors=[BaseHTTPError(status, "not for you")] * 2)
    with pytest.raises(AuthFailed, match="not for you") as caught:
        it.create(ORDER)
    assert caught.value.scope is scope


def test_our_own_errors_pass(pauses: list[float]) -> None:
    error = NotFound("cloud: no region")
    with pytest.raises(NotFound) as caught:
        Cloud(errors=[error]).offers(Resources())
    assert caught.value is error
    assert pauses == []


# --- retries ---


def test_what_failed_on_the_way_is_asked_again(pauses: list[float]) -> None:
    cloud = Cloud(errors=[ConnectionResetError("reset"), BaseHTTPError(502, "bad gateway"), None])
    assert cloud.offers(Resources()) == [Offer("small")]
    assert cloud.calls == ["offers"] * 3
    assert len(pauses) == 2
    assert len(cloud.drivers) == 3, "a driver whose connection may be broken is not used again"


def test_what_was_refused_is_not(pauses: list[float]) -> None:
    cloud = Cloud(errors=[BaseHTTPError(400, "no")])
    with pytest.raises(ProvisioningError):
        cloud.offers(Resources())
    assert cloud.calls == ["offers"]
    assert pauses == []


def test_the_advised_wait_is_waited(pauses: list[float]) -> None:
    cloud = Cloud(errors=[RateLimitReachedError(headers={"retry-after": "17"}), None])
    assert cloud.offers(Resources()) == [Offer("small")]
    assert len(pauses) == 1
    assert 17 <= pauses[0] < 21


def test_a_wait_that_is_too_long_is_left_to_the_caller(pauses: list[float]) -> None:
    with pytest.raises(RateLimited) as caught:
        Cloud(errors=[RateLimitReachedError(headers={"retry-after": "600"})]).offers(Resources())
    assert caught.value.wait == 600
    assert pauses == []


def test_a_hurried_one_asks_once(pauses: list[float]) -> None:
    """And the one that it was made from keeps its patience."""
    cloud = Cloud(errors=[BaseHTTPError(500, "oh"), BaseHTTPError(500, "oh"), None])
    with pytest.raises(CloudError):
        cloud.hurried(0).offers(Resources())
    assert cloud.calls == ["offers"]
    assert cloud.offers(Resources()) == [Offer("small")]


def test_create_is_repeated_only_where_that_makes_no_second_machine() -> None:
    lost = ConnectionResetError("the reply was lost")
    cloud = Cloud(errors=[lost, None])
    with pytest.raises(CloudError):
        cloud.create(ORDER)
    assert cloud.calls == ["create"]
    safe = SafeCloud(errors=[lost, None])
    assert len(safe.create(ORDER)) == 1
    assert safe.calls == ["create", "create"]


def test_create_is_repeated_after_a_throttle(pauses: list[float]) -> None:
    """Which made nothing."""
    cloud = Cloud(errors=[BaseHTTPError(429, "slowly"), None])
    assert len(cloud.create(ORDER)) == 1
    assert len(pauses) == 1


# --- destroy ---


def test_all_that_can_be_ended_is() -> None:
    """One that is unknown counts as ended; the first other error is raised at the end."""
    cloud = Cloud(errors=[BaseHTTPError(404, "gone"), BaseHTTPError(400, "locked"), BaseHTTPError(409, "no"), None])
    with pytest.raises(ProvisioningError, match="locked"):
        cloud.destroy(["a", "b", "c", "d"])
    assert cloud.calls == [f"destroy {id}" for id in "abcd"]
    cloud.destroy([])


# --- drivers ---


def test_each_thread_has_its_own_driver() -> None:
    """Several at a time, again and again; each driver asserts its thread."""
    cloud = Cloud()
    failures: list[BaseException] = []
    barrier = threading.Barrier(4)

    def work() -> None:
        try:
            barrier.wait(30)
            for _ in range(20):
                cloud.offers(Resources())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(cloud.drivers) == 4


def test_two_providers_share_nothing() -> None:
    one, other = Cloud(), Cloud()
    one.offers(Resources())
    assert other.drivers == []
    other.offers(Resources())
    assert (len(one.drivers), len(other.drivers)) == (1, 1)


@pytest.mark.slow
def test_drivers_end_with_their_provider() -> None:
    """The table of drivers keeps neither alive."""
    cloud = Cloud()
    cloud.offers(Resources())
    provider, driver = weakref.ref(cloud), weakref.ref(cloud.drivers[0])
    assert cloud in base._drivers
    del cloud
    gc.collect()
    assert (provider(), driver()) == (None, None)


def test_it_is_pickled_without_its_drivers() -> None:
    """As the process that cleans up after us gets it; secrets are needed there."""
    cloud = Cloud(token="geheim", region="there")
    cloud.machines("sky-1")
    again = pickle.loads(pickle.dumps(Cloud(token="geheim", region="there")))
    assert (again.token, again.region) == ("geheim", "there")
    assert again.machines("sky-1")


def test_credentials_that_are_missing_say_so() -> None:
    with pytest.raises(AuthFailed, match="neither token="):
        Cloud(token="none").machines("sky-1")


def test_refused_credentials_are_reported_in_the_vendors_words() -> None:
    """Not as libcloud represents them, in quotes."""
    with pytest.raises(AuthFailed, match=r"^cloud: who are you$"):
        Cloud(errors=[InvalidCredsError("who are you")] * 2).machines("sky-1")


# --- settings ---


def test_settings_have_no_secrets_and_no_defaults() -> None:
    assert Cloud(token="geheim").settings() == {}
    cloud = Cloud(token="geheim", region="there", zones=("c",), disk=50)
    assert cloud.settings() == {"region": "there", "zones": ["c"], "disk": 50}


def test_what_the_environment_says_is_written_down_but_goes_after_arguments() -> None:
    class Local(Cloud):
        def resolved(self) -> dict[str, object]:
            return {"region": "of today"}

    assert Local(disk=50).settings() == {"region": "of today", "disk": 50}
    assert Local(region="there").settings() == {"region": "there"}


@pytest.mark.parametrize(
    ("environment", "settings"),
    [
        ({}, {"region": "us-east-1"}),
        ({"AWS_REGION": "eu-north-1"}, {"region": "eu-north-1"}),
        ({"AWS_PROFILE": "lab"}, {"region": "eu-west-3", "profile": "lab"}),
        ({"AWS_PROFILE": "lab", "AWS_ACCESS_KEY_ID": "AKIA"}, {"region": "eu-west-3"}),
        ({"AWS_PROFILE": "narnia"}, {"profile": "narnia"}),
    ],
)
def test_region_and_profile_of_aws_are_written_down(
    environment: dict[str, str], settings: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text("[profile lab]\nregion = eu-west-3\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert sky.AWS().settings() == settings
    assert sky.AWS(region="eu-north-1", access_key="AKIA", secret_key="x").settings() == {"region": "eu-north-1"}


def test_the_project_of_a_libcloud_driver_is_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "mine")
    assert sky.Libcloud("gce").settings() == {"driver": "gce", "project": "mine"}
    assert sky.Libcloud("gce", project="ours").settings() == {"driver": "gce", "project": "ours"}


def test_a_secret_is_never_written_even_if_it_is_no_text() -> None:
    assert "errors" not in Cloud(errors=[KeyError("x")]).settings()


# --- examination ---


def finding(cloud: Cloud) -> list[tuple[str, bool | None]]:
    return [(check.what, check.ok) for check in cloud.hurried(0).examination()]


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (Cloud, [("credentials", True), ("balance", True)]),
        (lambda: Cloud(token="none"), [("credentials", None)]),
        (lambda: Cloud(errors=[InvalidCredsError("expired")] * 2), [("credentials", False)]),
        (lambda: Cloud(errors=[ConnectionRefusedError("no route")]), [("reachability", False)]),
        (lambda: Cloud(errors=[None, *[BaseHTTPError(403, "no")] * 2]), [("credentials", True), ("account", False)]),
    ],
    ids=["well", "not set up", "refused", "not reached", "no right"],
)
def test_the_examination_tells_what_is_wrong(make: Callable[[], Cloud], found: list[tuple[str, bool | None]]) -> None:
    assert finding(make()) == found


def test_the_examination_counts_machines() -> None:
    assert "1 machine(s) of skyward's" in Cloud().examination()[0].detail


def test_advice_is_given_where_something_is_wrong() -> None:
    for cloud in (Cloud(token="none"), Cloud(errors=[InvalidCredsError("x")] * 2), Cloud(errors=[OSError("x")])):
        for check in cloud.hurried(0).examination():
            assert check.ok or check.advice
