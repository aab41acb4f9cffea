"""The lab's DigitalOcean, as Libcloud's own driver finds it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from libcloud.common.exceptions import BaseHTTPError, RateLimitReachedError
from libcloud.common.types import InvalidCredsError, MalformedResponseError
from libcloud.compute.base import NodeImage, NodeLocation, NodeSize
from libcloud.compute.drivers.digitalocean import DigitalOceanNodeDriver
from libcloud.compute.types import NodeState

from tests.lab import Lab, eventually

from .digitalocean import DigitalOcean
from .login import Login
from .machines import Machines

pytestmark = pytest.mark.slow  # what it tests is the lab

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFJYJCOe2DdvTcCpz4ZG4SVMuIdcoI4bZ6IaNbWwyIqp me"


@pytest.fixture
def cloud() -> Iterator[DigitalOcean]:
    with DigitalOcean() as running:
        yield running


@pytest.fixture
def driver(cloud: DigitalOcean) -> Any:
    return connect(cloud)


def connect(cloud: DigitalOcean) -> Any:
    # The driver takes no host, port or url (any keyword is a TypeError), so its connection is turned afterwards.
    driver = DigitalOceanNodeDriver(cloud.token)
    driver.connection.host, driver.connection.port, driver.connection.secure = cloud.host, cloud.port, 0
    driver.connection.connect()
    return driver


def order(
    driver: Any,
    name: str = "web-1",
    size: str = "s-1vcpu-1gb",
    region: str = "fra1",
    image: str = "ubuntu-24-04-x64",
    **more: Any,
) -> Any:
    return driver.create_node(
        name,
        NodeSize(size, size, 1024, 25, 1, 0.0, driver),
        NodeImage(image, image, driver),
        NodeLocation(region, region, "", driver),
        **more,
    )


def test_a_droplet_from_its_order_to_its_end(cloud: DigitalOcean, driver: Any):
    key = driver.create_key_pair("me", KEY)
    made = order(driver, ex_create_attr={"ssh_keys": [key.extra["id"]], "tags": ["pool:a"]}, ex_user_data="#!/bin/sh\n")
    assert (made.state, made.public_ips) == (NodeState.PENDING, [])
    node = eventually(lambda: next((n for n in driver.list_nodes() if n.state == NodeState.RUNNING), None))
    assert node.id == made.id
    assert node.public_ips[0].startswith("192.0.2.")
    assert node.private_ips[0].startswith("10.136.")
    assert (node.extra["tags"], node.extra["size_slug"], node.extra["vcpus"]) == (["pool:a"], "s-1vcpu-1gb", 1)
    assert node.extra["image"]["slug"] == "ubuntu-24-04-x64"
    assert driver.ex_list_events()[0]["status"] == "completed"
    assert [kind for kind, _ in cloud.meter.live] == ["key", "instance"]
    assert driver.reboot_node(node)
    assert driver.destroy_node(node)
    assert driver.delete_key_pair(key)
    assert (driver.list_nodes(), driver.list_key_pairs(), cloud.meter.live) == ([], [], [])
    assert cloud.meter.cost > 0
    with pytest.raises(BaseHTTPError, match="could not be found") as caught:
        driver.destroy_node(node)
    assert caught.value.code == 404


def test_lists_come_in_pages(cloud: DigitalOcean, driver: Any):
    for number in range(25):
        order(driver, f"web-{number}", ex_create_attr={"tags": ["odd"] if number % 2 else []})
    driver.ex_per_page = 10
    assert len(driver.list_nodes()) == 25
    assert len(cloud.requests) == 28
    headers = {"Authorization": f"Bearer {cloud.token}"}
    got = requests.get(f"{cloud.url}/v2/droplets?tag_name=odd&per_page=5&page=2", headers=headers, timeout=5).json()
    assert got["meta"] == {"total": 12}
    assert sorted(got["links"]["pages"]) == ["first", "last", "next", "prev"]
    assert "tag_name=odd" in got["links"]["pages"]["next"]
    assert requests.delete(f"{cloud.url}/v2/droplets?tag_name=odd", headers=headers, timeout=5).status_code == 204
    assert len(driver.list_nodes()) == 13


def test_names_need_not_be_unique(driver: Any):
    assert order(driver).id != order(driver).id


def test_what_is_sold(driver: Any):
    assert [place.id for place in driver.list_locations()] == ["nyc1", "fra1", "sgp1"]
    sizes = {size.id: size for size in driver.list_sizes()}
    size = sizes["c-4"]
    assert (size.ram, size.extra["vcpus"], size.price, size.extra["regions"]) == (8192, 4, 0.125, ["nyc1", "fra1"])
    images = {image.extra["slug"]: image for image in driver.list_images()}
    assert driver.get_image(images["debian-12-x64"].id).extra["distribution"] == "Debian"
    assert driver.ex_account_info()["droplet_limit"] == 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "not_a_host"}, "valid hostname"),
        ({"size": "huge"}, "invalid size"),
        ({"size": "c-32"}, "not available in this region"),
        ({"region": "mars1"}, "invalid region"),
        ({"image": "windows"}, "invalid image"),
        ({"ex_create_attr": {"ssh_keys": [1]}}, "invalid key identifiers"),
        ({"ex_create_attr": {"tags": ["no spaces"]}}, "Tag names"),
        ({"ex_user_data": "x" * 65537}, "too long"),
    ],
)
def test_orders_that_are_refused(cloud: DigitalOcean, driver: Any, change: dict[str, Any], message: str):
    with pytest.raises(BaseHTTPError, match=rf"{message}.* \(code: 422\)"):
        order(driver, **change)
    assert cloud.meter.live == []


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("no_capacity", BaseHTTPError, "not available in this region"),
        ("quota", BaseHTTPError, "droplet limit"),
        ("server_error", BaseHTTPError, "Unexpected server-side error"),
        ("bad_credentials", InvalidCredsError, "Unable to authenticate"),
        ("token_expired", InvalidCredsError, "Unable to authenticate"),
        ("html", MalformedResponseError, "cloudflare"),
        ("lost_reply", requests.ConnectionError, ""),
    ],
)
def test_faults_of_an_order(cloud: DigitalOcean, driver: Any, fault: str, error: type[Exception], message: str):
    cloud.faults.on(fault)
    with pytest.raises(error) as caught:
        order(driver)
    assert message in str(caught.value)
    assert len(cloud.meter.live) == (1 if fault == "lost_reply" else 0)


def test_a_throttle_says_when_to_come_again(cloud: DigitalOcean, driver: Any):
    cloud.faults.on("throttle", wait=7)
    with pytest.raises(RateLimitReachedError) as caught:
        driver.list_nodes()
    assert caught.value.retry_after == 7
    assert driver.list_nodes() == []


def test_keys_are_unique_by_what_they_are(driver: Any):
    driver.create_key_pair("me", KEY)
    with pytest.raises(BaseHTTPError, match="already in use"):
        driver.create_key_pair("again", KEY)
    with pytest.raises(BaseHTTPError, match="Key invalid"):
        driver.create_key_pair("me", "nonsense")


def test_droplets_that_are_unknown_never_boot_or_fail(cloud: DigitalOcean, driver: Any):
    cloud.faults.on("eventual", seconds=1)
    node = order(driver)
    assert driver.list_nodes() == []
    eventually(driver.list_nodes, what="the new droplet")
    cloud.faults.on("never_boots")
    slow = order(driver, "slow")
    assert driver.ex_get_node_details(slow.id).state == NodeState.PENDING
    cloud.faults.on("fails_to_start")
    broken = order(driver, "broken")
    assert driver.ex_get_node_details(broken.id).state == NodeState.STOPPED
    for each in (node, slow, broken):
        driver.destroy_node(each)
    assert cloud.meter.live == []


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.usefixtures("cloud_init")
def test_droplets_are_real_machines(lab: Lab, tmp_path: Path):
    login = Login(tmp_path)
    with DigitalOcean(Machines(lab)) as cloud:
        driver = connect(cloud)
        made = order(driver, ex_user_data=login.user_data(runcmd=["hostname > /ran"]))
        cloud.faults.on("wrong_host_key")
        impostor = order(driver, "impostor", ex_user_data=login.user_data())

        def address(id: int) -> str | None:
            ips = driver.ex_get_node_details(id).public_ips
            return ips[0] if ips else None

        place = eventually(lambda: address(made.id), 30, "an address")
        eventually(lambda: login.gets_in(place), 30, "the way in")
        eventually(lambda: login.ssh(place, "cat /ran").stdout == "web-1\n", 30, "the end of cloud-init")
        assert driver.ex_get_node_details(made.id).state == NodeState.RUNNING
        wrong = eventually(lambda: address(impostor.id), 30, "an address")
        eventually(lambda: "HAS CHANGED" in login.ssh(wrong, "true").stderr, 30, "the impostor")
        driver.destroy_node(made)
        driver.destroy_node(impostor)
        assert cloud.meter.live == []
