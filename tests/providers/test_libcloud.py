"""Any driver of Libcloud: DigitalOcean's against the lab's DigitalOcean, and what all profiles make of an order."""

from __future__ import annotations

import base64
import dataclasses
import functools
import inspect
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from joblib import Parallel, delayed
from libcloud.compute.base import NodeImage, NodeLocation, NodeSize
from libcloud.compute.drivers.digitalocean import DigitalOcean_v2_NodeDriver
from libcloud.compute.drivers.gce import GCENodeDriver
from libcloud.compute.drivers.linode import LinodeNodeDriverV4
from libcloud.compute.drivers.openstack import OpenStack_2_NodeDriver
from libcloud.compute.drivers.vultr import VultrNodeDriverV2
from libcloud.compute.types import NodeState

import skyward as sky
from skyward.core import registry
from skyward.core.machines.ssh_keys import make_key
from skyward.core.machines.sweep import sweep
from skyward.core.spec import MachineState, Offer, Order, Resources
from skyward.providers.libcloud import PROFILES, Libcloud, Profile
from skyward.testing.provider import Account, Pool, RentalBootConformance, RentalConformance
from tests.lab import Lab
from tests.lab.clouds import Machines
from tests.lab.clouds.digitalocean import DigitalOcean
from tests.remote import *  # noqa: F403  fixtures

FAULTS = ("no_capacity", "quota", "throttle", "server_error", "html", "lost_reply")
CLASSES = {
    "digitalocean": DigitalOcean_v2_NodeDriver,
    "gce": GCENodeDriver,
    "linode": LinodeNodeDriverV4,
    "openstack": OpenStack_2_NodeDriver,
    "vultr": VultrNodeDriverV2,
}


class Quick(Libcloud):
    """The provider, for a cloud that is near and has no other work."""

    listing_delay = 1.0
    poll = 0.2
    retry_for = 10.0


def provider(cloud: DigitalOcean, **options: Any) -> Quick:
    return Quick("digitalocean", **{"key": cloud.token, "url": cloud.url, **options})


def account(cloud: DigitalOcean) -> Account:
    return Account(
        provider(cloud),
        live=lambda: cloud.meter.live,
        impostor=provider(cloud, key="no-such-token"),
        faults={name: functools.partial(cloud.faults.on, name) for name in FAULTS},
        calm=cloud.faults.clear,
    )


@pytest.fixture(autouse=True)
def _state(tmp_path, monkeypatch):
    monkeypatch.setenv("SKYWARD_STATE", str(tmp_path / "state"))
    for profile in PROFILES.values():
        for name in (*profile.key_env, *profile.secret_env, *profile.options_env.values()):
            monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cloud() -> Iterator[DigitalOcean]:
    with DigitalOcean() as running:
        yield running


class TestConformance(RentalConformance):
    @pytest.fixture
    def rental(self, cloud: DigitalOcean) -> Account:
        return account(cloud)


@pytest.mark.lab
class TestBoot(RentalBootConformance):
    @pytest.fixture
    def rental(self, lab: Lab, cloud_init: None) -> Iterator[Account]:
        with DigitalOcean(Machines(lab)) as running:
            yield account(running)


# --- DigitalOcean ---


def test_offers(cloud: DigitalOcean):
    offers = {(o.machine, o.region): o for o in provider(cloud).offers(Resources())}
    small = offers["s-2vcpu-4gb", "fra1"]
    assert (small.vcpus, small.memory, small.price, small.accelerator) == (2, 4 * 2**30, 0.03571, None)
    gpu = offers["gpu-h100x1-80gb", "nyc1"]
    assert (gpu.accelerator, gpu.accelerators, gpu.accelerator_memory) == ("H100", 1, 80 * 10**9)
    assert ("c-32", "fra1") not in offers
    assert not any(region == "nyc2" for _, region in offers)  # closed


def test_offers_of_one_location(cloud: DigitalOcean):
    assert {o.region for o in provider(cloud, location="sgp1").offers(Resources())} == {"sgp1"}
    with pytest.raises(sky.NotFound, match=r"no location 'mars'; available: fra1, nyc1"):
        provider(cloud, location="mars").offers(Resources())


def test_what_a_droplet_is_made_of(cloud: DigitalOcean):
    pool = Pool(provider(cloud, create={"ex_create_attr": {"ipv6": True}}))
    for _ in range(2):  # the second is not made of what the first has left in the arguments
        made = pool.create(pool.provider.offers(Resources())[0])
    order = [json.loads(r.body) for r in cloud.requests if (r.method, r.path) == ("POST", "/v2/droplets")][-1]
    assert (order["image"], order["tags"], order["ipv6"]) == ("ubuntu-24-04-x64", ["skyward"], True)
    assert order["name"] == made.order
    assert order["user_data"].startswith("#cloud-config")
    (key,) = order["ssh_keys"]  # one of the pool, for without a key the cloud mails a password
    assert cloud.meter.ever("key") == [str(key)]
    assert pool.provider.settings()["create"] == {"ex_create_attr": {"ipv6": True}}
    sweep(pool.provider, pool.tag, limit=20)
    assert cloud.meter.live == []


def test_droplets_of_others_are_not_ours(cloud: DigitalOcean):
    pool = Pool(provider(cloud))
    driver = pool.provider.make_driver()
    size, image = NodeSize("c-4", "c-4", 1, 1, 1, 1.0, driver), NodeImage("debian-12-x64", "", driver)
    place = NodeLocation("nyc1", "nyc1", "", driver)
    strangers = [
        driver.create_node("sky-high", size, image, place, ex_create_attr={"tags": ["skyward"]}),
        driver.create_node(f"{pool.tag}-1", size, image, place, ex_create_attr={"tags": ["web"]}),
    ]
    assert pool.provider.all_machines() == []
    pool.provider.destroy(["1", "no-number"])
    assert len(driver.list_nodes()) == 2
    for node in strangers:
        driver.destroy_node(node)


def test_a_machine_that_ends_up_off_is_of_no_use(cloud: DigitalOcean):
    pool = Pool(provider(cloud))
    cloud.faults.on("fails_to_start")
    pool.create(pool.provider.offers(Resources())[0])
    assert [machine.state for machine in pool.machines()] == [MachineState.FAILED]
    sweep(pool.provider, pool.tag, limit=20)
    assert cloud.meter.live == []


def test_the_limit_of_an_account(cloud: DigitalOcean):
    cloud.limit = 0
    with pytest.raises(sky.QuotaExceeded, match=r"^libcloud:digitalocean: .*droplet limit"):
        Pool(provider(cloud)).create(provider(cloud).offers(Resources())[0])


@pytest.mark.parametrize(
    "says", ["Service is currently unavailable", "at capacity", "This will exceed your droplet limit of retries"]
)
def test_a_gateway_that_fails_after_the_droplet_was_made_is_not_believed(cloud: DigitalOcean, says: str):
    """It says nothing of what is free, and the machine costs."""
    pool = Pool(provider(cloud))
    offer = pool.provider.offers(Resources())[0]
    cloud.faults.on("lost_reply", gateway=says)
    with pytest.raises(sky.CloudError, match=says):
        pool.create(offer)
    assert len(pool.machines()) == 1
    sweep(pool.provider, pool.tag, limit=20)
    assert cloud.meter.live == []


def test_the_token_of_the_environment(cloud: DigitalOcean, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DIGITALOCEAN_TOKEN", cloud.token)
    assert Quick("digitalocean", url=cloud.url).machines("sky-1-1-abcdef") == []


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.usefixtures("cloud_init")
def test_joblib_on_droplets(lab: Lab, index: str):
    with DigitalOcean(Machines(lab)) as cloud:
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


# --- arguments ---


def test_an_unknown_driver_tells_the_nearest():
    with pytest.raises(sky.ConfigError, match=r"no such driver; it has .*digitalocean"):
        Libcloud("digitalocaen", "x")


def test_an_option_that_the_driver_does_not_take():
    """A place is what is mostly meant."""
    it = Libcloud("digitalocean", "geheim", region="fra1")
    with pytest.raises(
        sky.ConfigError, match=r"digitalocean'\).* does not take region: .* Set a region or zone with location="
    ):
        it.offers(Resources())


def test_it_is_called_as_the_command_line_takes_it():
    """Each cloud is one of its own in the ledger and in messages."""
    it = Libcloud("digitalocean", location="fra1")
    assert it.name == "libcloud:digitalocean"
    again = registry.provider(it.name, it.settings())
    assert (again.name, again.settings()) == (it.name, it.settings())
    assert registry.provider("libcloud:digitalocean", {"location": "fra1"}).settings() == it.settings()
    with pytest.raises(sky.AuthFailed, match=r"^libcloud:digitalocean: no credentials"):
        it.offers(Resources())


def test_clouds_whose_key_is_in_the_environment_are_found(monkeypatch: pytest.MonkeyPatch):
    assert Libcloud.found() == []
    monkeypatch.setenv("DIGITALOCEAN_ACCESS_TOKEN", "x")
    monkeypatch.setenv("VULTR_API_KEY", "x")
    assert [it.name for it in Libcloud.found()] == ["libcloud:digitalocean", "libcloud:vultr"]


def test_a_driver_without_a_profile_tells_how_to_write_one():
    with pytest.raises(sky.ConfigError, match=r"(?s)Profile\(user_data=.*ovh\.create_node\(.*ex_keyname") as caught:
        Libcloud("ovh", "x")
    assert "digitalocean, gce, linode, openstack, vultr" in str(caught.value)


def test_a_driver_without_user_data_is_refused():
    """Nothing would tell its machines from those of a man in the middle."""
    with pytest.raises(sky.ConfigError, match="takes no user data can't be used"):
        Libcloud("ovh", "x", profile=Profile(user_data="", key="ex_keyname", key_as="name"))


def test_a_profile_of_ones_own(cloud: DigitalOcean):
    own = dataclasses.replace(PROFILES["digitalocean"], image="debian-12-x64", user="admin")
    it = provider(cloud, profile=own)
    assert it.settings()["profile"]["image"] == "debian-12-x64"
    twin = Quick(key=cloud.token, **json.loads(json.dumps(it.settings())))
    assert twin.settings() == it.settings()
    pool = Pool(twin)
    made = pool.create(twin.offers(Resources())[0])
    order = next(json.loads(r.body) for r in cloud.requests if (r.method, r.path) == ("POST", "/v2/droplets"))
    assert order["image"] == "debian-12-x64"
    assert pool.machines()[0].endpoint.user == "admin"
    assert made.id
    sweep(twin, pool.tag, limit=20)


def test_options_must_be_such_as_can_be_written_down():
    with pytest.raises(sky.ConfigError, match="not JSON serializable"):
        Libcloud("digitalocean", "x", something=object())


@pytest.mark.parametrize("name", PROFILES)
def test_no_credentials_tells_where_they_were_sought(name: str):
    with pytest.raises(sky.AuthFailed, match=PROFILES[name].key_env[0]):
        Libcloud(name).offers(Resources())


# --- what each profile makes of an order ---


class Recorded:
    """A connection that writes down what is asked, and has an answer ready."""

    def __init__(self, reply: Any) -> None:
        self.reply = reply
        self.asked: list[tuple[str, str, Any]] = []

    def request(self, action: str, params: Any = None, data: Any = None, method: str = "GET", **_: Any) -> Any:
        self.asked.append((method, action, json.loads(data) if isinstance(data, str) else data))
        reply = self.reply(method, action) if callable(self.reply) else self.reply
        return SimpleNamespace(object=reply, status=200, success=lambda: True)

    async_request = request

    def get_service_name(self) -> str:
        return "nova"


def bare(name: str, reply: Any) -> Any:
    """A driver that was never connected."""
    driver = object.__new__(CLASSES[name])
    driver.connection = Recorded(reply)
    return driver


def order_of(offer: Offer) -> Order:
    key = make_key("x")
    return Order("sky-1-1-abcdef", 1, Resources(), name="sky-1-1-abcdef-1", offer=offer, host_key=key, user_key="k")


def placed(it: Libcloud, driver: Any, size: Any, place: Any) -> Any:
    """Place an order; the node that the driver makes of the answer."""
    offer = it._offer(size, place)
    arguments = it.arguments(driver, order_of(offer))
    inspect.signature(CLASSES[it.driver].create_node).bind(driver, **arguments)
    return it.create_machines(driver, order_of(offer))[0]


def test_every_shipped_profile_is_tried_here():
    assert set(CLASSES) == set(PROFILES)


def test_linode():
    reply = {
        "id": 7,
        "label": "sky-1-1-abcdef-1",
        "status": "provisioning",
        "ipv4": ["192.0.2.7", "192.168.1.2"],
        "tags": ["skyward"],
        "region": "eu-west",
        "ipv6": None,
        "hypervisor": "kvm",
        "specs": {},
        "alerts": {},
        "backups": {},
        "watchdog_enabled": True,
        "type": "g6-nanode-1",
        "image": "linode/ubuntu24.04",
        "created": "2026-01-01T00:00:00",
    }
    driver = bare("linode", reply)
    size = NodeSize("g6-nanode-1", "Nanode", 1024, 25, 1, 0.0075, driver, {"vcpus": 1})
    it = Libcloud("linode", "x")
    made = placed(it, driver, size, NodeLocation("eu-west", "eu-west", "UK", driver))
    ((method, path, body),) = driver.connection.asked
    assert (method, path) == ("POST", "/v4/linode/instances")
    assert (body["label"], body["type"], body["region"]) == ("sky-1-1-abcdef-1", "g6-nanode-1", "eu-west")
    assert (body["image"], body["tags"], body["authorized_keys"]) == ("linode/ubuntu24.04", ["skyward"], ["k"])
    assert len(body["root_pass"]) > 30
    assert base64.b64decode(body["metadata"]["user_data"]).startswith(b"#cloud-config")
    assert (made.id, made.endpoint.host, made.tag) == ("7", "192.0.2.7", "sky-1-1-abcdef")
    assert (it._offer(size, None).vcpus, it._offer(size, None).price) == (1, 0.0075)
    gpu = NodeSize("g2-gpu-rtx4000a1-s", "", 1024, 25, 1, 0.5, driver, {"vcpus": 4})
    assert (it._offer(gpu, None).accelerator, it._offer(gpu, None).accelerators) == ("RTX4000", 1)


def test_vultr():
    instance = {
        "id": "cb67",
        "label": "sky-1-1-abcdef-1",
        "main_ip": "0.0.0.0",
        "v6_main_ip": "",
        "plan": "vc2-1c-1gb",
        "os_id": 2284,
        "date_created": "2026-01-01T00:00:00+00:00",
        "region": "ewr",
        "ram": 1024,
        "disk": 25,
        **dict.fromkeys(("netmask_v4", "gateway_v4", "v6_network", "v6_network_size", "app_id", "image_id", "os"), ""),
        "features": [],
        "tag": "skyward",
        "status": "pending",
        "power_status": "running",
        "vcpu_count": 1,
        "allowed_bandwidth": 1,
        "server_status": "none",
        "firewall_group_id": "",
        "internal_ip": "",
    }
    images = [
        {"id": 2284, "name": "Ubuntu 24.04 LTS x64", "arch": "x64", "family": "ubuntu"},
        {"id": 1743, "name": "Ubuntu 22.04 LTS x64", "arch": "x64", "family": "ubuntu"},
    ]
    meta = {"total": 2, "links": {"next": "", "prev": ""}}
    driver = bare("vultr", lambda *_: {"os": images, "meta": meta, "instance": instance})
    extra = {"vcpu_count": 1, "locations": ["ewr"]}
    size = NodeSize("vc2-1c-1gb", "vc2-1c-1gb", 1024, 25, 1, 6.72, driver, extra)
    it = Libcloud("vultr", "x")
    made = placed(it, driver, size, NodeLocation("ewr", "New Jersey", "US", driver))
    method, path, body = driver.connection.asked[-1]
    assert (method, path) == ("POST", "/v2/instances")
    assert (body["label"], body["plan"], body["region"]) == ("sky-1-1-abcdef-1", "vc2-1c-1gb", "ewr")
    assert (body["os_id"], body["tag"]) == ("2284", "skyward")
    assert base64.b64decode(body["user_data"]).startswith(b"#cloud-config")
    assert (made.endpoint, made.state) == (None, MachineState.STARTING)  # 0.0.0.0 is no address yet
    assert it._offer(size, None).price == pytest.approx(0.01)  # it is told per month


def test_openstack():
    server = {
        "id": "u-u-i-d",
        "name": "sky-1-1-abcdef-1",
        "status": "BUILD",
        "metadata": {"skyward": "sky-1-1-abcdef"},
        "addresses": {"net": [{"addr": "203.0.113.9", "version": 4, "OS-EXT-IPS:type": "floating"}]},
        "created": "2026-01-01T00:00:00Z",
        "updated": "2026-01-01T00:00:00Z",
        "hostId": "",
        "tenant_id": "t",
        "user_id": "u",
        "key_name": None,
        "flavor": {"id": "1"},
        "image": {"id": "i"},
        "links": [{"rel": "self", "href": "/servers/u-u-i-d"}],
    }
    driver = bare("openstack", {"server": server})
    stamps = {"created_at": "2026-01-01", "updated_at": "2026-01-01", "min_ram": 0, "min_disk": 0, "status": "active"}
    names = ("Debian 12", "ubuntu-24.04-20260101", "ubuntu-24.04-20260601", "Ubuntu 22.04")
    images = {"images": [{"id": str(n), "name": name, **stamps} for n, name in enumerate(names)]}
    driver.image_connection = Recorded({**images, "first": "", "schema": ""})
    size = SimpleNamespace(id="1", name="m1", ram=2048, vcpus=2, price=0.0)
    it = Libcloud("openstack", "me", "secret", create={"ex_security_groups": ["ssh"], "networks": ["n-e-t"]})
    made = placed(it, driver, size, None)
    method, path, body = next(call for call in driver.connection.asked if call[0] == "POST")
    server = body["server"]
    assert (method, path, server["name"]) == ("POST", "/servers", "sky-1-1-abcdef-1")
    assert (server["flavorRef"], server["imageRef"]) == ("1", "2")  # the newest of its kind
    assert server["metadata"] == {"skyward": "sky-1-1-abcdef"}
    assert (server["security_groups"], server["networks"]) == ([{"name": "ssh"}], [{"uuid": "n-e-t"}])
    assert base64.b64decode(server["user_data"]).startswith(b"#cloud-config")
    assert (made.id, made.state, made.endpoint.user) == ("u-u-i-d", MachineState.STARTING, "ubuntu")
    offer = it._offer(size, None)
    assert (offer.vcpus, offer.memory, offer.region, offer.price) == (2, 2 * 2**30, None, None)


def test_gce():
    driver = bare("gce", {})
    zone = SimpleNamespace(id="2000", name="europe-west1-b", extra={"selfLink": "zone"})
    linked = SimpleNamespace(name="x", extra={"selfLink": "link"})
    made = SimpleNamespace(
        id="42", name="sky-1-1-abcdef-1", state=NodeState.RUNNING, public_ips=["203.0.113.9"], extra={"zone": zone}
    )
    asked: list[Any] = []
    driver.zone = None
    # What the driver looks up before, and after.
    for name in ("ex_get_network", "ex_get_disktype"):
        setattr(driver, name, lambda *_, **__: linked)
    driver.ex_get_image_from_family = lambda family: asked.append(family) or linked
    driver.ex_get_node = lambda *_: made
    extra = {"selfLink": "size", "zone": zone, "guestCpus": 2}
    size = SimpleNamespace(id="9", name="e2-small", ram=2048, price=None, extra=extra)
    it = Libcloud("gce", "me@project", "key.json", project="mine")
    machine = placed(it, driver, size, zone)
    assert asked == ["ubuntu-2404-lts-amd64"]
    ((method, path, body),) = driver.connection.asked
    assert (method, path) == ("POST", "/zones/europe-west1-b/instances")
    assert (body["name"], body["machineType"]) == ("sky-1-1-abcdef-1", "size")
    assert body["labels"] == {"skyward": "sky-1-1-abcdef"}
    (item,) = body["metadata"]["items"]
    assert item["key"] == "user-data"
    assert item["value"].startswith("#cloud-config")
    assert body["disks"][0]["autoDelete"] is True
    assert (machine.id, machine.state, machine.endpoint.user) == ("42", MachineState.RUNNING, "ubuntu")
    offer = it._offer(size, zone)
    assert (offer.vcpus, offer.memory, offer.region, offer.price) == (2, 2 * 2**30, "europe-west1-b", None)


@pytest.mark.parametrize("name", PROFILES)
def test_the_other_calls_of_each_profile_exist(name: str):
    profile, kind = PROFILES[name], CLASSES[name]
    inspect.signature(kind.list_sizes).bind(None, **profile.list_sizes)
    inspect.signature(kind.list_nodes).bind(None, **profile.list_nodes)
    inspect.signature(kind.destroy_node).bind(None, "node", **profile.destroy)
    if profile.key_as in ("id", "ids", "name") and profile.key is not None:
        inspect.signature(getattr(kind, profile.add_key)).bind(None, "name", "key")
        inspect.signature(kind.delete_key_pair).bind(None, "key")
