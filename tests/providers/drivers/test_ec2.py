"""The EC2 driver against the lab's EC2, of which boto3 says the same."""

from __future__ import annotations

import dataclasses
import socket
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

import pytest
from botocore.session import Session
from libcloud.common.types import InvalidCredsError, MalformedResponseError
from libcloud.compute.drivers.ec2 import EC2NodeDriver
from libcloud.compute.types import NodeState
from requests.exceptions import ConnectionError as LostConnection

from skyward.providers.drivers.ec2 import (
    EC2ClockSkewError,
    EC2CredentialsError,
    EC2Driver,
    EC2Error,
    EC2InUseError,
)
from skyward.providers.drivers.ec2_values import MAX_USER_DATA, Accelerator, Instance, Launch
from skyward.providers.drivers.ec2_wire import flatten
from tests.lab import eventually
from tests.lab.clouds.ec2 import EC2

pytestmark = pytest.mark.slow  # moto takes seconds to start

CANONICAL = "099720109477"
NOBLE = {"name": "ubuntu/images/*/ubuntu-noble-24.04-*-server-*", "architecture": "x86_64"}


@pytest.fixture
def cloud() -> Iterator[EC2]:
    with EC2(ending=0.1) as running:
        yield running


def driver_of(cloud: EC2, **changes: Any) -> EC2Driver:
    usual = {"key": cloud.access_key, "secret": cloud.secret_key, "region": "us-east-1", "url": cloud.url}
    return EC2Driver(**{**usual, **changes})


@pytest.fixture
def driver(cloud: EC2) -> EC2Driver:
    return driver_of(cloud)


@pytest.fixture
def launch(driver: EC2Driver) -> Launch:
    return Launch(image=driver.images([CANONICAL], NOBLE)[0].id, type="t3.micro")


def in_state(driver: EC2Driver, id: str, state: str) -> Instance:
    only = {"instance-id": id}
    return eventually(lambda: next((i for i in driver.describe_instances(only) if i.state == state), None), what=state)


def row(driver: EC2Driver, id: str) -> ET.Element:
    """What EC2 shows of an instance, of which `Instance` has only what its users need."""
    (found,) = driver.query("DescribeInstances", {"InstanceId": [id]}).findall("reservationSet/item/instancesSet/item")
    return found


def form(cloud: EC2, action: str) -> dict[str, str]:
    """The fields of the last request of an action."""
    bodies = [dict(parse_qsl(request.body)) for request in cloud.requests]
    return next(fields for fields in reversed(bodies) if fields.get("Action") == action)


# Regions and endpoints


def all_regions() -> list[tuple[str, str]]:
    session = Session()
    found = []
    for partition in session.get_available_partitions():
        for region in session.get_available_regions("ec2", partition):
            client = session.create_client("ec2", region, aws_access_key_id="a", aws_secret_access_key="b")
            found.append((region, client.meta.endpoint_url))
    return found


@pytest.mark.slow
def test_every_region_that_botocore_knows_has_the_same_endpoint():
    regions = all_regions()
    assert len(regions) > 30
    for region, url in regions:
        connection = EC2Driver("key", "secret", region=region).connection
        assert f"https://{connection.host}" == url
        assert connection.port == 443


def test_a_region_of_tomorrow_will_do_and_nonsense_will_not():
    assert EC2Driver("key", "secret", region="ap-east-17").connection.host == "ec2.ap-east-17.amazonaws.com"
    for name in ("", "us-east", "us-east-1a", "https://evil.example/", "US-EAST-1", "us-east-1.evil.example"):
        with pytest.raises(ValueError, match="not the name of an AWS region"):
            EC2Driver("key", "secret", region=name)


@pytest.mark.slow
def test_it_is_libclouds_driver_still(cloud: EC2, driver: EC2Driver, launch: Launch):
    assert isinstance(driver, EC2NodeDriver)
    (made,) = driver.run_instances(dataclasses.replace(launch, tags={"Name": "node"}))
    in_state(driver, made.id, "running")
    assert [(node.name, node.state) for node in driver.list_nodes()] == [("node", NodeState.RUNNING)]
    assert "secret" not in repr(driver)


# Launching and ending


TAGS = {"skyward-pool": "p1", "Name": "näme & co=<1>"}


@pytest.fixture
def fleet(driver: EC2Driver) -> Launch:
    """An order with all that an order can have."""
    image = driver.images([CANONICAL], NOBLE)[0]
    vpc = driver.default_vpc()
    assert vpc is not None
    return Launch(
        image=image.id,
        type="t3.micro",
        count=3,
        client_token="skyward-p1-1",
        user_data="#cloud-config\n# ü\n",
        spot=True,
        tags=TAGS,
        subnet=driver.subnets(vpc)[0].id,
        security_groups=[driver.create_security_group("skyward-p1", "nodes of p1", vpc, TAGS)],
        public_ip=True,
        root_device=image.root_device,
        disk_gib=40,
    )


def test_a_spot_fleet_is_asked_for_as_it_should(cloud: EC2, driver: EC2Driver, fleet: Launch):
    made = driver.run_instances(fleet)
    assert [one.state for one in made] == ["pending"] * 3
    assert [one.id for one in driver.run_instances(fleet)] == [one.id for one in made]
    with pytest.raises(EC2Error) as refused:
        driver.run_instances(dataclasses.replace(fleet, disk_gib=41))
    assert refused.value.code == "IdempotentParameterMismatch"
    sent = form(cloud, "RunInstances")
    assert sent["MetadataOptions.HttpTokens"] == "required"
    assert sent["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert sent["InstanceMarketOptions.SpotOptions.SpotInstanceType"] == "one-time"
    assert sent["InstanceMarketOptions.SpotOptions.InstanceInterruptionBehavior"] == "terminate"
    assert "InstanceMarketOptions.SpotOptions.MaxPrice" not in sent
    assert sent["BlockDeviceMapping.1.Ebs.DeleteOnTermination"] == "true"
    assert sent["BlockDeviceMapping.1.Ebs.VolumeType"] == "gp3"
    kinds = [value for name, value in sent.items() if name.endswith("ResourceType")]
    assert kinds == ["instance", "volume", "network-interface", "spot-instances-request"]


def test_what_an_instance_is_seen_to_be(driver: EC2Driver, fleet: Launch):
    made = driver.run_instances(fleet)
    one = in_state(driver, made[0].id, "running")
    seen = row(driver, one.id)
    shown = ("instanceType", "placement/availabilityZone", "instanceLifecycle", "imageId", "subnetId", "clientToken")
    expected = ["t3.micro", "us-east-1a", "spot", fleet.image, fleet.subnet, "skyward-p1-1"]
    assert [seen.findtext(path) for path in shown] == expected
    assert one.tags == TAGS
    assert one.public_ip is not None
    assert one.public_ip.startswith("192.0.2.")
    assert one.private_ip is not None
    assert one.private_ip.startswith("172.31.")
    assert len(seen.findall("blockDeviceMapping/item")) == 1
    assert [found.id for found in driver.describe_instances({"tag:skyward-pool": "p1"})] == [i.id for i in made]
    assert driver.describe_instances({"tag:skyward-pool": "p2"}) == []


def test_a_fleet_and_its_firewall_end(cloud: EC2, driver: EC2Driver, fleet: Launch):
    (group,) = fleet.security_groups
    for _ in range(2):
        driver.authorize(group, "203.0.113.7/32")
        driver.authorize(group, "2001:db8::7/128")
        driver.authorize_members(group)
    assert driver.security_groups({"tag:skyward-pool": "p1"}) == [group]
    made = driver.run_instances(fleet)
    with pytest.raises(EC2InUseError):
        driver.delete_security_group(group)
    assert driver.terminate_instances(one.id for one in made) == frozenset()
    for machine in made:
        assert in_state(driver, machine.id, "terminated").reason_code == "Client.UserInitiatedShutdown"
    assert driver.terminate_instances([made[0].id]) == frozenset()
    assert driver.delete_security_group(group)
    assert not driver.delete_security_group(group)
    assert cloud.meter.live == []


def test_volumes_that_stay(cloud: EC2, driver: EC2Driver, launch: Launch):
    image = driver.image(f"ami-{'0f1':0<17}")
    assert image.data_devices == ("/dev/sdf",)
    (made,) = driver.run_instances(dataclasses.replace(launch, image=image.id, tags=TAGS))
    tagged = {"tag:skyward-pool": "p1"}
    assert len(driver.volumes(tagged)) == 2
    (volume,) = driver.volumes({"attachment.device": "/dev/sdf"})
    with pytest.raises(EC2InUseError):
        driver.delete_volume(volume)
    driver.terminate_instances([made.id])
    in_state(driver, made.id, "terminated")
    assert driver.volumes({**tagged, "status": "available"}) == [volume]
    assert driver.delete_volume(volume)
    assert not driver.delete_volume(volume)
    assert cloud.meter.live == []


def test_the_simplest_launch(cloud: EC2, driver: EC2Driver, launch: Launch):
    (made,) = driver.run_instances(launch)
    assert row(driver, made.id).find("instanceLifecycle") is None
    sent = form(cloud, "RunInstances")
    assert not [name for name in sent if name.startswith(("InstanceMarket", "TagSpec", "NetworkInterface", "UserData"))]
    assert driver.run_instances(dataclasses.replace(launch, public_ip=False))[0].public_ip is None


def test_images_by_parameter_are_resolved_by_aws(driver: EC2Driver, launch: Launch):
    name = "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"
    (made,) = driver.run_instances(dataclasses.replace(launch, image=f"resolve:ssm:{name}"))
    assert row(driver, made.id).findtext("imageId") == launch.image


def test_part_of_a_fleet_is_taken(cloud: EC2, driver: EC2Driver, launch: Launch):
    cloud.capacity["t3.micro", "us-east-1a"] = 3
    assert len(driver.run_instances(dataclasses.replace(launch, count=5))) == 3
    with pytest.raises(EC2Error) as refused:
        driver.run_instances(dataclasses.replace(launch, count=5))
    assert refused.value.code == "InsufficientInstanceCapacity"
    assert refused.value.status == 500


@pytest.mark.parametrize(
    "changes",
    [
        {"user_data": "x" * (MAX_USER_DATA + 1)},
        {"user_data": "ü" * (MAX_USER_DATA // 2 + 1)},
        {"client_token": "x" * 65},
        {"client_token": "ü"},
        {"disk_gib": 10},
    ],
)
def test_a_launch_that_cannot_be_is_refused_before_it_is_sent(launch: Launch, changes: dict[str, Any]):
    with pytest.raises(ValueError, match=r"user data|client token|disk_gib"):
        dataclasses.replace(launch, **changes)
    assert "x" * 9 not in repr(dataclasses.replace(launch, user_data="x" * 9))


def test_unknown_ids_do_not_keep_the_others_alive(cloud: EC2, driver: EC2Driver, launch: Launch):
    made = driver.run_instances(dataclasses.replace(launch, count=5))
    unknown = {"i-0000000000000dead", "i-1111111111111dead", "nonsense"}
    assert driver.terminate_instances([*unknown, *(one.id for one in made)]) == unknown
    assert {one.state for one in driver.describe_instances({})} <= {"shutting-down", "terminated"}
    assert driver.terminate_instances([]) == frozenset()
    assert driver.describe_instances({"instance-id": ["i-0000000000000dead"]}) == []


def test_a_lost_reply_is_made_good_by_the_token(cloud: EC2, driver: EC2Driver, launch: Launch):
    order = dataclasses.replace(launch, count=2, client_token="once")
    cloud.faults.on("lost_reply")
    with pytest.raises(LostConnection):
        driver.run_instances(order)
    assert len(driver.run_instances(order)) == 2
    assert len(cloud.meter.ever("instance")) == 2


def test_a_spot_instance_taken_back_says_so(cloud: EC2, driver: EC2Driver, launch: Launch):
    (made,) = driver.run_instances(dataclasses.replace(launch, spot=True))
    in_state(driver, made.id, "running")
    cloud.evict(made.id, notice=0)
    assert in_state(driver, made.id, "terminated").reason_code == "Server.SpotInstanceTermination"


def test_many_instances_come_in_pages(cloud: EC2, driver: EC2Driver, launch: Launch):
    for _ in range(13):
        driver.run_instances(launch)
    cloud.requests.clear()
    pages = driver._pages("DescribeInstances", {}, 5)
    assert sum(len(page.findall("reservationSet/item")) for page in pages) == 13
    assert len(cloud.requests) == 3


# What there is and what it costs


@pytest.mark.slow
def test_types_have_plain_values(driver: EC2Driver):
    known = {one.name: one for one in driver.instance_types({})}
    assert len(known) > 100
    micro = known["t4g.micro"]
    assert (micro.vcpus, micro.memory_mib, micro.architectures) == (2, 1024, ("arm64",))
    assert micro.accelerators == ()
    assert known["p4d.24xlarge"].accelerators == (Accelerator("A100", "NVIDIA", 8, 40960),)
    assert known["g6f.large"].accelerators == (Accelerator("L4", "NVIDIA", 0.125, 2861),)
    assert known["trn1.2xlarge"].accelerators == (Accelerator("Trainium", "AWS", 1, 32768),)
    assert known["inf2.xlarge"].accelerators == (Accelerator("Inferentia2", "AWS", 1, 32768),)
    assert "spot" in known["g5.xlarge"].usage_classes
    some = driver.instance_types({"instance-type": ["g5.*"]})
    assert {one.name.split(".")[0] for one in some} == {"g5"}


@pytest.mark.slow
def test_offerings_and_spot_prices_by_zone(driver: EC2Driver):
    zones = driver.offerings(["t3.micro", "p5.48xlarge", "t99.micro"])
    assert set(zones) == {"t3.micro", "p5.48xlarge"}
    assert "us-east-1a" in zones["t3.micro"]
    names = sorted(one.name for one in driver.instance_types({}))[:103]  # more than go into one request
    assert set(driver.offerings(names)) == set(names)
    prices = driver.spot_prices(["t3.micro"])
    assert {zone for _, zone in prices} == zones["t3.micro"]
    on_demand = driver.on_demand_price("t3.micro")
    assert on_demand == 0.0104
    assert all(0 < price.price < on_demand for price in prices.values())
    assert len(driver.spot_prices(names)) > 100


def test_the_newest_price_counts(driver: EC2Driver, monkeypatch: pytest.MonkeyPatch):
    now = driver.spot_prices(["t3.micro"])
    query = driver.query

    def since_long_ago(action: str, parameters: Any) -> Any:
        return query(action, {**parameters, "StartTime": "2026-01-01T00:00:00Z"})

    monkeypatch.setattr(driver, "query", since_long_ago)
    assert {key: one.price for key, one in driver.spot_prices(["t3.micro"]).items()} == {
        key: one.price for key, one in now.items()
    }


def test_prices_that_nobody_knows_are_none(driver: EC2Driver):
    assert driver.on_demand_price("g5.4xlarge") is None  # a zero in the table
    assert driver.on_demand_price("t99.micro") is None
    assert EC2Driver("key", "secret", region="ap-east-17").on_demand_price("t3.micro") is None


def test_the_newest_image_comes_first(driver: EC2Driver):
    found = driver.images([CANONICAL], NOBLE)
    newest, older = found
    assert newest.created > older.created
    assert newest.root_device == "/dev/sda1"
    assert newest.created.tzinfo is not None
    assert driver.image(newest.id) == newest
    assert driver.images([CANONICAL], {"name": "no such image"}) == []
    with pytest.raises(EC2Error) as refused:
        driver.image("ami-0123456789abcdef0")
    assert refused.value.code == "InvalidAMIID.NotFound"


def test_subnets_come_by_zone(driver: EC2Driver):
    vpc = driver.default_vpc()
    assert vpc is not None
    subnets = driver.subnets(vpc)
    assert [subnet.zone for subnet in subnets] == [f"us-east-1{letter}" for letter in "abcdef"]
    assert all(subnet.default and subnet.free > 4000 for subnet in subnets)
    assert driver.subnets("vpc-0123456789abcdef0") == []


# Errors


def test_an_error_keeps_what_aws_said(cloud: EC2, driver: EC2Driver):
    cloud.faults.on("throttle")
    with pytest.raises(EC2Error) as refused:
        driver.default_vpc()
    error = refused.value
    assert (error.code, error.status, error.action) == ("RequestLimitExceeded", 503, "DescribeVpcs")
    assert len(error.request_id) == 32
    assert str(error).startswith(
        "RequestLimitExceeded: Request limit exceeded. [DescribeVpcs in us-east-1, HTTP 503, request "
    )
    assert type(error) is EC2Error


@pytest.mark.parametrize(("fault", "code"), [("bad_credentials", "AuthFailure"), ("token_expired", "RequestExpired")])
def test_bad_credentials_are_libclouds_error_too(cloud: EC2, driver: EC2Driver, fault: str, code: str):
    for call in (driver.default_vpc, driver.identity):
        cloud.faults.on(fault)
        with pytest.raises(InvalidCredsError, match=code) as refused:
            call()
        assert isinstance(refused.value, EC2CredentialsError)
        assert refused.value.code == code


def test_the_wrong_clock_is_told_from_the_wrong_keys(cloud: EC2, driver: EC2Driver):
    cloud.faults.on("clock_skew", seconds=900)
    with pytest.raises(EC2ClockSkewError, match="AuthFailure") as refused:
        driver.default_vpc()
    assert not isinstance(refused.value, InvalidCredsError)
    with pytest.raises(EC2CredentialsError):
        driver_of(cloud, secret="wrong").default_vpc()


@pytest.mark.parametrize("status", [200, 502])
@pytest.mark.parametrize("page", ["<html><body>Bad gateway</body></html>", "Service unavailable", "", "<a><b></a>"])
def test_what_is_not_from_aws_is_no_answer(status: int, page: str):
    with Stranger(status, page) as url:
        driver = EC2Driver("key", "secret", region="us-east-1", url=url)
        for call in (driver.default_vpc, driver.identity):
            with pytest.raises(MalformedResponseError, match=f"HTTP {status}") as refused:
                call()
            assert len(str(refused.value)) < 1000


class Stranger:
    """Answers all requests with one page."""

    def __init__(self, status: int, page: str) -> None:
        self.reply = f"HTTP/1.1 {status} X\r\nContent-Length: {len(page)}\r\nConnection: close\r\n\r\n{page}".encode()
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.thread = threading.Thread(target=self._serve)

    def __enter__(self) -> str:
        self.thread.start()
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}"

    def _serve(self) -> None:
        while True:
            try:
                line, _ = self.socket.accept()
            except OSError:
                return
            with line:
                received = b""
                while b"Action=" not in received:
                    received += line.recv(65536)
                line.sendall(self.reply)

    def __exit__(self, *_: object) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self.thread.join()


def test_pages_that_go_round_in_circles_end(driver: EC2Driver, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(driver, "query", lambda *_: ET.fromstring("<R><nextToken>again</nextToken></R>"))
    with pytest.raises(MalformedResponseError, match="in a circle"):
        driver.describe_instances({})


# Credentials and the wire


def test_temporary_credentials_and_identity(cloud: EC2, driver: EC2Driver):
    account, arn = driver.identity()
    assert account == "123456789012"
    assert arn.startswith("arn:aws:")
    cloud.temporary["ASIATEMPORARY0000001"] = ("secret+/=", "token+/=")
    temporary = {"key": "ASIATEMPORARY0000001", "secret": "secret+/="}
    assert driver_of(cloud, **temporary, token="token+/=").identity()[0] == account
    assert driver_of(cloud, **temporary, token="token+/=").default_vpc()
    with pytest.raises(EC2CredentialsError):
        driver_of(cloud, **temporary).default_vpc()


def test_everything_is_posted_and_signed(cloud: EC2, driver: EC2Driver, launch: Launch):
    cloud.requests.clear()
    driver.run_instances(dataclasses.replace(launch, user_data="+/= ü\n" * 1800, tags={"a b": "*~'()&=+%"}))
    driver.identity()
    assert {(request.method, *request.query) for request in cloud.requests} == {("POST",)}
    assert driver.describe_instances({})[0].tags == {"a b": "*~'()&=+%"}
    assert len(cloud.requests) == 3


def test_parameters_are_flattened():
    given = {"A": [{"B": 1, "C": ["x", "y"]}, {"B": True}], "D": {"E": None, "F": "ü"}, "G": [], "H": None, "I": ""}
    assert flatten(given) == {"A.1.B": "1", "A.1.C.1": "x", "A.1.C.2": "y", "A.2.B": "true", "D.F": "ü", "I": ""}
