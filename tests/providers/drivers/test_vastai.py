"""The libcloud driver of Vast.ai against the cloud of the lab, without hosts."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator

import pytest
import requests
from libcloud.common.exceptions import RateLimitReachedError
from libcloud.common.types import InvalidCredsError, MalformedResponseError
from libcloud.compute.base import Node, NodeSize
from libcloud.compute.types import NodeState

from skyward.providers.drivers.vastai import (
    VastAIError,
    VastAILeftoverError,
    VastAINodeDriver,
    VastAINotFoundError,
    VastAIOfferGoneError,
    VastAIRateLimitError,
)
from tests.lab.clouds.vastai import VastAI
from tests.lab.wait import eventually

DIRECT = {"direct_port_count": {"gte": 1}}


@pytest.fixture
def cloud() -> Iterator[VastAI]:
    with VastAI() as running:
        yield running


@pytest.fixture
def driver(cloud: VastAI) -> VastAINodeDriver:
    return connect(cloud)


def connect(cloud: VastAI, **options) -> VastAINodeDriver:
    return VastAINodeDriver(options.pop("key", cloud.key), url=cloud.url, **{"pace": 0.0, **options})


def one(sizes: list[NodeSize], id: int) -> NodeSize:
    return next(size for size in sizes if size.id == str(id))


def rent(driver: VastAINodeDriver, name: str = "pool-0", **options) -> Node:
    return driver.create_node(name, driver.ex_search_offers(DIRECT)[0], "python:3.12-slim", **options)


def wait_for(driver: VastAINodeDriver, node: Node, state: NodeState = NodeState.RUNNING) -> Node:
    seen = [node]

    def arrived() -> bool:
        seen[0] = driver.ex_get_node(node.id)
        return seen[0].state == state

    eventually(arrived, what=f"{node.id} to be {state}")
    return seen[0]


# Offers


def test_offers_are_verified_and_cheapest_first(driver: VastAINodeDriver) -> None:
    sizes = driver.ex_search_offers()
    assert len(sizes) == 14
    assert [size.price for size in sizes] == sorted(size.price for size in sizes)
    assert {size.extra["verification"] for size in sizes} == {"verified"}


def test_price_includes_storage(driver: VastAINodeDriver) -> None:
    without = one(driver.ex_search_offers(storage=8), 7001001).price
    assert one(driver.ex_search_offers(storage=738), 7001001).price == pytest.approx(without + 0.15)


def test_bids_have_the_least_bid_as_price(driver: VastAINodeDriver) -> None:
    size = one(driver.ex_search_offers(type="bid"), 7001001)
    assert (size.price, size.extra["type"]) == (0.12, "bid")


def test_a_size_is_the_share_of_the_host(driver: VastAINodeDriver) -> None:
    sizes = driver.ex_search_offers()
    size = one(sizes, 7001001)
    assert (size.name, size.ram, size.disk, size.extra["cpus"]) == ("1x RTX 4090", 64250, 500, 16.0)
    assert (size.extra["cpu_ram"], size.extra["country"]) == (257000, "US")
    unknown_cores = one(sizes, 7001009)
    assert (unknown_cores.ram, unknown_cores.extra["cpus"]) == (62875, 15.0)
    plain = one(sizes, 7002002)
    assert (plain.name, plain.ram, plain.extra["num_gpus"]) == ("CPU, 16 cores", 64250, 0)


def test_queries_reach_the_market(driver: VastAINodeDriver) -> None:
    def ids(**query) -> set[str]:
        return {size.id for size in driver.ex_search_offers(query)}

    assert ids(num_gpus={"eq": 0}, geolocation={"in": ["DE", "FR"]}) == {"7002002", "7002003"}
    assert ids(gpu_name={"eq": "H100 SXM"}, num_gpus={"gte": "2"}) == {"7001007", "7001008"}
    assert "7001012" in ids(verified=None)
    assert ids(cpu_cores={"gte": 200}) == {"7001006", "7001007"}
    assert ids(direct_port_count={"lt": 1}) == {"7001010", "7002004"}
    assert [size.id for size in driver.ex_search_offers(limit=1)] == [driver.ex_search_offers()[0].id]


# Instances


def test_an_instance_from_its_order_to_its_end(cloud: VastAI, driver: VastAINodeDriver) -> None:
    size = driver.ex_search_offers({"gpu_name": {"eq": "RTX 4090"}, **DIRECT})[0]
    env = {"A": "1", "-p 8000:8000": "1"}
    node = driver.create_node("pool-7", size, "python:3.12-slim", ex_disk=20, ex_onstart="echo hi", ex_env=env)
    assert (node.name, node.state, node.public_ips) == ("pool-7", NodeState.PENDING, [])
    assert len(node.extra["instance_api_key"]) == 64
    assert [driver.ex_get_node(node.id).extra["actual_status"] for _ in range(2)] == [None, "loading"]
    running = wait_for(driver, node)
    assert running.extra["extra_env"] == [["A", "1"], ["-p 8000:8000", "1"]]
    assert (running.extra["ssh_host"], running.extra["ssh_port"]) == (running.public_ips[0], 40022)
    assert running.extra["public_ipaddr"].endswith("\n")
    assert not running.public_ips[0].endswith("\n")
    assert running.extra["image_uuid"] == "python:3.12-slim"
    assert running.uuid == node.uuid
    assert driver.destroy_node(running)
    assert cloud.meter.live == []


def test_no_direct_address_before_it_runs(driver: VastAINodeDriver) -> None:
    node = rent(driver)
    for _ in range(2):
        seen = driver.ex_get_node(node.id)
        assert (seen.extra["ssh_host"], seen.extra["ssh_port"], "ports" in seen.extra) == (None, None, False)


def test_no_direct_address_without_a_mapped_port(driver: VastAINodeDriver) -> None:
    node = driver.create_node("x", one(driver.ex_search_offers(), 7001010), "image")
    assert wait_for(driver, node).extra["ssh_port"] is None


def test_destroy_may_be_repeated(cloud: VastAI, driver: VastAINodeDriver) -> None:
    node = rent(driver)
    assert driver.destroy_node(node)
    assert driver.destroy_node(node.id)
    assert cloud.meter.live == []


def test_an_unknown_id_is_not_found(driver: VastAINodeDriver) -> None:
    with pytest.raises(VastAINotFoundError) as caught:
        driver.ex_get_node("5")
    assert (caught.value.code, caught.value.error_code) == (404, "no_such_instance")
    with pytest.raises(ValueError, match=r"not an id of Vast\.ai"):
        driver.destroy_node("../users")


def test_all_pages_are_listed(cloud: VastAI, driver: VastAINodeDriver) -> None:
    cloud.offers = {n: {**cloud.offers[7001001], "id": n} for n in range(60)}
    sizes = driver.ex_search_offers()
    nodes = [driver.create_node(f"pool-{n}", size, "image") for n, size in enumerate(sizes)]
    cloud.requests.clear()
    assert {node.id for node in driver.list_nodes()} == {node.id for node in nodes}
    assert len(cloud.requests) == 3


def test_an_offer_is_gone_once_it_is_rented(cloud: VastAI, driver: VastAINodeDriver) -> None:
    size = driver.ex_search_offers()[0]
    node = driver.create_node("a", size, "image")
    with pytest.raises(VastAIOfferGoneError, match=rf"PUT /api/v0/asks/{size.id}/: .*is not available") as caught:
        driver.create_node("b", size, "image")
    assert (caught.value.code, caught.value.error_code) == (404, "no_such_ask")
    assert size.id not in {offer.id for offer in driver.ex_search_offers()}
    driver.destroy_node(node)
    again = next(offer for offer in driver.ex_search_offers() if offer.price == size.price)
    assert again.id != size.id
    cloud.faults.on("no_capacity")
    with pytest.raises(VastAIOfferGoneError):
        rent(driver)


def test_a_failed_bid_tells_what_it_left(cloud: VastAI, driver: VastAINodeDriver) -> None:
    size = driver.ex_search_offers(type="bid")[-1]
    with pytest.raises(VastAILeftoverError, match="destroy it") as caught:
        driver.create_node("a", size, "image", ex_bid=size.price / 2)
    left = driver.ex_get_node(caught.value.contract_id)
    assert left.state == NodeState.STOPPED
    assert left.extra["is_bid"]
    driver.destroy_node(left)
    cloud.faults.on("half_made")
    with pytest.raises(VastAILeftoverError) as caught:
        rent(driver)
    driver.destroy_node(caught.value.contract_id)
    assert cloud.meter.live == []


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"ex_onstart": "x" * 4097}, "4097 characters"),
        ({"ex_env": {"A": "x" * 40000}}, "env has"),
        ({"name": "x" * 257}, "name has 257"),
        ({"ex_disk": 4}, "disk of 4 GB"),
        ({"ex_bid": 0.0001}, r"bid of \$0.0001/h"),
        ({"ex_bid": 200}, r"bid of \$200/h"),
    ],
)
def test_limits_are_checked_before_anything_is_sent(cloud: VastAI, driver: VastAINodeDriver, options, wrong) -> None:
    size = driver.ex_search_offers()[0]
    cloud.requests.clear()
    with pytest.raises(ValueError, match=wrong):
        driver.create_node(**{"name": "a", "size": size, "image": "image", **options})
    assert cloud.requests == []


def test_an_outbid_instance_is_stopped_and_may_return(cloud: VastAI, driver: VastAINodeDriver) -> None:
    size = driver.ex_search_offers(DIRECT, type="bid")[0]
    node = wait_for(driver, driver.create_node("a", size, "image", ex_bid=size.price * 2))
    cloud.outbid(node.id)
    stopped = driver.ex_get_node(node.id)
    assert stopped.state == NodeState.STOPPED
    assert {stopped.extra[name] for name in ("intended_status", "cur_state", "next_state")} == {"stopped"}
    assert stopped.extra["ssh_port"] is None
    assert cloud.meter.live == [("instance", node.id)]
    cloud.resume(node.id)
    assert wait_for(driver, node).extra["ssh_port"] != node.extra["ssh_port"]


@pytest.mark.parametrize(
    ("status", "state"),
    [("exited", NodeState.ERROR), ("offline", NodeState.ERROR), ("unknown", NodeState.UNKNOWN)],
)
def test_a_failed_host_shows(cloud: VastAI, driver: VastAINodeDriver, status: str, state: NodeState) -> None:
    node = wait_for(driver, rent(driver))
    cloud.fail(node.id, status)
    failed = driver.ex_get_node(node.id)
    assert (failed.state, failed.extra["actual_status"]) == (state, status)


def test_a_container_that_cannot_start_shows(cloud: VastAI, driver: VastAINodeDriver) -> None:
    cloud.faults.on("fails_to_start")
    node = wait_for(driver, rent(driver), NodeState.ERROR)
    assert "OCI runtime create failed" in node.extra["status_msg"]


def test_slow_and_endless_boots_stay_in_loading(cloud: VastAI, driver: VastAINodeDriver) -> None:
    cloud.faults.on("slow_boot", seconds=0.3)
    cloud.faults.on("never_boots")
    endless, slow = rent(driver), rent(driver)
    began = time.monotonic()
    wait_for(driver, slow)
    assert time.monotonic() - began > 0.25
    stuck = driver.ex_get_node(endless.id)
    stuck = driver.ex_get_node(endless.id)
    assert (stuck.state, stuck.extra["actual_status"]) == (NodeState.PENDING, "loading")
    driver.destroy_node(endless)


@pytest.mark.parametrize(
    ("row", "state"),
    [
        ({"actual_status": None, "intended_status": "running"}, NodeState.PENDING),
        ({"actual_status": None, "intended_status": "stopped"}, NodeState.STOPPED),
        ({"actual_status": "running", "intended_status": "stopped"}, NodeState.STOPPING),
        ({"actual_status": "frozen", "intended_status": "frozen"}, NodeState.PAUSED),
        ({"actual_status": "created", "status_msg": "x: OCI runtime create failed: y"}, NodeState.ERROR),
        ({"actual_status": "new word"}, NodeState.UNKNOWN),
    ],
)
def test_states(driver: VastAINodeDriver, row: dict[str, object], state: NodeState) -> None:
    assert driver._state(row) == state


# The account


def test_the_balance(cloud: VastAI, driver: VastAINodeDriver) -> None:
    assert driver.ex_show_user()["credit"] == 25.0
    cloud.credit = 0.0
    with pytest.raises(VastAIError, match="lacks credit") as caught:
        rent(driver)
    assert caught.value.error_code == "insufficient_credit"


def test_an_instance_may_end_itself_and_nothing_else(cloud: VastAI, driver: VastAINodeDriver) -> None:
    node, other = rent(driver), rent(driver)
    inside = connect(cloud, key=node.extra["instance_api_key"])
    for forbidden in (
        lambda: inside.destroy_node(other),
        lambda: inside.destroy_node("5"),
        lambda: inside.ex_get_node(node.id),
        inside.list_nodes,
        inside.ex_search_offers,
    ):
        with pytest.raises(VastAIError) as caught:
            forbidden()
        assert caught.value.code == 403
    assert inside.destroy_node(node)
    assert cloud.meter.live == [("instance", other.id)]


# What goes wrong on the way


def test_wrong_keys_are_refused(cloud: VastAI, driver: VastAINodeDriver) -> None:
    with pytest.raises(InvalidCredsError, match="Invalid user key"):
        connect(cloud, key="bad").list_nodes()
    cloud.faults.on("bad_credentials")
    with pytest.raises(InvalidCredsError):
        driver.ex_show_user()
    with pytest.raises(InvalidCredsError, match="needs an API key"):
        VastAINodeDriver("")


def test_no_key_in_an_error(cloud: VastAI) -> None:
    with pytest.raises(InvalidCredsError) as caught:
        connect(cloud, key="very-secret").ex_show_user()
    assert "very-secret" not in str(caught.value)


def test_throttling_in_plain_text_and_json(cloud: VastAI, driver: VastAINodeDriver) -> None:
    cloud.faults.on("throttle")
    with pytest.raises(RateLimitReachedError, match="too frequent") as caught:
        driver.list_nodes()
    assert isinstance(caught.value, VastAIRateLimitError)
    assert (caught.value.code, caught.value.retry_after, caught.value.error_code) == (429, 0.0, None)
    cloud.faults.on("throttle", daily=True)
    with pytest.raises(VastAIRateLimitError) as caught:
        driver.ex_search_offers()
    assert caught.value.error_code == "search_quota_exceeded"
    assert driver.list_nodes() == []


@pytest.mark.parametrize(("told", "waits"), [("3600", 60.0), ("inf", 60.0), ("59", 59.0), ("-1", 0.0), ("soon", 0.0)])
def test_advice_to_wait_is_not_followed_for_ever(told: str, waits: float) -> None:
    """What ends machines would have to wait, too."""
    assert VastAIRateLimitError("", {"retry-after": told}, None).retry_after == waits


def test_advice_to_wait_is_followed_by_the_next_call(cloud: VastAI, driver: VastAINodeDriver) -> None:
    cloud.faults.on("throttle", wait=2.0)
    with pytest.raises(VastAIRateLimitError) as caught:
        driver.list_nodes()
    told = time.monotonic()
    assert caught.value.retry_after == 2.0
    waited = threading.Thread(target=connect(cloud).list_nodes)
    waited.start()
    driver.ex_show_user()  # another kind of call
    assert waited.is_alive(), "it waits for nobody"
    waited.join(30)
    assert time.monotonic() - told > 1.9


def test_a_proxys_page_is_malformed(cloud: VastAI, driver: VastAINodeDriver) -> None:
    cloud.faults.on("html")
    with pytest.raises(MalformedResponseError, match=r"GET /api/v1/instances/: the reply is an HTML page, status 502"):
        driver.list_nodes()


def test_server_errors_have_the_vendors_words(cloud: VastAI, driver: VastAINodeDriver) -> None:
    cloud.faults.on("server_error")
    with pytest.raises(VastAIError, match=r"500 server_error: GET /api/v0/users/current: Internal") as caught:
        driver.ex_show_user()
    assert caught.value.code == 500


def test_a_lost_reply_leaves_an_instance_with_its_label(cloud: VastAI, driver: VastAINodeDriver) -> None:
    size = driver.ex_search_offers()[0]
    cloud.faults.on("lost_reply")
    with pytest.raises(requests.exceptions.ConnectionError):
        driver.create_node("unique", size, "image")
    assert [node.name for node in driver.list_nodes()] == ["unique"]
    assert len(cloud.meter.ever("instance")) == 1


def test_libclouds_own_retries_stay_off(cloud: VastAI, driver: VastAINodeDriver, monkeypatch) -> None:
    monkeypatch.setenv("LIBCLOUD_RETRY_FAILED_HTTP_REQUESTS", "1")
    size = driver.ex_search_offers()[0]
    cloud.faults.on("lost_reply", math.inf)
    with pytest.raises(requests.exceptions.ConnectionError):
        driver.create_node("unique", size, "image")
    assert len(cloud.meter.ever("instance")) == 1


def test_a_young_instance_may_be_unknown(cloud: VastAI, driver: VastAINodeDriver) -> None:
    cloud.faults.on("eventual", seconds=0.2)
    node = rent(driver)
    assert driver.list_nodes() == []
    with pytest.raises(VastAINotFoundError):
        driver.ex_get_node(node.id)
    eventually(driver.list_nodes, what="the instance to be known")


def test_a_refusal_may_come_with_status_200(cloud: VastAI, driver: VastAINodeDriver) -> None:
    body = {"success": False, "error": "odd", "msg": "no luck"}
    cloud.app.view_functions[_endpoint(cloud, "/api/v0/users/current")] = lambda: body
    with pytest.raises(VastAIError, match="no luck") as caught:
        driver.ex_show_user()
    assert (caught.value.code, caught.value.error_code) == (200, "odd")


def test_pages_that_go_round_in_a_circle_end(cloud: VastAI, driver: VastAINodeDriver) -> None:
    body = {"success": True, "instances": [], "next_token": "again"}
    cloud.app.view_functions[_endpoint(cloud, "/api/v1/instances/")] = lambda: body
    with pytest.raises(MalformedResponseError, match="circle"):
        driver.list_nodes()


def _endpoint(cloud: VastAI, path: str) -> str:
    return next(rule.endpoint for rule in cloud.app.url_map.iter_rules() if rule.rule == path)


# The pace


def test_calls_of_an_account_are_kept_apart_over_threads(cloud: VastAI) -> None:
    drivers = [connect(cloud, pace=0.01) for _ in range(4)]
    failures: list[BaseException] = []

    def work(driver: VastAINodeDriver) -> None:
        try:
            for _ in range(5):
                driver.list_nodes()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=[driver], name="caller") for driver in drivers]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(cloud.requests) == 20
    assert time.monotonic() - began >= 19 * 0.01 * VastAINodeDriver.INTERVALS["list"]


def test_without_a_pace_the_vendor_refuses() -> None:
    with VastAI(pace=1.0) as cloud:
        driver = connect(cloud)
        driver.list_nodes()
        with pytest.raises(VastAIRateLimitError):
            driver.list_nodes()


def test_the_real_api_is_the_default() -> None:
    assert VastAINodeDriver("key").connection.host == "console.vast.ai"
