"""The lab's Hetzner Cloud, as the vendor's own client finds it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hcloud
import pytest
import requests
from hcloud.firewalls.domain import FirewallRule
from hcloud.images.domain import Image
from hcloud.locations.domain import Location
from hcloud.server_types.domain import ServerType

from tests.lab import Lab, eventually

from .hetzner import Hetzner
from .login import Login
from .machines import Machines

pytestmark = pytest.mark.slow  # what it tests is the lab

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFJYJCOe2DdvTcCpz4ZG4SVMuIdcoI4bZ6IaNbWwyIqp me"


@pytest.fixture
def cloud() -> Iterator[Hetzner]:
    with Hetzner() as running:
        yield running


@pytest.fixture
def client(cloud: Hetzner) -> hcloud.Client:
    return connect(cloud)


def connect(cloud: Hetzner) -> hcloud.Client:
    client = hcloud.Client(cloud.token, api_endpoint=cloud.api, poll_interval=0.02, poll_max_retries=1000)
    client._client._retry_interval_func = lambda _: 0.01
    return client


def order(client: hcloud.Client, name: str = "web-1", **more: Any) -> Any:
    more = {"server_type": ServerType(name="cx23"), "image": Image(name="ubuntu-24.04"), **more}
    return client.servers.create(name, **more)


def refusal(code: str) -> Any:
    return pytest.raises(hcloud.APIException, match=rf"\({code}, ")


def test_a_server_from_its_order_to_its_end(cloud: Hetzner, client: hcloud.Client):
    key = client.ssh_keys.create("me", KEY, labels={"pool": "a"})
    firewall = client.firewalls.create(
        "ssh", rules=[FirewallRule("in", "tcp", source_ips=["192.0.2.1/32"], port="22")]
    ).firewall
    made = order(client, ssh_keys=[key], firewalls=[firewall], labels={"pool": "a"}, location=Location(name="hel1"))
    assert made.root_password is None
    assert made.server.status == "initializing"
    assert made.action.command == "create_server"
    assert made.server.public_net.ipv4.ip.startswith("192.0.2.")
    for action in (made.action, *made.next_actions):
        action.wait_until_finished()
    server = client.servers.get_by_name("web-1")
    assert server.status == "running"
    assert (server.location.name, server.server_type.cores, server.image.os_flavor) == ("hel1", 2, "ubuntu")
    assert server.public_net.firewalls[0].firewall.name == "ssh"
    assert client.firewalls.get_by_id(firewall.id).applied_to[0].server.id == server.id
    kinds = [kind for kind, _ in cloud.meter.live]
    assert kinds == ["key", "firewall", "instance", "primary ip", "primary ip"]
    with refusal("resource_in_use"):
        firewall.delete()
    server.delete().wait_until_finished()
    assert client.servers.get_all() == []
    firewall.delete()
    key.delete()
    assert cloud.meter.live == []
    assert cloud.meter.cost > 0
    with refusal("not_found"):
        client.servers.get_by_id(server.id)


def test_a_server_is_locked_while_it_is_created():
    with Hetzner(creation=60) as cloud:
        client = connect(cloud)
        server = order(client).server
        assert client.servers.get_by_id(server.id).status == "initializing"
        with refusal("locked"):
            server.delete()
        cloud._servers[server.id].made_at = 0.0
        server.delete().wait_until_finished()
        assert cloud.meter.live == []


def test_without_a_key_root_gets_a_password(client: hcloud.Client):
    assert order(client).root_password


def test_lists_come_in_pages_and_by_labels(client: hcloud.Client):
    for number in range(60):
        client.ssh_keys.create(
            f"k{number}", f"ssh-ed25519 {number:08d}", labels={"n": str(number % 3), "odd": "x"} if number % 2 else {}
        )
    assert len(client.ssh_keys.get_all()) == 60
    page = client.ssh_keys.get_list(page=2, per_page=25)
    assert len(page.ssh_keys) == 25
    assert (page.meta.pagination.next_page, page.meta.pagination.last_page) == (3, 3)
    counts = {
        "odd": 30,
        "!odd": 30,
        "n=1": 10,
        "n==1,odd": 10,
        "n!=1": 50,
        "n in (0, 1)": 20,
        "odd,n notin (0,1)": 10,
        "n=7": 0,
    }
    assert {s: len(client.ssh_keys.get_all(label_selector=s)) for s in counts} == counts
    with refusal("invalid_input"):
        client.ssh_keys.get_list(per_page=51)


def test_what_is_sold(client: hcloud.Client):
    types = {kind.name: kind for kind in client.server_types.get_all()}
    assert types["cax11"].architecture == "arm"
    assert float(types["cx23"].prices[0]["price_hourly"]["net"]) == pytest.approx(0.0056)
    assert types["cx22"].locations[0].deprecation.unavailable_after.year == 2026
    assert {place.location.name: place.available for place in types["cx53"].locations}["hel1"] is False
    both = client.images.get_all(name="ubuntu-24.04")
    assert {image.architecture for image in both} == {"x86", "arm"}
    assert client.images.get_by_name_and_architecture("debian-12", "arm").architecture == "arm"
    assert client.locations.get_by_name("sin").network_zone == "ap-southeast"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"name": "not_a_host"}, "invalid_input"),
        ({"server_type": ServerType(name="cx99")}, "invalid_input"),
        ({"server_type": ServerType(name="cx22")}, "invalid_input"),  # retired
        ({"location": Location(name="ash")}, "invalid_input"),  # not offered there
        ({"server_type": ServerType(name="cx53"), "location": Location(name="hel1")}, "resource_unavailable"),
        ({"image": Image(name="windows")}, "invalid_input"),
        ({"labels": {"pool": "no spaces"}}, "invalid_input"),
        ({"user_data": "x" * 32769}, "invalid_input"),
    ],
)
def test_orders_that_are_refused(cloud: Hetzner, client: hcloud.Client, change: dict[str, Any], code: str):
    with refusal(code):
        order(client, **change)
    assert cloud.meter.live == []


def test_names_are_unique(client: hcloud.Client):
    order(client)
    with refusal("uniqueness_error"):
        order(client)
    client.ssh_keys.create("me", KEY)
    with refusal("uniqueness_error"):
        client.ssh_keys.create("other name, same key", KEY)
    client.firewalls.create("f")
    with refusal("uniqueness_error"):
        client.firewalls.create("f")


def test_the_project_has_a_limit():
    with Hetzner(limit=1) as cloud:
        client = connect(cloud)
        order(client)
        with refusal("resource_limit_exceeded"):
            order(client, "web-2")


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("no_capacity", "resource_unavailable"),
        ("quota", "resource_limit_exceeded"),
        ("server_error", "service_error"),
        ("bad_credentials", "unauthorized"),
        ("token_expired", "unauthorized"),
    ],
)
def test_faults_of_an_order(cloud: Hetzner, client: hcloud.Client, fault: str, code: str):
    cloud.faults.on(fault)
    with refusal(code):
        order(client)
    assert cloud.meter.live == []
    assert order(client).server.id


def test_a_throttle_passes_and_says_when(cloud: Hetzner, client: hcloud.Client):
    cloud.faults.on("throttle", wait=30)
    got = requests.get(f"{cloud.api}/servers", headers={"Authorization": f"Bearer {cloud.token}"}, timeout=5)
    assert (got.status_code, got.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 25 < int(got.headers["RateLimit-Reset"]) - time.time() < 32
    assert got.headers["RateLimit-Remaining"] == "0"
    cloud.faults.on("throttle", times=2)
    assert client.servers.get_all() == []  # the vendor's client tries again
    assert cloud.faults.happened == ["throttle"] * 3


def test_a_proxy_answers_with_its_page(cloud: Hetzner, client: hcloud.Client):
    cloud.faults.on("html", status=503)
    with pytest.raises(hcloud.APIException, match="503"):
        client.servers.get_all()


def test_an_order_whose_reply_is_lost_was_carried_out(cloud: Hetzner, client: hcloud.Client):
    cloud.faults.on("lost_reply")
    with pytest.raises(requests.ConnectionError):
        order(client)
    assert [server.name for server in client.servers.get_all()] == ["web-1"]


def test_a_new_server_is_unknown_for_a_while(cloud: Hetzner, client: hcloud.Client):
    cloud.faults.on("eventual", seconds=1)
    id = order(client).server.id
    assert client.servers.get_all() == []
    with refusal("not_found"):
        client.servers.get_by_id(id)
    eventually(client.servers.get_all, what="the new server")


def test_a_server_that_never_boots_stays_starting_and_can_be_deleted(cloud: Hetzner, client: hcloud.Client):
    cloud.faults.on("never_boots")
    made = order(client)
    made.action.wait_until_finished()
    assert client.servers.get_by_id(made.server.id).status == "starting"
    assert client.actions.get_by_id(made.next_actions[0].id).status == "running"
    made.server.delete().wait_until_finished()
    assert cloud.meter.live == []


def test_a_server_that_fails_to_start_ends_off_and_is_billed(cloud: Hetzner, client: hcloud.Client):
    cloud.faults.on("fails_to_start")
    made = order(client)
    with pytest.raises(hcloud.actions.domain.ActionFailedException, match="action_failed"):
        made.action.wait_until_finished()
    assert client.servers.get_by_id(made.server.id).status == "off"
    assert cloud.meter.ever("instance") == [str(made.server.id)]
    made.server.delete().wait_until_finished()
    assert cloud.meter.live == []


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.usefixtures("cloud_init")
def test_servers_are_real_machines(lab: Lab, tmp_path: Path):
    login = Login(tmp_path)
    with Hetzner(Machines(lab)) as cloud:
        client = connect(cloud)
        key = client.ssh_keys.create("me", login.public_key)
        data = login.user_data(runcmd=["hostname > /ran"])
        made = order(client, ssh_keys=[key], user_data=data)
        address = made.server.public_net.ipv4.ip
        made.next_actions[0].wait_until_finished()
        eventually(lambda: login.gets_in(address), 30, "the way in")
        eventually(lambda: login.ssh(address, "cat /ran").stdout == "web-1\n", 30, "the end of cloud-init")
        assert client.servers.get_by_id(made.server.id).public_net.ipv4.ip == address
        made.server.delete().wait_until_finished()
        assert not login.gets_in(address)
        key.delete()
        assert cloud.meter.live == []
    assert lab.hosts == [] or address not in {host.address for host in lab.hosts}


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.usefixtures("cloud_init")
def test_machines_that_are_silent_or_impostors(lab: Lab, tmp_path: Path):
    login = Login(tmp_path)
    with Hetzner(Machines(lab)) as cloud:
        client = connect(cloud)
        cloud.faults.on("never_answers")
        silent = order(client, "silent", user_data=login.user_data()).server
        cloud.faults.on("wrong_host_key")
        wrong = order(client, "wrong", user_data=login.user_data()).server
        for server in (silent, wrong):
            eventually(lambda server=server: cloud.boot_of(server.id).state == "up", 90, "both machines")
            assert client.servers.get_by_id(server.id).status == "running"
        assert "IDENTIFICATION HAS CHANGED" in login.ssh(wrong.public_net.ipv4.ip, "true").stderr
        assert "timed out" in login.ssh(silent.public_net.ipv4.ip, "true").stderr
