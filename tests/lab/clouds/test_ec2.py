"""The lab's EC2 against boto3, AWS's own client, and its instances as hosts."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.lab import Host, Lab, eventually
from tests.lab.seed import make_key
from tests.lazily import Lazy

from . import Machines
from .ec2 import EC2

pytestmark = pytest.mark.slow  # what it tests is the lab

boto3 = Lazy("boto3")

NOBLE = "resolve:ssm:/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"


def client(cloud: EC2, service: str = "ec2", **changes: Any) -> Any:
    keys = {"aws_access_key_id": cloud.access_key, "aws_secret_access_key": cloud.secret_key, **changes}
    config = Config(retries={"total_max_attempts": 1})
    return boto3.client(service, region_name="us-east-1", endpoint_url=cloud.url, config=config, **keys)


def launch(ec2: Any, **changes: Any) -> list[dict[str, Any]]:
    usual = {"ImageId": NOBLE, "InstanceType": "t3.micro", "MinCount": 1, "MaxCount": 1}
    return list(ec2.run_instances(**{**usual, **changes})["Instances"])


def seen(ec2: Any, id: str) -> dict[str, Any]:
    return dict(ec2.describe_instances(InstanceIds=[id])["Reservations"][0]["Instances"][0])


def in_state(ec2: Any, id: str, state: str, timeout: float = 10.0) -> dict[str, Any]:
    return eventually(
        lambda: now if (now := seen(ec2, id))["State"]["Name"] == state else {}, timeout, f"{id} is {state}"
    )


def code_of(failure: pytest.ExceptionInfo[ClientError]) -> str:
    return str(failure.value.response["Error"]["Code"])


@pytest.fixture
def cloud() -> Iterator[EC2]:
    with EC2(ending=0.1) as running:
        yield running


@pytest.fixture
def ec2(cloud: EC2) -> Any:
    return client(cloud)


def test_a_fleet_lives_and_ends(cloud: EC2, ec2: Any):
    vpc = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"][0]["VpcId"]
    group = ec2.create_security_group(GroupName="pool", Description="pool", VpcId=vpc)["GroupId"]
    made = launch(
        ec2,
        MinCount=2,
        MaxCount=3,
        SecurityGroupIds=[group],
        InstanceMarketOptions={"MarketType": "spot"},
        BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 30, "VolumeType": "gp3"}}],
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "pool", "Value": "p1"}]}],
    )
    assert [one["State"]["Name"] for one in made] == ["pending"] * 3
    assert all(one["SpotInstanceRequestId"].startswith("sir-") and "PublicIpAddress" not in one for one in made)
    ids = [one["InstanceId"] for one in made]
    assert cloud.meter.ever("instance") == ids
    ec2.get_waiter("instance_running").wait(InstanceIds=ids, WaiterConfig={"Delay": 1})
    assert seen(ec2, ids[0])["PublicIpAddress"].startswith("192.0.2.")
    assert {tag["Key"]: tag["Value"] for tag in seen(ec2, ids[0])["Tags"]} == {"pool": "p1"}
    with pytest.raises(ClientError) as refused:
        ec2.delete_security_group(GroupId=group)
    assert code_of(refused) == "DependencyViolation"
    ended = ec2.terminate_instances(InstanceIds=ids)["TerminatingInstances"]
    assert [one["CurrentState"]["Name"] for one in ended] == ["shutting-down"] * 3
    for id in ids:
        in_state(ec2, id, "terminated")
    ec2.terminate_instances(InstanceIds=ids)
    assert seen(ec2, ids[0])["StateReason"]["Code"] == "Client.UserInitiatedShutdown"
    volumes = [line for line in cloud.meter.live if line[0] == "volume"]
    assert len(volumes) == 3  # nobody said that they end with their instances
    for _, volume in volumes:
        ec2.delete_volume(VolumeId=volume)
    ec2.delete_security_group(GroupId=group)
    assert cloud.meter.live == []
    (default,) = ec2.describe_security_groups()["SecurityGroups"]
    with pytest.raises(ClientError) as refused:
        ec2.delete_security_group(GroupId=default["GroupId"])
    assert code_of(refused) == "CannotDelete"


def test_a_root_volume_of_another_name_comes_besides(ec2: Any):
    mapping = [{"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 30}}]
    (made,) = launch(ec2, BlockDeviceMappings=mapping)
    assert len(seen(ec2, made["InstanceId"])["BlockDeviceMappings"]) == 2


@pytest.mark.parametrize(
    ("said", "left"), [([], 1), ([{"DeviceName": "/dev/sdf", "Ebs": {"DeleteOnTermination": True}}], 0)]
)
def test_a_data_volume_of_an_image_stays_unless_told(cloud: EC2, ec2: Any, said: list[Any], left: int):
    image = f"ami-{'0f1':0<17}"
    (described,) = ec2.describe_images(ImageIds=[image])["Images"]
    assert [one["DeviceName"] for one in described["BlockDeviceMappings"]] == ["/dev/sda1", "/dev/sdf"]
    assert not described["BlockDeviceMappings"][1]["Ebs"]["DeleteOnTermination"]
    (made,) = launch(ec2, ImageId=image, BlockDeviceMappings=said)
    (volume,) = ec2.describe_volumes(Filters=[{"Name": "attachment.device", "Values": ["/dev/sdf"]}])["Volumes"]
    with pytest.raises(ClientError) as refused:
        ec2.delete_volume(VolumeId=volume["VolumeId"])
    assert code_of(refused) == "VolumeInUse"
    ec2.terminate_instances(InstanceIds=[made["InstanceId"]])
    in_state(ec2, made["InstanceId"], "terminated")
    assert len(ec2.describe_volumes(Filters=[{"Name": "status", "Values": ["available"]}])["Volumes"]) == left
    assert len(cloud.meter.live) == left


def test_a_client_token_gives_the_same_instances_again(cloud: EC2, ec2: Any):
    first, again = (launch(ec2, ClientToken="one", MaxCount=2) for _ in range(2))
    assert [one["InstanceId"] for one in first] == [one["InstanceId"] for one in again]
    assert len(cloud.meter.ever("instance")) == 2
    with pytest.raises(ClientError) as refused:
        launch(ec2, ClientToken="one", InstanceType="t3.small", MaxCount=2)
    assert code_of(refused) == "IdempotentParameterMismatch"
    launch(ec2, ClientToken="two")
    assert len(cloud.meter.ever("instance")) == 3


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"ImageId": "ami-0123456789abcdef0"}, "InvalidAMIID.NotFound"),
        ({"ImageId": "ubuntu"}, "InvalidAMIID.Malformed"),
        ({"ImageId": "resolve:ssm:/aws/service/none"}, "InvalidParameterValue"),
        ({"InstanceType": "t99.micro"}, "InvalidParameterValue"),
        ({"InstanceType": "t4g.micro"}, "InvalidParameterValue"),  # of another architecture than the image
        ({"InstanceType": "c5.12xlarge", "Placement": {"AvailabilityZone": "us-east-1e"}}, "Unsupported"),
        ({"SubnetId": "subnet-0123456789abcdef0"}, "InvalidSubnetID.NotFound"),
        ({"UserData": "x" * 16385}, "InvalidParameterValue"),
        ({"MinCount": 2}, "InvalidParameterValue"),
        (
            {"TagSpecifications": [{"ResourceType": "spot-instances-request", "Tags": [{"Key": "a", "Value": "b"}]}]},
            "InvalidParameterValue",
        ),
    ],
)
def test_a_wrong_launch_is_refused(cloud: EC2, ec2: Any, changes: dict[str, Any], code: str):
    with pytest.raises(ClientError) as refused:
        launch(ec2, **changes)
    assert code_of(refused) == code
    assert cloud.meter.live == []


def test_types_are_paged_and_match_the_offerings(ec2: Any):
    pages = list(ec2.get_paginator("describe_instance_types").paginate())
    names = [one["InstanceType"] for page in pages for one in page["InstanceTypes"]]
    assert len(pages) > 1
    assert len(names) == len(set(names)) > 100
    assert all(len(page["InstanceTypes"]) <= 100 for page in pages)
    wanted = [{"Name": "instance-type", "Values": ["g5.*"]}]
    some = ec2.describe_instance_types(Filters=wanted)["InstanceTypes"]
    assert some[0]["GpuInfo"]["Gpus"][0]["Name"] == "A10G"
    answer = ec2.describe_instance_type_offerings(LocationType="availability-zone", Filters=wanted)
    assert {one["InstanceType"] for one in answer["InstanceTypeOfferings"]} == {one["InstanceType"] for one in some}
    with pytest.raises(ClientError) as refused:
        ec2.describe_instance_types(InstanceTypes=["t99.micro"])
    assert code_of(refused) == "InvalidInstanceType"


def test_spot_prices_are_of_now_and_below_on_demand(ec2: Any):
    now = datetime.now(UTC)
    usual = {"InstanceTypes": ["t3.micro"], "ProductDescriptions": ["Linux/UNIX"]}
    prices = ec2.describe_spot_price_history(**usual, StartTime=now)["SpotPriceHistory"]
    assert len({one["AvailabilityZone"] for one in prices}) == len(prices) > 1
    assert all(0.001 < float(one["SpotPrice"]) < 0.0104 and one["Timestamp"] < now for one in prices)
    longer = ec2.describe_spot_price_history(**usual, StartTime=now - timedelta(days=1))["SpotPriceHistory"]
    assert len(longer) == 2 * len(prices)
    assert ec2.describe_spot_price_history(ProductDescriptions=["Windows"])["SpotPriceHistory"] == []


def test_images_have_dates_and_owners(ec2: Any):
    name = [{"Name": "name", "Values": ["ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-arm64-server-*"]}]
    found = ec2.describe_images(Owners=["099720109477"], Filters=name)["Images"]
    assert len(found) == 2
    assert {image["Architecture"] for image in found} == {"arm64"}
    assert len({image["CreationDate"] for image in found}) == 2


def test_credentials_are_checked(cloud: EC2):
    assert client(cloud, "sts").get_caller_identity()["Account"] == "123456789012"
    cloud.temporary["ASIATEMPORARY0000001"] = ("secret", "token")
    wrong = [
        {"aws_secret_access_key": "wrong"},
        {"aws_access_key_id": "AKIAUNKNOWN000000001"},
        {"aws_session_token": "unexpected"},
        {"aws_access_key_id": "ASIATEMPORARY0000001", "aws_secret_access_key": "secret"},
    ]
    for keys in wrong:
        for call in (client(cloud, **keys).describe_vpcs, client(cloud, "sts", **keys).get_caller_identity):
            with pytest.raises(ClientError) as refused:
                call()
            assert code_of(refused) == "AuthFailure"
    right = {**wrong[3], "aws_session_token": "token"}
    assert client(cloud, **right).describe_vpcs()["Vpcs"]


@pytest.mark.parametrize(
    ("fault", "code", "status"),
    [
        ("throttle", "RequestLimitExceeded", 503),
        ("server_error", "InternalError", 500),
        ("bad_credentials", "AuthFailure", 401),
        ("token_expired", "RequestExpired", 400),
        ("no_capacity", "InsufficientInstanceCapacity", 500),
        ("quota", "VcpuLimitExceeded", 400),
    ],
)
def test_faults_have_aws_codes(cloud: EC2, ec2: Any, fault: str, code: str, status: int):
    cloud.faults.on(fault)
    with pytest.raises(ClientError) as refused:
        launch(ec2)
    assert code_of(refused) == code
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert cloud.meter.live == []
    assert launch(ec2)


def test_capacity_is_given_in_part(cloud: EC2, ec2: Any):
    cloud.capacity["t3.micro", "us-east-1a"] = 3
    assert len(launch(ec2, MinCount=1, MaxCount=5)) == 3
    with pytest.raises(ClientError) as refused:
        launch(ec2)
    assert code_of(refused) == "InsufficientInstanceCapacity"
    assert len(launch(ec2, Placement={"AvailabilityZone": "us-east-1b"})) == 1


def test_a_new_instance_is_unknown_for_a_while(cloud: EC2, ec2: Any):
    cloud.faults.on("eventual", seconds=3.0)
    (made,) = launch(ec2)
    id = made["InstanceId"]
    for call in (
        lambda: seen(ec2, id),
        lambda: ec2.terminate_instances(InstanceIds=[id]),
        lambda: ec2.create_tags(Resources=[id], Tags=[{"Key": "a", "Value": "b"}]),
    ):
        with pytest.raises(ClientError) as refused:
            call()
        assert code_of(refused) == "InvalidInstanceID.NotFound"
    assert ec2.describe_instances()["Reservations"] == []
    eventually(lambda: ec2.describe_instances()["Reservations"], what="the new instance")


def test_a_launch_that_fails_says_why(cloud: EC2, ec2: Any):
    cloud.faults.on("fails_to_start")
    (made,) = launch(ec2)
    assert in_state(ec2, made["InstanceId"], "terminated")["StateReason"]["Code"] == "Server.InternalError"
    cloud.faults.on("never_boots")
    (made,) = launch(ec2)
    cloud.machines.boot().wait_for_address()
    assert seen(ec2, made["InstanceId"])["State"]["Name"] == "pending"


def test_spot_instances_are_taken_back(cloud: EC2, ec2: Any):
    (made,) = launch(ec2, InstanceMarketOptions={"MarketType": "spot"})
    in_state(ec2, made["InstanceId"], "running")
    cloud.evict(made["InstanceId"], notice=0)
    gone = in_state(ec2, made["InstanceId"], "terminated")
    assert gone["StateReason"]["Code"] == "Server.SpotInstanceTermination"


def test_a_spot_price_above_the_limit(cloud: EC2, ec2: Any):
    usual = {"InstanceTypes": ["t3.micro"], "AvailabilityZone": "us-east-1a", "StartTime": datetime.now(UTC)}
    (now,) = ec2.describe_spot_price_history(**usual)["SpotPriceHistory"]
    price = float(now["SpotPrice"])

    def spot(limit: float) -> dict[str, Any]:
        options = {"MarketType": "spot", "SpotOptions": {"MaxPrice": f"{limit:.6f}"}}
        return launch(ec2, InstanceMarketOptions=options, Placement={"AvailabilityZone": "us-east-1a"})[0]

    with pytest.raises(ClientError) as refused:
        spot(price * 0.9)
    assert code_of(refused) == "SpotMaxPriceTooLow"
    low, high = (spot(price * factor)["InstanceId"] for factor in (1.1, 1.3))
    cloud.surge = 1.2
    assert float(ec2.describe_spot_price_history(**usual)["SpotPriceHistory"][0]["SpotPrice"]) > price
    gone = in_state(ec2, low, "terminated")
    assert gone["StateReason"]["Code"] == "Server.SpotInstanceTermination"
    assert seen(ec2, high)["State"]["Name"] != "terminated"


def test_a_new_group_is_unknown_for_a_moment(cloud: EC2, ec2: Any):
    group = ec2.create_security_group(GroupName="pool", Description="pool")["GroupId"]
    rule = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "203.0.113.7/32"}]}
    cloud.faults.on("unready_group")
    with pytest.raises(ClientError) as refused:
        ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[rule])
    assert code_of(refused) == "InvalidGroup.NotFound"
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[rule])


def test_a_region_that_is_down(cloud: EC2, ec2: Any):
    cloud.down = {"us-east-1"}
    with pytest.raises(ClientError) as refused:
        ec2.describe_vpcs()
    assert code_of(refused) == "Unavailable"


# With hosts


@pytest.fixture
def cloud_of_hosts(lab: Lab) -> Iterator[EC2]:
    with EC2(Machines(lab), ending=0.2) as running:
        yield running


def user_data(folder: Path, host_key: Path, **more: Any) -> tuple[str, Path]:
    """User data with a host key of ours, and the key by which to log in."""
    make_key(host_key, "pinned")
    user = folder / "user"
    make_key(user, "user")
    config = {
        "ssh_keys": {
            "ed25519_private": host_key.read_text(),
            "ed25519_public": host_key.with_suffix(".pub").read_text().strip(),
        },
        "ssh_authorized_keys": [user.with_suffix(".pub").read_text().strip()],
        **more,
    }
    return "#cloud-config\n" + json.dumps(config), user


def ssh(address: str, key: Path, host_key: Path, command: str) -> subprocess.CompletedProcess[str]:
    known = host_key.with_name("known_hosts")
    kind, material = host_key.with_suffix(".pub").read_text().split()[:2]
    known.write_text(f"{address} {kind} {material}\n")
    options = ["StrictHostKeyChecking=yes", f"UserKnownHostsFile={known}", "BatchMode=yes", "ConnectTimeout=5"]
    options += ["ServerAliveInterval=2", "ServerAliveCountMax=3"]  # a host that goes may say nothing more
    flags = [part for option in options for part in ("-o", option)]
    words = ["ssh", "-F", "none", "-i", str(key), *flags, f"ubuntu@{address}", command]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)


def shown_keys(address: str) -> set[str]:
    scan = ["ssh-keyscan", "-T", "1", address]
    done = subprocess.run(scan, capture_output=True, text=True, check=False)
    return {" ".join(line.split()[1:3]) for line in done.stdout.splitlines() if not line.startswith("#")}


def wait_for_host(cloud: EC2, id: str) -> Host:
    boot = cloud.boots()[id]
    eventually(lambda: boot.state != "booting", 60.0, f"{boot!r} is up")
    assert boot.state == "up", boot.error
    assert boot.host is not None
    return boot.host


@pytest.mark.lab
def test_user_data_make_a_host_with_exactly_our_key(cloud_of_hosts: EC2, tmp_path: Path):
    ec2 = client(cloud_of_hosts)
    data, key = user_data(tmp_path, tmp_path / "host", bootcmd=[["touch", "/run/was-here"]])
    (tmp_path / "user-data").write_text(data)
    check = ["cloud-init", "schema", "--config-file", str(tmp_path / "user-data")]
    assert subprocess.run(check, capture_output=True, text=True, check=False, cwd="/").returncode == 0
    start = time.monotonic()
    (made,) = launch(ec2, UserData=data)
    id = made["InstanceId"]
    address = in_state(ec2, id, "running", 60.0)["PublicIpAddress"]
    host = wait_for_host(cloud_of_hosts, id)
    print(f"up after {time.monotonic() - start:.1f} s")
    assert address == host.address
    assert shown_keys(address) == {" ".join((tmp_path / "host.pub").read_text().split()[:2])}
    told = ssh(address, key, tmp_path / "host", "whoami; test -e /run/was-here && sudo -n whoami; hostname")
    assert told.stdout.splitlines()[:2] == ["ubuntu", "root"], told.stderr
    assert told.stdout.splitlines()[2].startswith("ip-172-31-")
    assert "Please login as the user" in (host.root / "root/.ssh/authorized_keys").read_text()
    ec2.terminate_instances(InstanceIds=[id])
    in_state(ec2, id, "terminated")
    assert not host.alive


@pytest.mark.lab
def test_a_host_that_shuts_down_ends_its_instance(cloud_of_hosts: EC2, tmp_path: Path):
    ec2 = client(cloud_of_hosts)
    data, key = user_data(tmp_path, tmp_path / "host")
    volume = {"DeleteOnTermination": True}
    (made,) = launch(
        ec2,
        UserData=data,
        InstanceInitiatedShutdownBehavior="terminate",
        BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": volume}],
    )
    host = wait_for_host(cloud_of_hosts, made["InstanceId"])
    assert ssh(host.address, key, tmp_path / "host", "shutdown -h now").returncode != 0  # not root
    ssh(host.address, key, tmp_path / "host", "sudo -n shutdown -h now")
    gone = in_state(ec2, made["InstanceId"], "terminated")
    assert gone["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"
    assert cloud_of_hosts.meter.live == []
    assert not host.alive


@pytest.mark.lab
@pytest.mark.slow
def test_an_impostor_and_a_silent_host(cloud_of_hosts: EC2, tmp_path: Path):
    ec2 = client(cloud_of_hosts)
    data, key = user_data(tmp_path, tmp_path / "host")
    cloud_of_hosts.faults.on("wrong_host_key")
    (wrong,) = launch(ec2, UserData=data)
    host = wait_for_host(cloud_of_hosts, wrong["InstanceId"])
    refused = ssh(host.address, key, tmp_path / "host", "whoami")
    assert "HOST IDENTIFICATION HAS CHANGED" in refused.stderr
    cloud_of_hosts.faults.on("never_answers")
    (silent,) = launch(ec2, UserData=data)
    host = wait_for_host(cloud_of_hosts, silent["InstanceId"])
    assert seen(ec2, silent["InstanceId"])["State"]["Name"] == "running"
    assert shown_keys(host.address) == set()


@pytest.mark.lab
def test_a_host_reads_its_metadata(cloud_of_hosts: EC2, tmp_path: Path):
    ec2 = client(cloud_of_hosts)
    data, _ = user_data(tmp_path, tmp_path / "host")
    (made,) = launch(ec2, UserData=data, InstanceMarketOptions={"MarketType": "spot"})
    id = made["InstanceId"]
    host = wait_for_host(cloud_of_hosts, id)
    asks = f"""
import json, sys, urllib.error, urllib.request
def ask(path, method="GET", **headers):
    headers = {{name.replace("_", "-"): value for name, value in headers.items()}}
    request = urllib.request.Request("{cloud_of_hosts.url}/latest/" + path, method=method, headers=headers)
    try:
        return urllib.request.urlopen(request, timeout=5).read().decode()
    except urllib.error.HTTPError as error:
        return error.code
token = ask("api/token", "PUT", X_aws_ec2_metadata_token_ttl_seconds="60")
paths = ["meta-data/instance-id", "meta-data/spot/instance-action", "meta-data/placement/"]
print(json.dumps([ask(paths[0]), *(ask(path, X_aws_ec2_metadata_token=token) for path in paths)]))
"""
    assert json.loads(host.run("python3", "-c", asks).stdout) == [401, id, 404, "availability-zone\nregion"]
    cloud_of_hosts.evict(id, notice=120.0)
    action = json.loads(json.loads(host.run("python3", "-c", asks).stdout)[2])
    assert action["action"] == "terminate"
    assert datetime.fromisoformat(action["time"]) > datetime.now(UTC) + timedelta(seconds=100)
