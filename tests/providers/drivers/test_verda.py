"""The libcloud driver of Verda, against the lab's Verda without machines."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from libcloud.common.exceptions import RateLimitReachedError
from libcloud.common.types import InvalidCredsError, MalformedResponseError
from libcloud.compute.base import Node, NodeImage, NodeLocation, NodeSize, StorageVolume
from libcloud.compute.providers import get_driver, set_driver
from libcloud.compute.types import NodeState

from skyward.providers.drivers import verda, verda_connection
from skyward.providers.drivers.verda import (
    VerdaAlreadyDiscontinuedError,
    VerdaError,
    VerdaNoCapacityError,
    VerdaNodeDriver,
    VerdaNotFoundError,
    VerdaStillProvisioningError,
)
from tests.lab import eventually
from tests.lab.clouds.verda import Verda

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ8b3mJ0Q9jQpXo7rT0p2Y8m8dQm3hZz0Wm9c4gq3b1x me@here"
CPU = "CPU.4V.16G"


@pytest.fixture
def cloud() -> Iterator[Verda]:
    with Verda() as running:
        yield running


@pytest.fixture
def driver(cloud: Verda) -> VerdaNodeDriver:
    return VerdaNodeDriver(cloud.client_id, cloud.client_secret, url=cloud.base_url)


def size(driver: VerdaNodeDriver, id: str = CPU) -> NodeSize:
    return NodeSize(id, id, 0, 0, None, 0.0, driver)


def image(driver: VerdaNodeDriver, id: str = "ubuntu-24.04") -> NodeImage:
    return NodeImage(id, id, driver)


def create(
    driver: VerdaNodeDriver, name: str = "sky-1", kind: str = CPU, place: str = "FIN-01", **options: Any
) -> Node:
    location = NodeLocation(place, place, "FI", driver)
    return driver.create_node(name, size(driver, kind), image(driver), location, **options)


def volume_of(driver: VerdaNodeDriver, volume_id: str) -> StorageVolume:
    return next(volume for volume in driver.list_volumes() if volume.id == volume_id)


def add_volume(driver: VerdaNodeDriver, size: int) -> StorageVolume:
    """A volume that is attached to nothing, which the driver itself has no use for."""
    wanted = {"type": "HDD", "name": "data", "size": size, "location_code": "FIN-01"}
    return volume_of(driver, driver._call("POST", "/volumes", body=wanted))


def running(driver: VerdaNodeDriver, node: Node) -> Node:
    def seen() -> Node | None:
        now = driver.ex_get_node(node.id)
        return now if now.state == NodeState.RUNNING else None

    return eventually(seen)


def sent(cloud: Verda, method: str, path: str) -> list[Any]:
    return [
        json.loads(got.body) if got.body else None
        for got in cloud.requests
        if (got.method, got.path) == (method, f"/v1{path}")
    ]


def tokens(cloud: Verda) -> int:
    return len(sent(cloud, "POST", "/oauth2/token"))


# Instances


def test_an_instance_from_its_order_to_its_end(cloud, driver):
    node = create(driver, ex_description="a test")
    assert (node.state, node.public_ips, node.name) == (NodeState.PENDING, [], "sky-1")
    assert sent(cloud, "POST", "/instances") == [
        {
            "instance_type": CPU,
            "image": "ubuntu-24.04",
            "hostname": "sky-1",
            "description": "a test",
            "location_code": "FIN-01",
            "ssh_key_ids": [],
            "is_spot": False,
            "contract": "PAY_AS_YOU_GO",
        }
    ]
    node = running(driver, node)
    assert node.public_ips == [cloud.instances[node.id].row["ip"]]
    assert [known.id for known in driver.list_nodes()] == [node.id]
    assert set(cloud.meter.live) == {("instance", node.id), ("volume", node.extra["os_volume_id"])}
    assert driver.destroy_node(node)
    assert cloud.meter.live == []
    assert driver.list_nodes() == []
    assert driver.ex_get_node(node.id).state == NodeState.TERMINATED


def test_list_nodes_shows_every_starting_state(cloud, driver):
    cloud.faults.on("never_boots", times=2)
    create(driver, "one")
    create(driver, "two")
    assert {node.extra["status"] for node in driver.list_nodes()} == {"ordered"}
    assert {node.extra["status"] for node in driver.list_nodes()} == {"provisioning"}


def test_destroy_is_refused_while_provisioning_and_then_accepted(cloud, driver):
    cloud.faults.on("never_boots")
    node = create(driver)
    for _ in range(3):
        with pytest.raises(VerdaStillProvisioningError, match="provisioning") as refused:
            driver.destroy_node(node)
    assert (refused.value.code, refused.value.error_code) == (403, "forbidden_action")
    cloud.boot(node.id)
    running(driver, node)
    driver.destroy_node(node)
    assert cloud.meter.live == []


def test_an_instance_that_verda_gives_up_on_can_be_destroyed(cloud, driver):
    cloud.faults.on("never_boots", seconds=0.0)
    node = create(driver)
    assert driver.ex_get_node(node.id).state == NodeState.ERROR
    driver.destroy_node(node)
    assert cloud.meter.live == []


@pytest.mark.parametrize("status", ["error", "no_capacity", "installation_failed"])
def test_an_instance_that_fails_to_start_ends_in_an_error(cloud, driver, status):
    cloud.faults.on("fails_to_start", status=status)
    node = create(driver)
    eventually(lambda: driver.ex_get_node(node.id).state == NodeState.ERROR)
    driver.destroy_node(node)
    assert cloud.meter.live == []


def test_destroy_deletes_every_volume_permanently(cloud, driver, monkeypatch):
    """Also those that somebody attached by other means."""
    other, call = add_volume(driver, 20), driver._call

    def more(method: str, path: str, params: Any = None, body: Any = None) -> Any:
        return call(method, path, params, {**body, "existing_volumes": [other.id]} if path == "/instances" else body)

    with monkeypatch.context() as patched:
        patched.setattr(driver, "_call", more)
        node = create(driver)
    assert len(running(driver, node).extra["volume_ids"]) == 2
    driver.destroy_node(node)
    assert driver.list_volumes() == []
    assert cloud.meter.live == []


def test_destroy_of_an_evicted_instance_deletes_the_volume_it_left(cloud, driver):
    node = running(driver, create(driver, ex_is_spot=True))
    cloud.evict(node.id)
    assert driver.ex_get_node(node.id).extra["status"] == "discontinued"
    assert [volume.extra["status"] for volume in driver.list_volumes()] == ["detached"]
    driver.destroy_node(node)
    assert cloud.meter.live == []
    driver.destroy_node(node)  # and may be repeated


def test_destroy_of_an_instance_whose_volume_is_in_the_trash(cloud, driver):
    volume = {"name": "os", "size": 50, "on_spot_discontinue": "move_to_trash"}
    node = running(driver, create(driver, ex_is_spot=True, ex_os_volume=volume))
    cloud.evict(node.id)
    assert [found.extra["status"] for found in driver.list_volumes()] == ["deleted"]
    driver.destroy_node(node)
    assert cloud.meter.live == []


def test_an_instance_that_ends_while_it_is_being_destroyed(cloud, driver):
    """It is evicted between the look and the delete, which is then refused."""
    node = running(driver, create(driver, ex_is_spot=True))
    look = driver._row

    def late(id: str | None) -> dict[str, Any]:
        row = look(id)
        cloud.evict(node.id)
        return row

    driver._row = late
    driver.destroy_node(node)
    assert cloud.meter.live == []


def test_a_refusal_inside_a_multi_status_reply_is_raised(driver, monkeypatch):
    told = [{"action": "delete", "instanceId": "x", "status": "error", "error": "", "statusCode": 403}]
    monkeypatch.setattr(driver, "_call", lambda *_, **__: told)
    for text, kind in [
        ("Can't discontinue a provisioning instance", VerdaStillProvisioningError),
        ("Can't discontinue a discontinued instance", VerdaAlreadyDiscontinuedError),
        ("no", VerdaError),
    ]:
        told[0]["error"] = text
        with pytest.raises(kind) as refused:
            driver._act("x", "delete")
        assert type(refused.value) is kind


def test_spot_instances(cloud, driver):
    volume = {"name": "os", "size": 60, "on_spot_discontinue": "delete_permanently"}
    node = running(driver, create(driver, ex_is_spot=True, ex_os_volume=volume))
    assert sent(cloud, "POST", "/instances")[0]["contract"] == "SPOT"
    assert node.extra["price_per_hour"] == pytest.approx(0.0139)
    cloud.evict(node.id)
    assert driver.list_nodes() == []
    assert cloud.meter.live == []


def test_a_created_id_survives_that_nothing_else_answers(cloud, driver):
    """Create asks nothing after its order, so nothing can fail after it."""
    cloud.faults.on("eventual", seconds=math.inf)
    node = create(driver)
    assert node.id in cloud.instances
    with pytest.raises(VerdaNotFoundError):
        driver.ex_get_node(node.id)
    assert driver.list_nodes() == []


def test_a_lost_reply_is_not_sent_again(cloud, driver, monkeypatch):
    monkeypatch.setenv("LIBCLOUD_RETRY_FAILED_HTTP_REQUESTS", "1")
    cloud.faults.on("lost_reply")
    with pytest.raises(requests.ConnectionError):
        create(driver)
    assert len(cloud.meter.ever("instance")) == 1
    assert [node.name for node in driver.list_nodes()] == ["sky-1"]  # by which it can be found


# Instance types and images


def test_sizes(driver):
    sizes = {found.id: found for found in driver.list_sizes()}
    cpu, gpus = sizes[CPU], sizes["8H100.80S.176V"]
    assert (cpu.ram, cpu.price, cpu.extra["cores"], cpu.extra["spot_price"]) == (16384, 0.0279, 4, 0.0139)
    assert (cpu.extra["gpu_count"], cpu.extra["gpu_model"], cpu.extra["gpu_memory_gb"]) == (0, None, 0.0)
    assert (gpus.extra["gpu_count"], gpus.extra["gpu_model"], gpus.extra["gpu_memory_gb"]) == (8, "H100", 640.0)
    assert gpus.price == 18.32  # of the whole machine


@pytest.mark.parametrize(("told", "price"), [("1.5", 1.5), (2, 2.0), ("0", None), (None, None), ("soon", None)])
def test_a_price_that_is_absent_is_none(told, price):
    assert verda._price(told) == price


def test_images(driver):
    assert {found.id for found in driver.list_images(ex_size=size(driver))} == {"ubuntu-24.04", "ubuntu-22.04"}
    assert "ubuntu-24.04-cuda-12.8-open-docker" in {found.id for found in driver.list_images()}


def test_availability(cloud, driver):
    cloud.sold_out.add((CPU, "FIN-01"))
    assert CPU not in driver.ex_availability(is_spot=False)["FIN-01"]
    assert driver.ex_availability(is_spot=True)["FIN-03"] == [CPU, "1L40S.20V", "1H100.80S.22V"]


def test_balance(driver):
    assert driver.ex_balance() == (100.5, "usd")


# Keys, scripts, volumes


def test_keys(cloud, driver):
    pair = driver.import_key_pair_from_string("mine", KEY)
    assert [found.extra["id"] for found in driver.list_key_pairs()] == [pair.extra["id"]]
    assert driver.delete_key_pair(pair)
    with pytest.raises(VerdaNotFoundError):
        driver.delete_key_pair(pair)
    with pytest.raises(VerdaError, match="Invalid SSH key"):
        driver.import_key_pair_from_string("bad", "no key")
    assert cloud.meter.live == []


def test_scripts(cloud, driver):
    first = driver.ex_create_startup_script("one", "#!/bin/bash\necho 1\n")
    second = driver.ex_create_startup_script("two", "#!/bin/bash\necho 2\n")
    assert [(found.id, found.name) for found in driver.ex_list_startup_scripts()] == [
        (first.id, "one"),
        (second.id, "two"),
    ]
    assert driver.ex_delete_startup_script(first)
    assert driver.ex_delete_startup_script(second)
    assert cloud.meter.live == []


def test_volumes(cloud, driver):
    volume = add_volume(driver, 100)
    assert (volume.extra["status"], volume.size) == ("detached", 100)
    node = running(driver, create(driver))
    with pytest.raises(VerdaError, match="attached"):
        driver.destroy_volume(volume_of(driver, node.extra["os_volume_id"]))
    assert len(driver.list_volumes()) == 2
    assert driver.destroy_volume(volume)
    assert volume.id not in [found.id for found in driver.list_volumes()]


@pytest.mark.parametrize("id", ["", "..", "a/b", "a?b", None])
def test_an_odd_id_never_reaches_the_api(cloud, driver, id):
    with pytest.raises(ValueError, match="not an id of Verda"):
        driver.ex_get_node(id)
    assert cloud.requests == []


# The connection


def test_the_token_comes_with_the_first_request_and_is_kept(cloud, driver):
    assert cloud.requests == []
    driver.list_nodes()
    driver.list_nodes()
    assert tokens(cloud) == 1
    assert cloud.requests[-1].headers["User-Agent"].startswith("libcloud/")


def test_a_token_is_replaced_before_it_ends(cloud, driver, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(verda_connection.time, "monotonic", lambda: now)
    driver.list_nodes()
    now += 3600 - 61
    driver.list_nodes()
    assert tokens(cloud) == 1
    now += 2
    driver.list_nodes()
    assert tokens(cloud) == 2


def test_a_token_refused_before_its_time_is_replaced_once(cloud, driver):
    driver.list_nodes()
    cloud.faults.on("token_expired")
    assert driver.list_nodes() == []
    assert tokens(cloud) == 2
    cloud.faults.on("token_expired", times=2)
    with pytest.raises(InvalidCredsError):
        driver.list_nodes()
    assert tokens(cloud) == 3


def test_an_order_refused_for_its_token_is_made_once(cloud, driver):
    driver.list_nodes()
    cloud.faults.on("token_expired")
    create(driver)
    assert len(cloud.meter.ever("instance")) == 1


def test_wrong_credentials(cloud):
    driver = VerdaNodeDriver(cloud.client_id, "wrong", url=cloud.base_url)
    with pytest.raises(InvalidCredsError, match="Invalid client id or client secret"):
        driver.list_nodes()
    assert tokens(cloud) == 1
    with pytest.raises(InvalidCredsError, match="client id"):
        VerdaNodeDriver("", "")


def test_the_real_api_is_the_default():
    connection = VerdaNodeDriver("id", "secret").connection
    assert (connection.host, connection.port, connection.request_path) == ("api.verda.com", 443, "/v1")


def test_libcloud_finds_it_when_told():
    set_driver("verda-test", "skyward.providers.drivers.verda", "VerdaNodeDriver")
    assert get_driver("verda-test") is VerdaNodeDriver


# Refusals


def test_no_capacity(cloud, driver):
    cloud.faults.on("no_capacity")
    with pytest.raises(VerdaNoCapacityError, match="No capacity available") as refused:
        create(driver)
    assert (refused.value.code, refused.value.error_code) == (503, "service_unavailable")
    assert cloud.meter.live == []


def test_no_funds(cloud, driver):
    cloud.faults.on("quota")
    with pytest.raises(VerdaError) as refused:
        create(driver)
    assert (refused.value.code, refused.value.error_code) == (402, "insufficient_funds")


def test_messages_in_a_list(driver):
    with pytest.raises(VerdaError, match=r"hostname must .*; os_volume needs") as refused:
        create(driver, "-bad-", ex_os_volume={"name": "x", "size": 1})
    assert (refused.value.code, refused.value.error_code) == (400, "invalid_request")


@pytest.mark.parametrize(("wait", "seconds"), [("7", 7.0), ("0.25", 0.25), ("soon", 0.0)])
def test_throttled(cloud, driver, monkeypatch, wait, seconds):
    driver.list_nodes()
    if wait == "soon":
        error = verda_connection.refusal(429, None, "slow down", {"retry-after": wait})
        assert isinstance(error, RateLimitReachedError)
        assert error.retry_after == seconds
        return
    cloud.faults.on("throttle", wait=float(wait))
    with pytest.raises(RateLimitReachedError, match="Rate limit exceeded") as refused:
        driver.list_nodes()
    assert refused.value.retry_after == seconds


def test_server_errors(cloud, driver):
    cloud.faults.on("server_error")
    with pytest.raises(VerdaError, match="500 server_error"):
        driver.list_nodes()
    cloud.faults.on("server_error", status=503)
    with pytest.raises(VerdaError) as refused:
        driver.list_nodes()
    assert type(refused.value) is VerdaError  # no lack of capacity


def test_a_proxy_that_answers_in_html(cloud, driver):
    for _ in range(2):  # to the request for a token, then to the request itself
        cloud.faults.on("html")
        with pytest.raises(MalformedResponseError, match="HTTP 502 with text/html"):
            driver.list_nodes()
        driver.list_nodes()


@pytest.mark.parametrize(
    ("body", "value"), [("", None), ("[1]", [1]), ("9dd1-ab", "9dd1-ab"), ('"9dd1"', "9dd1"), ("12", 12)]
)
def test_bodies(driver, body, value):
    assert reply(driver, 200, body).object == value


def test_a_page_with_status_200_is_no_id(driver):
    with pytest.raises(MalformedResponseError):
        reply(driver, 200, "<html>Please log in</html>")


def test_what_is_created_may_come_as_an_object_and_must_have_an_id():
    assert verda._new_id({"id": "a"}) == verda._new_id("a") == "a"
    for odd in (None, {}, [], ""):
        with pytest.raises(MalformedResponseError, match="found by name"):
            verda._new_id(odd)


def reply(driver: VerdaNodeDriver, status: int, body: str) -> verda.VerdaResponse:
    got = requests.Response()
    got.status_code, got._content, got.encoding = status, body.encode(), "utf-8"
    return verda.VerdaResponse(got, driver.connection)


def test_every_known_state_is_mapped():
    known = "new ordered provisioning running offline pending discontinued unknown notfound error deleting validating"
    more = "no_capacity installation_failed starting_hibernation hibernating restoring"
    assert set(VerdaNodeDriver.NODE_STATE_MAP) == {*known.split(), *more.split()}
