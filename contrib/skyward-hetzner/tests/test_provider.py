"""The provider: skyward's own conformance suite, the faults of this cloud, and joblib on its servers."""

from __future__ import annotations

import functools
import importlib.metadata
import json
from collections.abc import Iterator

import pytest
import skyward as sky
from joblib import Parallel, delayed
from skyward.core.interfaces import Trait
from skyward.core.spec import MachineState, Resources
from skyward.testing.provider import Account, Pool, RentalBootConformance, RentalConformance
from tests.lab import Lab
from tests.lab.clouds import Machines
from tests.lab.clouds.hetzner import Hetzner as Cloud
from tests.lab.clouds.hetzner_catalogue import VAT

from skyward_hetzner import Hetzner
from skyward_hetzner.provider import USD_PER_EUR

FAULTS = ("no_capacity", "quota", "throttle", "server_error", "html", "lost_reply")


class Quick(Hetzner):
    """The provider, for a cloud that is near and has no other work."""

    listing_delay = 1.0
    poll = 0.2
    retry_for = 10.0


def provider(cloud: Cloud, **options) -> Quick:
    return Quick(**{"token": cloud.token, "url": cloud.api, **options})


def account(cloud: Cloud) -> Account:
    return Account(
        provider(cloud),
        live=lambda: cloud.meter.live,
        impostor=provider(cloud, token="no-such-token"),
        faults={name: functools.partial(cloud.faults.on, name) for name in FAULTS},
        calm=cloud.faults.clear,
    )


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    with Cloud() as running:
        yield running


@pytest.fixture
def pool(cloud: Cloud) -> Iterator[Pool]:
    with Returned(provider(cloud)) as opened:
        yield opened


class Returned(Pool):
    """A pool that gives all back."""

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        while ids := [machine.id for machine in self.machines()]:
            self.provider.destroy(ids)
        self.provider.clear(self.tag)


class TestConformance(RentalConformance):
    @pytest.fixture
    def rental(self, cloud: Cloud) -> Account:
        return account(cloud)


@pytest.mark.lab
class TestBoot(RentalBootConformance):
    @pytest.fixture
    def rental(self, lab: Lab, cloud_init: None) -> Iterator[Account]:
        with Cloud(Machines(lab)) as running:
            yield account(running)


# --- offers ---


def test_prices_are_gross_and_in_dollars(cloud: Cloud):
    offers = {(o.machine, o.region): o for o in provider(cloud).offers(Resources())}
    offer = offers["cx33", "fsn1"]
    assert (offer.vcpus, offer.memory, offer.spot) == (4, 8 * 2**30, False)
    assert offer.price == pytest.approx((0.0088 * VAT + 0.001) * USD_PER_EUR)
    assert provider(cloud, usd_per_eur=2.0).offers(Resources())[0].price == pytest.approx(
        provider(cloud, usd_per_eur=1.0).offers(Resources())[0].price * 2
    )


def test_what_is_sold_out_or_retired_is_no_offer(cloud: Cloud):
    places = {(offer.machine, offer.region) for offer in provider(cloud).offers(Resources())}
    assert ("cx53", "fsn1") in places
    assert ("cx53", "hel1") not in places
    assert not any(machine == "cx22" for machine, _ in places)


def test_offers_of_one_region_and_architecture(cloud: Cloud):
    it = provider(cloud, region="nbg1", architecture="arm")
    assert {(o.machine, o.region) for o in it.offers(Resources())} == {("cax11", "nbg1"), ("cax41", "nbg1")}


def test_an_unknown_region_tells_the_known(cloud: Cloud):
    with pytest.raises(sky.NotFound, match=r"no region 'mars'.*fsn1.*nbg1"):
        provider(cloud, region="mars").offers(Resources())


@pytest.mark.parametrize("wrong", [{"architecture": "sparc"}, {"usd_per_eur": 0}, {"ssh_from": "1.2.3.4/32"}])
def test_wrong_arguments_are_told_at_once(wrong):
    with pytest.raises(sky.ConfigError, match=next(iter(wrong))):
        Hetzner(token="x", **wrong)


# --- servers ---


def test_no_password_is_made_and_only_ssh_comes_in(cloud: Cloud):
    with Returned(provider(cloud, ssh_from=["192.0.2.7/32"])) as pool:
        pool.create(pool.provider.offers(Resources())[0])
        (order,) = [json.loads(r.body) for r in cloud.requests if (r.method, r.path) == ("POST", "/v1/servers")]
        assert len(order["ssh_keys"]) == 1  # without a key the API makes a password and mails it
        assert "sky-" in order["labels"]["skyward-pool"]
        (firewall,) = [json.loads(r.body) for r in cloud.requests if (r.method, r.path) == ("POST", "/v1/firewalls")]
        (rule,) = firewall["rules"]
        assert (rule["direction"], rule["port"], rule["source_ips"]) == ("in", "22", ["192.0.2.7/32"])
    assert cloud.meter.live == []


def test_a_pool_has_one_key_and_one_firewall(cloud: Cloud, pool: Pool):
    offer = pool.provider.offers(Resources())[0]
    for _ in range(3):
        pool.create(offer)
    assert len(cloud.meter.ever("key")) == len(cloud.meter.ever("firewall")) == 1


def test_a_lost_reply_makes_one_server(cloud: Cloud, pool: Pool):
    """The order is placed again, and finds that its server is there."""
    assert Trait.SAFE_CREATE in pool.provider.traits
    cloud.faults.on("lost_reply")
    made = pool.create(pool.provider.offers(Resources())[0])
    assert cloud.meter.ever("instance") == [made.id]


def test_a_lost_reply_of_a_server_that_is_shown_late(cloud: Cloud, pool: Pool):
    cloud.faults.on("lost_reply")
    cloud.faults.on("eventual", seconds=0.5)
    made = pool.create(pool.provider.offers(Resources())[0])
    assert cloud.meter.ever("instance") == [made.id]


def test_a_server_that_is_being_made_is_deleted_all_the_same(pool: Pool):
    made = pool.create(pool.provider.offers(Resources())[0])
    pool.provider.destroy([made.id])  # "locked", until it is made


def test_a_server_that_is_off_is_of_no_use(cloud: Cloud, pool: Pool, monkeypatch: pytest.MonkeyPatch):
    cloud.faults.on("fails_to_start")
    pool.create(pool.provider.offers(Resources())[0])
    assert pool.machines()[0].state is MachineState.STARTING  # it may be on its way
    monkeypatch.setattr("skyward_hetzner.provider._GRACE", 0.0)
    (machine,) = pool.machines()
    assert machine.state is MachineState.FAILED
    assert "'off'" in machine.detail


def test_servers_of_others_are_not_ours(cloud: Cloud, pool: Pool):
    driver = pool.provider.make_driver()
    node = driver.create_node("web", "cx23", "ubuntu-24.04", ex_labels={"skyward-pool": "mine"})
    assert pool.provider.all_machines() == []
    pool.provider._call(lambda driver: driver.destroy_node(node))


# --- credentials ---


def test_the_token_of_the_environment(cloud: Cloud, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HCLOUD_TOKEN", cloud.token)
    assert Quick(url=cloud.api).machines("sky-none") == []


def test_the_token_of_the_active_context(cloud: Cloud, tmp_path, monkeypatch: pytest.MonkeyPatch):
    contexts = f'[[contexts]]\nname = "a"\ntoken = "x"\n[[contexts]]\nname = "b"\ntoken = "{cloud.token}"\n'
    (tmp_path / "cli.toml").write_text(f'active_context = "b"\n{contexts}')
    assert Quick(url=cloud.api).machines("sky-none") == []
    monkeypatch.setenv("HCLOUD_CONTEXT", "a")
    with pytest.raises(sky.AuthFailed):
        Quick(url=cloud.api).machines("sky-none")


def test_no_token_tells_where_it_was_sought():
    with pytest.raises(sky.AuthFailed, match=r"HCLOUD_TOKEN.*cli\.toml"):
        Hetzner().offers(Resources())


def test_the_doctor_tells_how_prices_are_counted(cloud: Cloud):
    found = provider(cloud).examination()
    assert [check.ok for check in found] == [True, True]
    assert "1.16" in found[1].detail


# --- from end to end ---


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.usefixtures("cloud_init")
def test_joblib_on_servers(lab: Lab, index: str):
    with Cloud(Machines(lab)) as cloud:
        pool = sky.Compute(
            provider=provider(cloud),
            nodes=2,
            concurrency=2,
            image=sky.Image(index=index),
            console=False,
            plugins=[sky.plugins.joblib()],
        )
        with pool:
            assert Parallel(n_jobs=-1)(delayed(pow)(i, 2) for i in range(50)) == [i * i for i in range(50)]
            assert len(cloud.meter.ever("instance")) == 2
        assert cloud.meter.live == []


def test_it_is_found_by_its_name():
    from skyward.core import registry

    if not any(entry.name == "hetzner" for entry in importlib.metadata.entry_points(group="skyward.providers")):
        pytest.skip("the package is not installed, only found")
    assert registry.load(registry.PROVIDERS, "hetzner") is Hetzner
