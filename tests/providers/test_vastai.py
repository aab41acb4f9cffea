"""Vast.ai's adapter against the lab's market: without hosts what it asks and understands, with hosts whole runs."""

from __future__ import annotations

import math
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
from joblib import Parallel, delayed

import skyward as sky
import skyward.providers.base
from skyward.core.machines import offer_selection
from skyward.core.machines.ssh_keys import make_key
from skyward.core.machines.sweep import sweep
from skyward.core.spec import Machine, MachineState, Order, Resources
from skyward.providers.drivers.vastai import VastAINodeDriver
from skyward.providers.vastai import VastAI
from skyward.testing.provider import Account, RentalBootConformance, RentalConformance
from tests.lab import Lab, eventually
from tests.lab.clouds.machines import Machines
from tests.lab.clouds.vastai import VastAI as Market
from tests.remote import index, wheels

__all__ = ["index", "wheels"]  # fixtures

TAG = "sky-1-1-abcdef"


class Quick(VastAI):
    """Looks often, and gives up soon."""

    poll: ClassVar[float] = 0.1
    listing_delay: ClassVar[float] = 0.5
    retry_for: float = 1.0


class Impostor(Quick):
    """Asks the API in each call. Nothing but machines carries a tag at Vast.ai, so that clearing asks nobody."""

    def clear_leftovers(self, driver: VastAINodeDriver, tag: str) -> None:
        self.list_machines(driver, tag)


class OnHosts(Quick):
    """The same for machines that take a moment to boot."""

    listing_delay: ClassVar[float] = 2.0
    retry_for: float = 10.0


class Impatient(OnHosts):
    """Gives up a machine that does not answer soon."""

    patience: ClassVar[float] = 5.0


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKYWARD_STATE", str(tmp_path / "state"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between tries."""
    monkeypatch.setattr(skyward.providers.base, "_PAUSE", (0.01, 0.02))


@pytest.fixture
def cloud(quick: None) -> Iterator[Market]:
    with Market() as running:
        yield running


def provider_of(cloud: Market, kind: type[Quick] = Quick, **options: Any) -> Quick:
    return kind(api_key=cloud.key, url=cloud.url, pace=0.0, **options)


@pytest.fixture
def provider(cloud: Market) -> Quick:
    return provider_of(cloud)


def order_of(provider: VastAI, n: int = 1, allocation: Any = "on-demand", **resources: Any) -> Order:
    """An order of the offer that core would take first."""
    wanted = Resources(**resources)
    offer = offer_selection.select(provider.offers(wanted), wanted, allocation)[0]
    name = f"{TAG}-{n}"
    return Order(
        TAG, 1, wanted, allocation, name=name, offer=offer, host_key=make_key(name), user_key="ssh-ed25519 A u"
    )


def in_state(provider: VastAI, id: str, state: MachineState) -> Machine:
    """The machine, once it is in that state; each look may show another stage."""

    def found() -> Machine | None:
        machine = next((machine for machine in provider.machines(TAG) if machine.id == id), None)
        return machine if machine is not None and machine.state is state else None

    return eventually(found, 10, f"{id} to be {state}")


# The market


def test_offers_are_kinds_with_their_share_of_the_host(provider: VastAI) -> None:
    offers = {(offer.machine, offer.region): offer for offer in provider.offers(Resources()) if not offer.spot}
    h100 = offers["2x H100 SXM", "IS"]
    assert (h100.vcpus, h100.accelerator, h100.accelerators) == (56, "H100 SXM", 2)
    assert h100.memory == pytest.approx(2063e9 / 4, rel=0.01)
    assert h100.accelerator_memory == 81559 * 2**20
    assert h100.price == pytest.approx(4.35 + 0.15 * 32 / 730, abs=1e-5), "its disk is in the price"
    cpu = offers["32x CPU", "US"]
    assert (cpu.vcpus, cpu.accelerator, cpu.accelerators, cpu.accelerator_memory) == (32, None, 0, None)
    assert ("8x RTX 4090", "DE") not in offers
    regions = {region for machine, region in offers if machine == "1x RTX 4090"}
    assert regions == {"CA, US"}, "the German one has no port for us"
    assert not {"1x RTX A4000", "1x RTX 5090"} & {machine for machine, _ in offers}, "they are not verified"
    assert ("1x RTX 3090", "US") not in offers, "its driver is too old for our image"


def test_offers_heed_the_settings(cloud: Market) -> None:
    some = provider_of(cloud, countries=["us", "FR"], disk=100, min_reliability=0.99, image="own").offers(Resources())
    assert {offer.region for offer in some} == {"US"}, "the French one has no room for the disk"
    assert "1x RTX 3090" in {offer.machine for offer in some}
    assert {offer.region for offer in provider_of(cloud, countries=["CA"]).offers(Resources())} == {"CA"}
    assert provider_of(cloud, countries=["CA"], min_reliability=0.99).offers(Resources()) == []


def test_spot_offers_are_bids_a_little_above_the_least(cloud: Market) -> None:
    provider = provider_of(cloud, bid_factor=1.5)
    spot = {(offer.machine, offer.region): offer for offer in provider.offers(Resources()) if offer.spot}
    assert spot["1x H100 SXM", "IS"].price == pytest.approx(1.10 * 1.5 + 0.15 * 32 / 730, abs=1e-5)
    order = order_of(provider, allocation="always-spot", accelerator="H100")
    (machine,) = provider.create(order)
    instance = cloud.instances[int(machine.id)]
    assert instance.order["price"] == pytest.approx(1.65)
    assert instance.price == pytest.approx(order.offer.price, abs=1e-5), "what is billed is what was said"


def test_asks_of_one_kind_become_one_offer_whose_values_all_have(cloud: Market) -> None:
    first = cloud.offers[7001001]
    for n, price in enumerate((0.40, 0.42, 0.60), 1):
        other = {**first, "id": n, "dph_base": price, "cpu_cores_effective": 16.0 - n}
        cloud.offers[n] = other
    provider = provider_of(cloud)
    wanted = Resources(accelerator="RTX 4090", vcpus=14)
    chosen = offer_selection.select(provider.offers(wanted), wanted, "on-demand")
    kinds = [(offer.vcpus, round(offer.price - 0.15 * 32 / 730, 3), offer.region) for offer in chosen]
    assert kinds[0] == (14, 0.42, "CA, US"), "the third lacks cores"
    assert [kind for kind in kinds if kind[1] == 0.6] == []
    asked = Resources(accelerator="RTX 4090")
    chosen = offer_selection.select(provider.offers(asked), asked, "on-demand")
    kinds = [(offer.vcpus, round(offer.price - 0.15 * 32 / 730, 3), offer.region) for offer in chosen]
    assert kinds[:2] == [(14, 0.42, "CA, US"), (13, 0.6, "US")]


def test_orders_at_the_same_time_take_machines_of_their_own(cloud: Market) -> None:
    """Eight orders of one offer: eight machines, and nobody asks for what another one has."""
    cloud.offers |= {n: {**cloud.offers[7001001], "id": n, "machine_id": n} for n in range(1, 8)}
    provider = provider_of(cloud, countries=["US"])
    order = order_of(provider, accelerator="RTX 4090")
    with ThreadPoolExecutor(8) as pool:
        machines = [machine for found in pool.map(provider.create, [order] * 8) for machine in found]
    assert len({machine.id for machine in machines}) == 8
    assert len([request for request in cloud.requests if "/asks/" in request.path]) == 8
    assert len([request for request in cloud.requests if "/bundles/" in request.path]) == 2
    with pytest.raises(sky.NoCapacity, match="1x RTX 4090 in US"):
        provider.create(order)
    provider.destroy([machine.id for machine in machines])
    assert cloud.meter.live == []


def test_an_old_offer_is_good_while_somebody_has_such_a_machine(cloud: Market, monkeypatch: Any) -> None:
    """Ids of asks change; a pool's offers live as long as the pool."""
    monkeypatch.setattr("skyward.providers.vastai._NEW", 0.0)
    provider = provider_of(cloud)
    order = order_of(provider, accelerator="H100:8")
    cloud.offers[1] = {**cloud.offers.pop(7001008), "id": 1}
    (machine,) = provider.create(order)
    assert cloud.instances[int(machine.id)].offer["id"] == 1
    provider.destroy([machine.id])
    cloud.offers = {n: {**offer, "dph_base": 99.0} for n, offer in cloud.offers.items()}
    with pytest.raises(sky.NoCapacity, match="any more"):
        provider.create(order)


# Machines


def test_a_machines_life(cloud: Market, provider: VastAI) -> None:
    order = order_of(provider, vcpus=16)
    (machine,) = provider.create(order)
    assert (machine.state, machine.endpoint) == (MachineState.STARTING, None)
    sent = cloud.instances[int(machine.id)].order
    assert sent["label"] == f"{TAG}/{TAG}-1"
    assert sent["image"] == f"python:{sys.version_info.major}.{sys.version_info.minor}"
    assert (sent["disk"], sent["price"], sent["runtype"]) == (32, None, "ssh_direct")
    assert order.host_key.private in sent["onstart"]
    machine = in_state(provider, machine.id, MachineState.RUNNING)
    assert (machine.endpoint.host, machine.endpoint.port, machine.endpoint.user) == ("192.0.2.1", 40022, "root")
    assert (machine.order, machine.tag) == (order.name, TAG)
    for label in ("somebody's", "/", "sky-prod/db", "sky-prod/sky-prod-1", f"{TAG}/db", f"{TAG}/sky-2-1-abcdef-1"):
        cloud.instances[int(machine.id)].order["label"] = label
        assert provider.machines(TAG) == provider.all_machines() == [], "what has no label of ours is not ours"
    cloud.instances[int(machine.id)].order["label"] = "sky-2-1-abcdef/sky-2-1-abcdef-1"
    assert provider.machines(TAG) == []
    assert [other.tag for other in provider.all_machines()] == ["sky-2-1-abcdef"]
    provider.destroy([machine.id, machine.id, "1", "no-such"])
    assert provider.all_machines() == []
    assert cloud.meter.live == []
    assert cloud.meter.ever("key") == [], "the account's keys are left alone"


def test_images(cloud: Market, provider: VastAI) -> None:
    (machine,) = provider.create(order_of(provider, accelerator="H100"))
    minor = f"py{sys.version_info.major}{sys.version_info.minor}"
    assert cloud.instances[int(machine.id)].order["image"].endswith(minor)
    own = provider_of(cloud, image="me/mine:1")
    (machine,) = own.create(order_of(own, accelerator="A100"))
    assert cloud.instances[int(machine.id)].order["image"] == "me/mine:1"


def test_the_script_fits_with_the_longest_names(provider: VastAI) -> None:
    key = make_key("x" * 50)
    order = Order("t" * 50, 1, Resources(), name="x" * 50, host_key=key, user_key=make_key("t" * 50).public)
    assert len(VastAI(url="https://" + "u" * 200)._onstart(order)) <= 4096


def test_what_an_outbid_or_failed_machine_is(cloud: Market, provider: VastAI) -> None:
    (spot,) = provider.create(order_of(provider, 1, "always-spot", vcpus=16))
    (lost,) = provider.create(order_of(provider, 2, vcpus=16))
    (quiet,) = provider.create(order_of(provider, 3, accelerator="RTX 4090"))
    (stopped,) = provider.create(order_of(provider, 4, accelerator="H100"))
    for machine in (spot, lost, quiet, stopped):
        in_state(provider, machine.id, MachineState.RUNNING)
    cloud.outbid(spot.id)
    cloud.fail(lost.id, "offline")
    cloud.fail(quiet.id, "unknown")
    cloud.outbid(stopped.id)  # of one that is no bid: its host, or its owner
    seen = {machine.id: (machine.state, machine.detail, machine.endpoint) for machine in provider.machines(TAG)}
    assert seen[spot.id] == (MachineState.PREEMPTED, "outbid", None)
    assert seen[lost.id][0] is seen[quiet.id][0] is seen[stopped.id][0] is MachineState.FAILED
    assert "lost" in seen[lost.id][1]
    assert sweep(provider, TAG) == [spot.id, lost.id, quiet.id, stopped.id]
    assert cloud.meter.live == []


def test_a_host_that_failed_is_not_taken_again(cloud: Market, provider: VastAI, monkeypatch: Any) -> None:
    monkeypatch.setattr("skyward.providers.vastai._NEW", 0.0)
    order = order_of(provider, accelerator="H100:8")
    cloud.faults.on("fails_to_start")
    (machine,) = provider.create(order)
    assert "OCI runtime" in in_state(provider, machine.id, MachineState.FAILED).detail
    provider.destroy([machine.id])
    with pytest.raises(sky.NoCapacity):
        provider.create(order)
    assert cloud.meter.live == []


# Faults


REFUSALS: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("no_capacity", {}, sky.NoCapacity, "any more"),
    ("quota", {}, sky.QuotaExceeded, "Add credit"),
    ("half_made", {}, sky.NoCapacity, "has been done.*higher bid_factor"),
    ("throttle", {}, sky.RateLimited, "too frequent"),
    ("throttle", {"wait": 1}, sky.RateLimited, "too frequent"),
    ("server_error", {}, sky.CloudError, "Internal server error"),
    ("html", {}, sky.CloudError, "HTML"),
    ("lost_reply", {}, sky.CloudError, "Connection|Remote"),
    ("bad_credentials", {}, sky.AuthFailed, "Invalid user key"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "details", "error", "message"), REFUSALS)
def test_an_order_that_fails(
    cloud: Market, provider: VastAI, fault: str, details: dict[str, Any], error: type[Exception], message: str
) -> None:
    """Each fault is its documented error, and whatever was made is found by the tag."""
    order = order_of(provider, accelerator="H100:8")
    cloud.faults.on(fault, math.inf, **details)
    with pytest.raises(error, match=message) as caught:
        provider.create(order)
    assert type(caught.value) is error
    assert cloud.key not in str(caught.value)
    cloud.faults.clear()
    made = len(cloud.meter.ever("instance"))
    assert made == (fault in {"half_made", "lost_reply"})
    assert len(sweep(provider, TAG)) == (fault == "lost_reply"), "what a refusal left is destroyed at once"
    assert cloud.meter.live == []


def test_a_throttled_order_is_placed_again(cloud: Market, provider: VastAI) -> None:
    order = order_of(provider, accelerator="H100:8")
    cloud.faults.on("throttle", 2)
    (machine,) = provider.create(order)
    assert cloud.faults.happened == ["throttle", "throttle"]
    assert cloud.meter.live == [("instance", machine.id)]


def test_a_lost_reply_is_found_by_its_label(cloud: Market, provider: VastAI) -> None:
    order = order_of(provider, accelerator="H100:8")
    cloud.faults.on("lost_reply")
    with pytest.raises(sky.CloudError):
        provider.create(order)
    assert [machine.order for machine in provider.machines(TAG)] == [order.name]


def test_a_bid_that_is_too_low(cloud: Market, provider: VastAI) -> None:
    order = order_of(provider, allocation="always-spot", accelerator="H100:8")
    cloud.offers[7001008]["min_bid"] = 17.0
    with pytest.raises(sky.NoCapacity, match="too low"):
        provider.create(order)
    assert len(cloud.meter.ever("instance")) == 1
    assert cloud.meter.live == []


@pytest.mark.slow
def test_a_leftover_that_cannot_be_destroyed_at_once(cloud: Market, provider: VastAI) -> None:
    """Core learns that something may exist, and finds it."""
    order = order_of(provider, accelerator="H100:8")
    cloud.app.before_request_funcs[None].append(_refuse_deletes(cloud))
    cloud.faults.on("half_made")
    with pytest.raises(sky.CloudError, match="left instance"):
        provider.create(order)
    cloud.app.before_request_funcs[None].pop()
    assert [machine.state for machine in provider.machines(TAG)] == [MachineState.FAILED]
    sweep(provider, TAG)
    assert cloud.meter.live == []


def _refuse_deletes(cloud: Market) -> Any:
    import flask

    return lambda: ("no", 503) if flask.request.method == "DELETE" else None


@pytest.mark.parametrize("fault", ["throttle", "server_error", "html"])
def test_calls_that_may_be_repeated_are(cloud: Market, provider: VastAI, fault: str) -> None:
    cloud.faults.on(fault, 2)
    order = order_of(provider, accelerator="H100:8")
    (machine,) = provider.create(order)
    cloud.faults.on(fault, 2)
    assert [machine.id for machine in provider.machines(TAG)] == [machine.id]
    cloud.faults.on(fault, 2)
    provider.destroy([machine.id])
    assert cloud.meter.live == []


def test_the_days_searches_are_used_up(cloud: Market, provider: VastAI) -> None:
    cloud.faults.on("throttle", math.inf, daily=True)
    with pytest.raises(sky.QuotaExceeded, match="midnight"):
        provider.offers(Resources())
    assert len(cloud.requests) == 1, "asking again is of no use"


def test_a_new_instance_that_is_not_listed_yet(cloud: Market, provider: VastAI) -> None:
    order = order_of(provider, accelerator="H100:8")
    cloud.faults.on("eventual", seconds=0.5)
    (machine,) = provider.create(order)
    assert provider.machines(TAG) == []
    in_state(provider, machine.id, MachineState.RUNNING)
    provider.destroy([machine.id])
    assert cloud.meter.live == []


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["never_boots", "fails_to_start"])
def test_a_pool_whose_machines_never_come_up(cloud: Market, index: str, fault: str) -> None:
    """They are given up after a while, the error says so, and all are terminated."""

    class Hasty(Quick):
        patience: ClassVar[float] = 1.0

    cloud.offers = {n: cloud.offers[n] for n in (7002001, 7002002)}
    cloud.faults.on(fault, math.inf)
    provider = provider_of(cloud, Hasty)
    with pytest.raises(sky.ProvisioningError, match="did not come up"), pool_on(provider, index, nodes=1):
        pass
    assert cloud.meter.ever("instance")
    assert cloud.meter.live == []


# Settings and credentials


def test_credentials_are_found_where_the_vendors_tools_keep_them(
    cloud: Market, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("VAST_API_KEY", raising=False)
    places = [tmp_path / ".vast_api_key", tmp_path / ".config/vastai/vast_api_key", tmp_path / "x/vastai/vast_api_key"]
    with pytest.raises(sky.AuthFailed, match=r"VAST_API_KEY.*\.config/vastai/vast_api_key.*\.vast_api_key.*Create one"):
        Quick(url=cloud.url, pace=0.0).offers(Resources())
    keys = ["old", "new", "xdg", "environment"]
    found = []
    for key, place in zip(keys, places, strict=False):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"{key}\n")
        if key == "xdg":
            monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "x"))
        found.append(Quick(url=cloud.url).make_driver().key)
    monkeypatch.setenv("VAST_API_KEY", "environment")
    found.append(Quick(url=cloud.url).make_driver().key)
    found.append(Quick(api_key="given", url=cloud.url).make_driver().key)
    assert found == [*keys, "given"]


@pytest.mark.parametrize(
    "options",
    [
        {"countries": "SE"},
        {"countries": ["Sweden"]},
        {"disk": 4},
        {"disk": math.nan},
        {"min_reliability": 95},
        {"bid_factor": 0.9},
        {"url": "console.vast.ai"},
    ],
)
def test_wrong_settings_are_reported_at_once(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(sky.ConfigError, match=f"VastAI {name}="):
        VastAI(**options)


def test_the_key_is_neither_shown_nor_written_down(cloud: Market) -> None:
    provider = VastAI(api_key=cloud.key, countries=["se"], url=cloud.url, pace=0.0)
    assert cloud.key not in repr(provider)
    assert provider.settings() == {"countries": ["SE"], "url": cloud.url, "pace": 0.0}
    assert VastAI(**provider.settings()).settings() == provider.settings()
    assert pickle.loads(pickle.dumps(provider)).api_key == cloud.key, "the reaper needs it"


def test_doctor(cloud: Market, provider: VastAI) -> None:
    assert [(check.what, check.ok, check.detail) for check in provider.examination()] == [
        ("credentials", True, "accepted; 0 machine(s) of skyward's"),
        ("balance", True, "$25.00 left"),
    ]
    cloud.credit = 0.0
    check = provider.examination()[1]
    assert not check.ok
    assert "add credit" in check.advice
    (check,) = VastAI(api_key="wrong", url=cloud.url, pace=0.0).examination()
    assert not check.ok
    assert "Invalid user key" in check.detail


# The suites for all


def account_of(cloud: Market, kind: type[Quick] = Quick) -> Account:
    """With enough machines of each kind."""
    for n, offer in enumerate(list(cloud.offers.values()), 1):
        cloud.offers |= {10 * n + k: {**offer, "id": 10 * n + k, "machine_id": 10 * n + k} for k in range(3)}

    def switch(fault: str) -> Callable[[], None]:
        # One ask that is gone is no refusal: another one of its kind is taken.
        return lambda: cloud.faults.on(fault, math.inf if fault == "no_capacity" else 1)

    faults = ("no_capacity", "quota", "throttle", "server_error", "html", "lost_reply")
    return Account(
        provider_of(cloud, kind),
        live=lambda: cloud.meter.live,
        impostor=Impostor(api_key="0" * 64, url=cloud.url, pace=0.0),
        faults={fault: switch(fault) for fault in faults},
        calm=cloud.faults.clear,
    )


class TestVastAI(RentalConformance):
    pause = 0.02

    @pytest.fixture
    def rental(self, cloud: Market) -> Account:
        return account_of(cloud)


@pytest.mark.lab
class TestVastAIBoots(RentalBootConformance):
    @pytest.fixture
    def rental(self, house: Market) -> Account:
        return account_of(house, OnHosts)


# Whole runs


@pytest.fixture
def house(lab: Lab) -> Iterator[Market]:
    before = set(lab.hosts)
    with Market(Machines(lab)) as running:
        yield running
    eventually(lambda: set(lab.hosts) <= before, what="hosts that end themselves to be gone")


def pool_on(provider: Any, index: str, **options: Any) -> sky.Compute:
    arguments: dict[str, Any] = {"nodes": 2, "concurrency": 2, "console": False, "plugins": [sky.plugins.joblib()]}
    return sky.Compute(provider=provider, image=sky.Image(index=index), **{**arguments, **options})


def hostname() -> str:
    import socket

    return socket.gethostname()


def slow_double(x: int) -> int:

    time.sleep(0.1)
    return 2 * x


# Hosts don't have this module: what tests send must travel by value, as a user's script's functions do.
for function in (hostname, slow_double):
    function.__module__ = "__main__"


@pytest.mark.lab
@pytest.mark.slow
def test_the_same_code_on_rented_machines(house: Market, index: str) -> None:
    with pool_on(provider_of(house, OnHosts), index) as pool:
        assert pool.total_slots == 4
        assert Parallel(n_jobs=-1)(delayed(slow_double)(i) for i in range(40)) == [2 * i for i in range(40)]
        assert len(set(Parallel(n_jobs=-1, batch_size=1)(delayed(hostname)() for _ in range(40)))) == 2
        assert len(house.meter.live) == 2
    assert house.meter.live == []
    assert len(house.meter.ever("instance")) == 2
    assert house.meter.ever("key") == []


@pytest.mark.lab
@pytest.mark.slow
def test_a_spot_machine_is_taken_back_in_mid_run(house: Market, index: str) -> None:
    """Its tasks run elsewhere, another machine takes its place, and the stopped one does not go on to cost."""
    with pool_on(provider_of(house, OnHosts), index, allocation="always-spot") as pool:
        assert all(instance.is_bid for instance in house.instances.values())
        futures = [pool.submit(slow_double, i) for i in range(80)]
        futures[5].result(60)
        house.outbid(house.meter.live[0][1])
        assert [future.result(110) for future in futures] == [2 * i for i in range(80)]
        first = house.meter.ever("instance")[0]
        eventually(lambda: ("instance", first) not in house.meter.live, 30, "the stopped one to be destroyed")
    assert house.meter.live == []


RUNS_ON = ["lost_reply", "eventual", "slow_boot", "no_capacity", "half_made", "fails_to_start", "throttle", "html"]


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.parametrize("fault", RUNS_ON)
def test_a_run_that_meets_a_fault_ends_well(house: Market, index: str, fault: str) -> None:
    """Right results, and nothing left."""
    details = {"eventual": {"seconds": 1.0}, "slow_boot": {"seconds": 2.0}}.get(fault, {})
    house.faults.on(fault, **details)
    with pool_on(provider_of(house, OnHosts), index, nodes=1):
        assert Parallel(n_jobs=-1)(delayed(slow_double)(i) for i in range(4)) == [0, 2, 4, 6]
    assert house.faults.happened == [fault]
    assert house.meter.live == []


@pytest.mark.lab
@pytest.mark.slow
def test_a_stranger_at_the_machines_address_is_refused(house: Market, index: str) -> None:
    house.faults.on("wrong_host_key", math.inf)
    provider = provider_of(house, Impatient)
    with pytest.raises(sky.HostKeyError), pool_on(provider, index, nodes=1):
        pass
    assert house.meter.live == []


@pytest.mark.lab
@pytest.mark.slow
def test_a_machine_that_never_answers_is_terminated(house: Market, index: str) -> None:
    house.faults.on("never_answers", math.inf)
    provider = provider_of(house, Impatient)
    with pytest.raises(sky.HostUnreachable), pool_on(provider, index, nodes=1):
        pass
    assert house.meter.live == []


SCRIPT = """
    import time
    import skyward as sky
    from skyward.providers.vastai import VastAI
    VastAI.poll = 0.3
    with sky.Compute(provider=VastAI(api_key={key!r}, url={url!r}, pace=0.0), nodes=2, concurrency=1,
                     image=sky.Image(index={index!r}), orphan_timeout=20.0, console=False) as pool:
        future = pool.submit(time.sleep, 1000)
        print("running", flush=True)
        future.result()
"""


@pytest.fixture
def driver(house: Market, index: str, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A driver in a process of its own, with two nodes at work."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT).format(key=house.key, url=house.url, index=index))
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as output:
        assert output.readline() == "running\n"
    yield process
    process.kill()
    process.wait()


def reaper_of(process: subprocess.Popen[str]) -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for thread in Path(f"/proc/{process.pid}/task").iterdir():
        children += (thread / "children").read_text().split()
    return next(
        int(pid) for pid in children if b"skyward.core.machines.reaper" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.parametrize("without", ["nothing", "curl"])
def test_nodes_whose_driver_and_reaper_died_destroy_themselves(
    house: Market, driver: subprocess.Popen[str], without: str
) -> None:
    if without == "curl":
        for instance in house.instances:
            (house.host_of(instance).root / "usr/bin/curl").unlink()
    os.kill(reaper_of(driver), signal.SIGKILL)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert len(house.meter.live) == 2
    eventually(lambda: house.meter.live == [], 150, "the nodes to end themselves")
    ends = [request for request in house.requests if request.method == "DELETE"]
    assert len({request.path for request in ends}) == 2, "each may ask again until it is gone"
    for request in ends:
        assert request.headers["Authorization"] != f"Bearer {house.key}", "it was not the account's key"
        assert request.headers["User-Agent"].startswith("curl" if without == "nothing" else "Python-urllib")


@pytest.mark.lab
@pytest.mark.slow
def test_the_reaper_terminates_what_a_dead_driver_had(house: Market, driver: subprocess.Popen[str]) -> None:
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    eventually(lambda: house.meter.live == [], 150, "the reaper to destroy them")
    ends = [request for request in house.requests if request.method == "DELETE"]
    assert any(request.headers["Authorization"] == f"Bearer {house.key}" for request in ends)
