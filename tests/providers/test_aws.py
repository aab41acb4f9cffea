"""AWS: what is its own, against the lab's EC2."""

from __future__ import annotations

import dataclasses
import functools
import math
import pickle
from collections.abc import Iterator

import pytest

import skyward as sky
from skyward.core.machines.ssh_keys import make_key
from skyward.core.machines.sweep import sweep
from skyward.core.scope import Scope
from skyward.core.spec import MachineState, Offer, Order, Resources
from skyward.testing.provider import Account, RentalConformance
from tests.lab.clouds.aws import Refusal
from tests.lab.clouds.ec2 import EC2
from tests.lab.wait import eventually

TAG = "sky-1-1-abc"
WITH_DATA = f"ami-{'0f1':0<17}"


class Quick(sky.AWS):
    """Looks often, and gives up soon."""

    poll = 0.1
    listing_delay = 0.5
    retry_for = 1.0


@pytest.fixture
def cloud() -> Iterator[EC2]:
    with EC2(ending=0.1) as running:
        yield running


class Patient(Quick):
    """Tries again for as long as a busy machine may take."""

    retry_for = 60.0


def provider(cloud: EC2, kind: type[sky.AWS] = Quick, **options) -> sky.AWS:
    usual = {"region": "us-east-1", "access_key": cloud.access_key, "secret_key": cloud.secret_key, "url": cloud.url}
    return kind(**{**usual, "ssh_from": "10.77.0.0/16", **options})


def order(offer: Offer, count: int = 1, number: int = 1) -> Order:
    key = make_key("x")
    return Order(TAG, count, Resources(), name=f"{TAG}-{number}", offer=offer, host_key=key, user_key=key.public)


def offer_of(it: sky.AWS, machine: str, spot: bool = False) -> Offer:
    return next(offer for offer in it.offers(Resources(machine=machine)) if offer.spot is spot)


@pytest.mark.slow
class TestAWS(RentalConformance):
    pause = 0.02

    @pytest.fixture
    def rental(self, cloud):
        faults = ("no_capacity", "quota", "throttle", "server_error", "html", "lost_reply")
        return Account(
            provider(cloud),
            live=lambda: cloud.meter.live,
            impostor=provider(cloud, secret_key="0" * 40),
            faults={fault: functools.partial(cloud.faults.on, fault) for fault in faults},
            calm=cloud.faults.clear,
        )


@pytest.mark.slow
def test_arm_machines_get_an_arm_image(cloud):
    it = provider(cloud)
    offer = offer_of(it, "t4g.micro")
    assert offer.extra["architecture"] == "arm64"
    it.create(order(offer))
    (call,) = [request for request in cloud.requests if "Action=RunInstances" in request.body]
    assert "ami-0a4" in call.body  # the newest Ubuntu for Arm
    sweep(it, TAG)


@pytest.mark.slow
def test_machines_with_gpus_get_the_deep_learning_image(cloud):
    it = provider(cloud)
    offer = next(offer for offer in it.offers(Resources(accelerator="T4")) if offer.machine == "g4dn.xlarge")
    assert (offer.accelerator, offer.accelerators, offer.gpus, offer.vcpus) == ("T4", 1, 1, 4)
    chips = it.offers(Resources(accelerator="Inferentia2"))
    assert {offer.accelerators for offer in chips} >= {1}
    assert {offer.gpus for offer in chips} == {0}  # which slots can't be given
    it.create(order(offer))
    assert "ami-0c2" in next(request.body for request in cloud.requests if "Action=RunInstances" in request.body)
    sweep(it, TAG)


@pytest.mark.slow
def test_several_machines_in_one_call_and_the_same_order_makes_them_once(cloud):
    it = provider(cloud)
    wanted = order(offer_of(it, "t3.micro"), count=3)
    first, again = it.create(wanted), it.create(wanted)
    assert {machine.id for machine in first} == {machine.id for machine in again}
    assert len(cloud.meter.ever("instance")) == 3
    assert all(machine.order == wanted.name for machine in it.machines(TAG))
    sweep(it, TAG)
    assert cloud.meter.live == []


@pytest.mark.slow
def test_a_zone_that_has_only_some_gives_those(cloud):
    it = provider(cloud)
    offer = offer_of(it, "t3.micro")
    cloud.capacity["t3.micro", offer.region] = 2
    assert len(it.create(order(offer, count=3))) == 2
    with pytest.raises(sky.NoCapacity):
        it.create(order(offer, count=1, number=2))
    sweep(it, TAG)


@pytest.mark.slow
def test_ssh_is_let_in_from_one_network_only_and_no_key_pair_is_made(cloud):
    it = provider(cloud, ssh_from="203.0.113.7/32")
    it.create(order(offer_of(it, "t3.micro")))
    bodies = [request.body for request in cloud.requests]
    assert sum("CidrIp=203.0.113.7%2F32" in body for body in bodies) == 1
    assert not any("KeyPair" in body for body in bodies)
    launch = next(body for body in bodies if "Action=RunInstances" in body)
    assert "MetadataOptions.HttpTokens=required" in launch
    assert "InstanceInitiatedShutdownBehavior=terminate" in launch
    sweep(it, TAG)
    assert cloud.meter.live == []


def rules(cloud: EC2) -> set[str]:
    """Networks that the pool's group lets in."""
    driver = provider(cloud).make_driver()["us-east-1"]
    reply = driver.query("DescribeSecurityGroups", {"Filter": [{"Name": "tag:skyward-pool", "Value": [TAG]}]})
    return {
        item.findtext("cidrIp") for item in reply.findall("securityGroupInfo/item/ipPermissions/item/ipRanges/item")
    }


@pytest.mark.slow
def test_nodes_of_a_pool_reach_each_other(cloud):
    it = provider(cloud)
    it.create(order(offer_of(it, "t3.micro")))
    driver = it.make_driver()["us-east-1"]
    reply = driver.query("DescribeSecurityGroups", {"Filter": [{"Name": "tag:skyward-pool", "Value": [TAG]}]})
    (group,) = reply.findall("securityGroupInfo/item")
    members = [item.findtext("groupId") for item in group.findall("ipPermissions/item/groups/item")]
    assert members == [group.findtext("groupId")]
    sweep(it, TAG)


@pytest.mark.slow
def test_a_group_that_is_not_known_everywhere_yet_is_given_its_rule_all_the_same(cloud):
    it = provider(cloud, Patient)
    cloud.faults.on("unready_group")
    assert it.create(order(offer_of(it, "t3.micro")))
    assert rules(cloud) == {"10.77.0.0/16"}
    sweep(it, TAG)
    assert cloud.meter.live == []


@pytest.mark.slow
def test_a_group_that_was_left_without_a_rule_gets_it_with_the_next_order(cloud):
    it = provider(cloud)
    offer = offer_of(it, "t3.micro")
    cloud.faults.on("unready_group", math.inf)
    with pytest.raises(sky.CloudError, match=r"InvalidGroup\.NotFound"):
        it.create(order(offer))
    cloud.faults.clear()
    assert rules(cloud) == set()
    it.create(order(offer, number=2))
    assert rules(cloud) == {"10.77.0.0/16"}
    assert len(cloud.meter.ever("security group")) == 1
    sweep(it, TAG)


@pytest.mark.slow
def test_who_comes_from_another_address_by_now_is_let_in_too(cloud, monkeypatch):
    monkeypatch.setattr("skyward.providers.aws._WHO_AM_I", f"{cloud.url}/checkip")
    it = provider(cloud, ssh_from=None)
    offer = offer_of(it, "t3.micro")
    it.create(order(offer))
    cloud.caller = "203.0.113.2"
    it.create(order(offer, number=2))
    assert rules(cloud) == {"203.0.113.1/32", "203.0.113.2/32"}
    sweep(it, TAG)


@pytest.mark.slow
def test_a_spot_machine_never_costs_more_than_the_user_pays(cloud):
    it = provider(cloud)
    offer = offer_of(it, "t3.micro", spot=True)
    wanted = dataclasses.replace(order(offer), resources=Resources(max_price=offer.price * 1.02))
    cloud.surge = 1.2
    with pytest.raises(sky.NoCapacity, match="SpotMaxPriceTooLow"):
        it.create(wanted)
    assert cloud.meter.ever("instance") == []
    cloud.surge = 1.0
    it.create(wanted)
    eventually(lambda: it.machines(TAG)[0].state is MachineState.RUNNING)
    cloud.surge = 1.2
    eventually(lambda: it.machines(TAG)[0].state in (MachineState.PREEMPTED, MachineState.GONE))
    sweep(it, TAG)
    assert cloud.meter.live == []


@pytest.mark.slow
def test_a_price_has_what_a_volume_and_an_address_cost(cloud):
    public, private, large = (
        offer_of(provider(cloud, **options), "t3.micro") for options in ({}, {"private": True}, {"disk": 730})
    )
    assert public.price - private.price == pytest.approx(0.005)
    assert large.price - public.price == pytest.approx(0.08 * (730 - 8) / 730)
    assert private.price == pytest.approx(0.0104 + 0.08 * 8 / 730)
    assert public.billing.seconds(1.0) == 60.0


@pytest.mark.slow
@pytest.mark.parametrize("most", [None, 1000.0])
def test_no_limit_above_the_on_demand_price_is_set(cloud, most):
    """It is AWS's own limit, and AWS refuses limits that are many times as high."""
    it = provider(cloud)
    it.create(dataclasses.replace(order(offer_of(it, "t3.micro", spot=True)), resources=Resources(max_price=most)))
    assert "MaxPrice" not in next(request.body for request in cloud.requests if "Action=RunInstances" in request.body)
    sweep(it, TAG)


@pytest.mark.slow
def test_the_data_volumes_of_an_image_end_with_the_machine(cloud):
    it = provider(cloud, image=WITH_DATA)
    (made,) = it.create(order(offer_of(it, "t3.micro")))
    assert len(cloud.meter.ever("volume")) == 2
    it.destroy([made.id])
    eventually(lambda: not [kind for kind, _ in cloud.meter.live if kind == "volume"])
    sweep(it, TAG)
    assert cloud.meter.live == []


@pytest.mark.slow
def test_a_volume_that_outlived_its_machine_is_removed(cloud):
    """As with an image by a parameter, of whose volumes only AWS knows."""
    it = provider(cloud, image="resolve:ssm:/account/image-with-data")
    it.create(order(offer_of(it, "t3.micro")))
    driver = it.make_driver()["us-east-1"]
    own = driver.query("CreateVolume", {"AvailabilityZone": "us-east-1a", "Size": 8}).findtext("volumeId")
    sweep(it, TAG)
    assert cloud.meter.live == []
    assert driver.volumes({"status": "available"}) == [own]


@pytest.mark.slow
def test_a_spot_machine_that_is_preempted_is_reported_as_such(cloud):
    it = provider(cloud)
    (made,) = it.create(order(offer_of(it, "t3.micro", spot=True)))
    eventually(lambda: it.machines(TAG)[0].state is MachineState.RUNNING)
    cloud.evict(cloud.meter.ever("instance")[0], notice=0.0)
    seen = eventually(lambda: [m for m in it.machines(TAG) if m.state is not MachineState.RUNNING])
    assert seen[0].id == made.id
    assert "Server.Spot" in seen[0].detail
    sweep(it, TAG)


@pytest.mark.slow
def test_a_wrong_clock_is_reported_as_such(cloud):
    it = provider(cloud)
    cloud.faults.on("clock_skew", 9, seconds=3600.0)
    with pytest.raises(sky.AuthFailed, match="The clock of this machine is wrong"):
        it.machines(TAG)


@pytest.mark.slow
def test_user_data_over_the_limit_buys_nothing(cloud):
    it = provider(cloud)
    wanted = dataclasses.replace(order(offer_of(it, "t3.micro")), user_key="ssh-ed25519 " + "A" * 20_000)
    with pytest.raises(sky.ProvisioningError, match="user data of"):
        it.create(wanted)
    sweep(it, TAG)
    assert cloud.meter.ever("instance") == []


@pytest.mark.slow
def test_several_regions(cloud):
    it = provider(cloud, region=["us-east-1", "eu-west-1"])
    regions = {offer.region[:-1] for offer in it.offers(Resources(machine="t3.micro"))}
    assert regions == {"us-east-1", "eu-west-1"}


@pytest.fixture
def dispersed(cloud) -> sky.AWS:
    """A provider that has ordered a machine in each of two regions."""
    it = provider(cloud, region=["us-east-1", "eu-west-1"])
    offers = {offer.region[:-1]: offer for offer in it.offers(Resources(machine="t3.micro"))}
    for number, offer in enumerate(offers.values(), 1):
        it.create(order(offer, number=number))
    return it


@pytest.mark.slow
def test_a_region_that_is_down_does_not_keep_a_sweep_from_the_others(cloud, dispersed):
    another = provider(cloud, region=["us-east-1", "eu-west-1"])
    cloud.down = {"us-east-1"}
    with pytest.raises(sky.ProvisioningError, match=TAG):
        sweep(another, TAG, limit=1.0)
    cloud.down = set()
    assert [id.partition("/")[0] for id in sweep(another, TAG)] == ["us-east-1"], "the other was ended before"
    assert cloud.meter.live == []


@pytest.mark.slow
def test_who_has_ordered_in_a_region_that_is_down_sees_all_or_nothing(cloud, dispersed):
    """Else the machines there would count as lost, and be bought again."""
    another = provider(cloud, region=["us-east-1", "eu-west-1"])
    cloud.down = {"eu-west-1"}
    with pytest.raises(sky.CloudError, match="Unavailable"):
        dispersed.machines(TAG)
    with pytest.raises(sky.CloudError, match="Unavailable"):
        another.all_machines()
    assert len(another.machines(TAG)) == 1
    cloud.down = set()
    assert len(dispersed.machines(TAG)) == 2
    sweep(dispersed, TAG)


BAD_KEY = Refusal(401, "AuthFailure", "AWS was not able to validate the provided access credentials")
DENIED = Refusal(403, "UnauthorizedOperation", "You are not authorized to perform this operation.")
NO_ROLE = Refusal(400, "AuthFailure.ServiceLinkedRoleCreationNotPermitted", "can't create the role for Spot Instances")


@pytest.mark.slow
@pytest.mark.parametrize(("refusal", "advice"), [(BAD_KEY, "enabled for the account"), (DENIED, "not authorized")])
def test_a_region_that_refuses_keeps_nobody_from_the_others_and_is_named(cloud, refusal, advice):
    cloud.policy = lambda call: refusal if call.region == "eu-west-1" else None
    it = provider(cloud, region=["us-east-1", "eu-west-1"])
    offers = it.offers(Resources(machine="t3.micro"))
    assert {offer.zone_of for offer in offers} == {"us-east-1"}
    (error,) = offers.refused
    assert (type(error), error.scope) == (sky.AuthFailed, Scope.REGION)
    assert "in eu-west-1" in str(error)
    assert advice in str(error)
    (made,) = it.create(order(offers[0]))
    assert [machine.id for machine in it.machines(TAG)] == [made.id]
    sweep(it, TAG)
    if refusal is BAD_KEY:  # nothing can be in a region that the account does not have
        assert sweep(provider(cloud, region=["us-east-1", "eu-west-1"]), TAG) == []
    cloud.policy = lambda _: refusal
    with pytest.raises(sky.AuthFailed, match="us-east-1"):
        it.offers(Resources(machine="t3.micro"))
    with pytest.raises(sky.AuthFailed):
        it.clear(TAG)
    with pytest.raises(sky.AuthFailed):
        it.machines(TAG)


@pytest.mark.slow
def test_who_may_not_see_spot_prices_is_offered_on_demand_machines_and_warned(cloud):
    cloud.policy = lambda call: DENIED if call.action == "DescribeSpotPriceHistory" else None
    offers = provider(cloud).offers(Resources(machine="t3.micro"))
    assert {offer.spot for offer in offers} == {False}
    (error,) = offers.refused
    assert (type(error), error.scope) == (sky.AuthFailed, Scope.SPOT | Scope.REGION)
    assert "DescribeSpotPriceHistory in us-east-1" in str(error)


@pytest.mark.slow
def test_doctor_names_the_region_that_is_not_enabled(cloud):
    cloud.policy = lambda call: BAD_KEY if (call.region, call.service) == ("eu-west-1", "sts") else None
    checks = provider(cloud, region=["us-east-1", "eu-west-1"]).examination()
    assert {check.what: check.ok for check in checks}["account in us-east-1"]
    (bad,) = [check for check in checks if not check.ok]
    assert bad.what == "account in eu-west-1"
    assert "enabled" in bad.advice


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "refusal", "kind", "scope"),
    [
        ("RunInstances", NO_ROLE, sky.AuthFailed, Scope.SPOT),
        ("RunInstances", DENIED, sky.AuthFailed, Scope.OFFER),
        ("CreateSecurityGroup", DENIED, sky.AuthFailed, Scope.REGION),
        ("RunInstances", Refusal(403, "OptInRequired", "x"), sky.AuthFailed, Scope.OFFER),
        ("RunInstances", Refusal(403, "Blocked", "x"), sky.ProvisioningError, Scope.ACCOUNT),
        ("RunInstances", Refusal(400, "PendingVerification", "x"), sky.ProvisioningError, Scope.REGION),
        ("RunInstances", Refusal(400, "RequestExpired", "x"), sky.AuthFailed, None),
        ("RunInstances", Refusal(400, "Unsupported", "x"), sky.NoCapacity, None),
    ],
)
def test_a_refusal_says_how_far_it_reaches(cloud, action, refusal, kind, scope):
    it = provider(cloud)
    offer = offer_of(it, "t3.micro", spot=True)
    cloud.policy = lambda call: refusal if call.action == action else None
    with pytest.raises(sky.ProvisioningError) as caught:
        it.create(order(offer))
    assert (type(caught.value), caught.value.scope) == (kind, scope)
    assert pickle.loads(pickle.dumps(caught.value)).scope is scope
    cloud.policy = lambda _: None
    sweep(it, TAG)


@pytest.mark.parametrize("region", ["nowhere", "us east"])
def test_a_region_that_is_none(region):
    with pytest.raises(sky.ConfigError, match="region"):
        Quick(region=region, access_key="AKIALAB", secret_key="x", url="http://127.0.0.1:9").offers(Resources())


@pytest.mark.slow
def test_keys_that_expire_while_a_pool_is_open_are_renewed(cloud, monkeypatch, tmp_path):
    """The call that is refused finds what has replaced them; nobody sees either."""
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))

    def turn(number: int) -> None:
        key, secret, token = f"ASIALAB{number}", f"secret-{number}", f"token-{number}"
        text = f"aws_access_key_id = {key}\naws_secret_access_key = {secret}\naws_session_token = {token}\n"
        (tmp_path / "keys").write_text(f"[mine]\n{text}")
        cloud.temporary.clear()
        cloud.temporary[key] = (secret, token)

    turn(1)
    it = provider(cloud, access_key=None, secret_key=None, profile="mine")
    (made,) = it.create(order(offer_of(it, "t3.micro")))
    turn(2)
    assert [machine.id for machine in it.machines(TAG)] == [made.id]
    sweep(it, TAG)
    shown = f"{it!r} {it.settings()} {pickle.dumps(it)!r}"
    assert not any(word in shown for word in ("ASIALAB", "secret-", "token-"))


def test_credentials_that_are_nowhere(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(sky.AuthFailed, match=r"(?s)AWS_ACCESS_KEY_ID is not set.*credentials"):
        sky.AWS().offers(Resources())
