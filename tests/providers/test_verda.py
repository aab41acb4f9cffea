"""Verda: the adapter against the lab's Verda."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
from joblib import Parallel, delayed
from libcloud.compute.base import NodeLocation

import skyward as sky
from skyward.core.machines.ssh_keys import make_key
from skyward.core.machines.sweep import sweep
from skyward.core.spec import MachineState, Order, Resources
from skyward.testing.provider import Account, RentalConformance
from tests.lab import Lab
from tests.lab.clouds import Machines
from tests.lab.clouds.verda import Verda
from tests.lab.wait import eventually
from tests.remote import *  # noqa: F403  fixtures


@pytest.fixture(autouse=True)
def _state(tmp_path, monkeypatch):
    monkeypatch.setenv("SKYWARD_STATE", str(tmp_path / "state"))


@pytest.fixture
def cloud() -> Iterator[Verda]:
    with Verda() as running:
        yield running


@pytest.fixture
def lab_cloud(lab: Lab) -> Iterator[Verda]:
    with Verda(Machines(lab)) as running:
        yield running


def provider(cloud: Verda, **options) -> sky.Verda:
    return sky.Verda(client_id=cloud.client_id, client_secret=cloud.client_secret, url=cloud.base_url, **options)


def order(offer, tag="sky-1-1-abc", number=1) -> Order:
    key = make_key("x")
    return Order(tag, 1, Resources(), name=f"{tag}-{number}", offer=offer, host_key=key, user_key=key.public)


def test_offers(cloud):
    offers = provider(cloud).offers(Resources())
    cpu = next(offer for offer in offers if offer.machine == "CPU.4V.16G" and not offer.spot)
    assert (cpu.vcpus, cpu.memory, cpu.accelerator, cpu.price) == (
        4,
        16 * 2**30,
        None,
        pytest.approx(0.0279 + 0.2 * 50 / 730),
    )
    gpu = next(offer for offer in offers if offer.accelerator is not None)
    assert gpu.accelerator.endswith(f"{gpu.accelerator_memory // 10**9}GB")
    assert gpu.accelerators >= 1
    assert any(offer.spot for offer in offers)


def test_a_machine_from_order_to_end(cloud):
    it = provider(cloud)
    offer = it.offers(Resources())[0]
    (made,) = it.create(order(offer))
    assert (made.order, made.tag, made.state) == ("sky-1-1-abc-1", "sky-1-1-abc", MachineState.STARTING)
    eventually(lambda: it.machines("sky-1-1-abc")[0].state is MachineState.RUNNING)
    assert it.machines("sky-1-1") == []
    assert it.machines("sky-1-1-abc")[0].endpoint.user == "root"
    it.destroy([made.id, "7d5b3c9e-0000-4000-8000-000000000000"])
    it.clear("sky-1-1-abc")
    assert cloud.meter.live == []


@pytest.mark.slow
def test_what_the_user_has_besides_is_not_ours(cloud):
    """However it is named; ``skyward down --all`` ends all that is shown here."""
    it = provider(cloud)
    driver = it.make_driver()
    size = next(size for size in driver.list_sizes() if size.id == "CPU.4V.16G")
    own = driver.create_node(
        "sky-prod-db",
        size,
        driver.list_images(ex_size=size)[0],
        NodeLocation("FIN-01", "FIN-01", "FI", driver),
        ex_os_volume={"name": "sky-prod-db-root", "size": 50},
        ex_ssh_key_ids=[driver.import_key_pair_from_string("sky-prod-key", make_key("x").public).extra["id"]],
        ex_startup_script_id=driver.ex_create_startup_script("sky-prod-1", "true").id,
    )
    eventually(lambda: driver.ex_get_node(own.id).public_ips)
    there = cloud.meter.live
    assert it.all_machines() == it.machines("sky-prod") == []
    assert sweep(it, "sky-prod", limit=20) == []
    assert cloud.meter.live == there
    driver.destroy_node(driver.ex_get_node(own.id))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("no_capacity", sky.NoCapacity),
        ("quota", sky.QuotaExceeded),
        ("bad_credentials", sky.AuthFailed),
        ("html", sky.CloudError),
        ("server_error", sky.CloudError),
        ("lost_reply", sky.CloudError),
    ],
)
def test_faults_of_create(cloud, fault, error):
    it = provider(cloud)
    offer = it.offers(Resources())[0]
    cloud.faults.on(fault, 1 if fault != "bad_credentials" else 9)
    with pytest.raises(error):
        it.create(order(offer))
    cloud.faults.clear()
    sweep(it, "sky-1-1-abc", limit=20)
    assert cloud.meter.live == []


@pytest.mark.lab
@pytest.mark.slow
def test_joblib_end_to_end(lab_cloud, index, capfd):
    pool = sky.Compute(
        provider=provider(lab_cloud),
        nodes=2,
        concurrency=2,
        image=sky.Image(index=index),
        console=False,
        plugins=[sky.plugins.joblib()],
    )
    with pool:
        assert Parallel(n_jobs=-1)(delayed(pow)(i, 2) for i in range(50)) == [i * i for i in range(50)]
        assert len(lab_cloud.meter.live) > 0
    assert lab_cloud.meter.live == []


class TestVerda(RentalConformance):
    pause = 0.02

    @pytest.fixture
    def rental(self, cloud):
        quick = type("Quick", (sky.Verda,), {"poll": 0.1, "listing_delay": 0.5, "retry_for": 1.0})
        faults = ("no_capacity", "quota", "throttle", "server_error", "html", "lost_reply")
        return Account(
            quick(client_id=cloud.client_id, client_secret=cloud.client_secret, url=cloud.base_url),
            live=lambda: cloud.meter.live,
            impostor=quick(client_id=cloud.client_id, client_secret="another-one-altogether", url=cloud.base_url),
            faults={fault: functools.partial(cloud.faults.on, fault) for fault in faults},
            calm=cloud.faults.clear,
        )


@pytest.mark.parametrize(("disk", "said"), [("abc", "is not a whole number"), (49, "is too small"), (None, "is not a")])
def test_a_disk_that_is_none(disk: object, said: str):
    with pytest.raises(sky.ConfigError, match=f"Verda disk={disk!r} {said}"):
        sky.Verda(disk=disk)
