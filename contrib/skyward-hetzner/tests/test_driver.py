"""The Libcloud driver against a local Hetzner Cloud."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from libcloud.common.exceptions import RateLimitReachedError
from libcloud.common.types import InvalidCredsError, MalformedResponseError
from libcloud.compute.base import NodeAuthSSHKey
from libcloud.compute.providers import get_driver, set_driver
from libcloud.compute.types import KeyPairDoesNotExistError, NodeState
from tests.lab.clouds.hetzner import Hetzner

from skyward_hetzner.driver import API, HetznerError, HetznerNodeDriver, HetznerRateLimitError

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFJYJCOe2DdvTcCpz4ZG4SVMuIdcoI4bZ6IaNbWwyIqp me"


@pytest.fixture
def cloud() -> Iterator[Hetzner]:
    with Hetzner(creation=0.05) as running:
        yield running


@pytest.fixture
def driver(cloud: Hetzner) -> HetznerNodeDriver:
    return connect(cloud)


def connect(cloud: Hetzner) -> HetznerNodeDriver:
    return HetznerNodeDriver(cloud.token, url=cloud.api)


def order(driver: HetznerNodeDriver, name: str = "web-1", **more: Any) -> Any:
    return driver.create_node(**{"name": name, "size": "cx23", "image": "ubuntu-24.04", **more})


def started(driver: HetznerNodeDriver, node: Any) -> Any:
    driver.ex_wait_for_actions(node.extra["actions"], timeout=10, interval=0.02)
    return driver.ex_get_node(node.id)


def refusal(code: str) -> Any:
    return pytest.raises(HetznerError, match=rf"\({code}[,)]")


def test_a_server_from_its_order_to_its_end(cloud: Hetzner, driver: HetznerNodeDriver):
    key = driver.import_key_pair_from_string("me", KEY, ex_labels={"pool": "a"})
    firewall = driver.ex_create_firewall("pool-a", sources=["192.0.2.1/32"], labels={"pool": "a"})
    made = order(
        driver,
        location="hel1",
        ex_ssh_keys=[key],
        ex_firewalls=[firewall["id"]],
        ex_labels={"pool": "a"},
        ex_user_data="#cloud-config\n{}\n",
    )
    assert made.state == NodeState.PENDING
    assert made.extra["root_password"] is None
    assert made.public_ips[0].startswith("192.0.2.")
    node = started(driver, made)
    assert node.state == NodeState.RUNNING
    assert (node.extra["location"], node.extra["labels"], node.extra["server_type"]) == ("hel1", {"pool": "a"}, "cx23")
    assert (node.size.price, node.image.name) == (pytest.approx(0.0056 * 1.19), "ubuntu-24.04")
    assert node.created_at.tzinfo is not None
    assert node.extra["firewalls"] == [firewall["id"]]
    assert driver.ex_list_firewalls("pool=a")[0]["applied_to"][0]["server"]["id"] == int(node.id)
    with refusal("resource_in_use") as caught:
        driver.ex_delete_firewall(firewall["id"])
    assert caught.value.transient
    assert driver.destroy_node(node)
    gone(driver)
    assert driver.ex_delete_firewall(firewall["id"])
    assert driver.delete_key_pair(key)
    assert cloud.meter.live == []
    with refusal("not_found"):
        driver.destroy_node(node)


def gone(driver: HetznerNodeDriver) -> None:
    deadline = time.monotonic() + 10
    while driver.list_nodes():
        assert time.monotonic() < deadline


def test_lists_follow_pages_and_selectors(driver: HetznerNodeDriver):
    for number in range(60):
        order(driver, f"web-{number}", ex_labels={"pool": "ab"[number % 2]}, ex_ipv6=False)
    assert len(driver.list_nodes()) == 60
    assert len(driver.list_nodes(ex_label_selector="pool=a")) == 30
    assert [node.name for node in driver.list_nodes(ex_name="web-7")] == ["web-7"]


def test_sizes_have_the_prices_of_a_place(driver: HetznerNodeDriver):
    anywhere = {size.name: size for size in driver.list_sizes()}
    arm = anywhere["cax11"]
    assert (arm.ram, arm.disk, arm.extra["vcpus"], arm.extra["architecture"]) == (4096, 40, 2, "arm")
    assert arm.price == pytest.approx(0.0060 * 1.19)
    assert arm.extra["prices"]["fsn1"]["net"] == pytest.approx(0.0060)
    assert anywhere["cx22"].extra["locations"] == {}  # retired
    assert not anywhere["cx53"].extra["locations"]["hel1"]["available"]
    in_us = {size.name: size for size in driver.list_sizes(location="ash")}
    assert sorted(in_us) == ["ccx13", "ccx63", "cpx11"]
    assert driver.ex_get_currency() == "EUR"


def test_images_and_locations(driver: HetznerNodeDriver):
    images = driver.list_images(ex_name="debian-12", ex_architecture="arm")
    assert [image.extra["architecture"] for image in images] == ["arm"]
    assert driver.get_image(images[0].id).name == "debian-12"
    node = order(driver, size="cax11", image=images[0])
    assert node.image.id == images[0].id
    places = {place.id: place for place in driver.list_locations()}
    assert (places["sin"].country, places["sin"].extra["network_zone"]) == ("SG", "ap-southeast")
    assert order(driver, "web-2", location=places["nbg1"]).extra["location"] == "nbg1"


def test_keys_by_their_name_and_by_what_they_are(driver: HetznerNodeDriver):
    with pytest.raises(KeyPairDoesNotExistError):
        driver.get_key_pair("me")
    with pytest.raises(KeyPairDoesNotExistError):
        order(driver, auth=NodeAuthSSHKey(KEY))
    driver.import_key_pair_from_string("me", KEY)
    assert driver.get_key_pair("me").public_key == KEY
    with refusal("uniqueness_error"):
        driver.import_key_pair_from_string("other", KEY)
    assert order(driver, auth=NodeAuthSSHKey(KEY.replace(" me", " elsewhere"))).extra["root_password"] is None
    assert order(driver, "web-2").extra["root_password"]


def test_a_server_that_was_not_started_is_off(driver: HetznerNodeDriver):
    assert started(driver, order(driver, ex_start=False, ex_ipv4=False)).state == NodeState.STOPPED


def test_user_data_over_the_limit_are_not_sent(cloud: Hetzner, driver: HetznerNodeDriver):
    with pytest.raises(ValueError, match="32769 bytes for server web-1"):
        order(driver, ex_user_data="x" * 32769)
    assert cloud.requests == []


def test_bad_input_names_the_field(driver: HetznerNodeDriver):
    with pytest.raises(HetznerError, match=r"\[name: must be a valid hostname.*\(invalid_input, correlation id"):
        order(driver, "not_a_host")


@pytest.mark.parametrize(
    ("fault", "code", "status", "transient"),
    [
        ("no_capacity", "resource_unavailable", 412, False),
        ("quota", "resource_limit_exceeded", 403, False),
        ("server_error", "service_error", 500, True),
        ("html", "http_502", 502, True),
    ],
)
def test_refusals_keep_the_code(
    cloud: Hetzner, driver: HetznerNodeDriver, fault: str, code: str, status: int, transient: bool
):
    cloud.faults.on(fault)
    with refusal(code) as caught:
        order(driver)
    assert (caught.value.code, caught.value.status, caught.value.transient) == (code, status, transient)
    assert order(driver).id


def test_a_page_instead_of_json(cloud: Hetzner, driver: HetznerNodeDriver):
    cloud.faults.on("html", status=200)
    with pytest.raises(MalformedResponseError):
        driver.list_nodes()


@pytest.mark.parametrize("fault", ["bad_credentials", "token_expired"])
def test_a_wrong_token(cloud: Hetzner, driver: HetznerNodeDriver, fault: str):
    cloud.faults.on(fault)
    with pytest.raises(InvalidCredsError, match="unable to authenticate") as caught:
        driver.list_nodes()
    assert caught.value.code == "unauthorized"
    with pytest.raises(InvalidCredsError, match="no API token"):
        HetznerNodeDriver("")


def test_a_throttle_says_how_long(cloud: Hetzner, driver: HetznerNodeDriver):
    for wait, least, most in ((7, 6, 8), (3000, 60, 60)):
        cloud.faults.on("throttle", wait=wait)
        with pytest.raises(RateLimitReachedError) as caught:
            driver.list_nodes()
        assert isinstance(caught.value, HetznerRateLimitError)
        assert caught.value.code == "rate_limit_exceeded"
        assert least <= caught.value.retry_after <= most
        assert wait - 1 <= caught.value.reset_after <= wait + 1


def test_a_server_is_locked_while_it_is_created():
    with Hetzner(creation=60) as cloud:
        driver = connect(cloud)
        node = order(driver)
        with refusal("locked") as caught:
            driver.destroy_node(node)
        assert caught.value.transient


def test_actions_that_fail_or_never_end(cloud: Hetzner, driver: HetznerNodeDriver):
    cloud.faults.on("fails_to_start")
    broken = order(driver)
    with pytest.raises(HetznerError, match=r"create_server failed: Action failed \(action_failed\)"):
        started(driver, broken)
    cloud.faults.on("never_boots")
    slow = order(driver, "slow")
    with pytest.raises(TimeoutError, match="start_server 0 %"):
        driver.ex_wait_for_actions(slow.extra["actions"], timeout=0.3, interval=0.02)
    assert driver.ex_get_node(slow.id).state == NodeState.STARTING
    driver.ex_wait_for_actions([])


def test_a_lost_reply_is_an_error_of_the_connection(cloud: Hetzner, driver: HetznerNodeDriver):
    cloud.faults.on("lost_reply")
    with pytest.raises(requests.ConnectionError):
        order(driver)
    assert [node.name for node in driver.list_nodes()] == ["web-1"]


def test_it_is_at_home_among_the_drivers():
    set_driver("hetzner-lab", "skyward_hetzner.driver", "HetznerNodeDriver")
    driver = get_driver("hetzner-lab")("token")
    connection = driver.connection
    assert f"https://{connection.host}{connection.request_path}" == API
    assert "token" not in repr(driver)
