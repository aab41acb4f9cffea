"""AWS: EC2 instances, through libcloud's driver with its gaps filled."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import requests

from skyward.core.billing import Billing
from skyward.core.errors import (
    AuthFailed,
    CloudError,
    ConfigError,
    NoCapacity,
    NotFound,
    ProvisioningError,
    QuotaExceeded,
    RateLimited,
    SkywardError,
)
from skyward.core.interfaces import Trait
from skyward.core.machines.offer_selection import meets
from skyward.core.scope import Scope
from skyward.core.spec import Endpoint, Machine, MachineId, MachineState, Offer, Offers, Order, Resources
from skyward.providers import first_boot
from skyward.providers.base import SECRET, Check, CloudProvider
from skyward.providers.drivers.aws_credentials import CredentialsError, resolve, resolve_region
from skyward.providers.drivers.ec2 import EC2Driver
from skyward.providers.drivers.ec2_values import Instance, InstanceType, Launch, MachineImage
from skyward.providers.drivers.ec2_wire import EC2ClockSkewError, EC2CredentialsError, EC2Error, EC2InUseError

__all__ = ["AWS"]

_REGION = "us-east-1"
_POOL, _ORDER = "skyward-pool", "skyward-order"  # keys of the tags we set
_END = "shutdown -h now || poweroff -f"  # instances are launched so that a shutdown terminates them
_WHO_AM_I = "https://checkip.amazonaws.com"
_UBUNTU_OWNERS = ["099720109477"]  # Canonical
_UBUNTU = "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-{}-server-*"
_DEEP_LEARNING = "Deep Learning *Base OSS Nvidia Driver GPU AMI (Ubuntu 24.04)*"
_DEEP_LEARNING_OWNERS = ["amazon", "898082745236"]  # the alias, and the account behind it
_TYPES_AGE = 3600.0  # seconds for which the list of instance types is reused
_BILLING = Billing(minimum=60.0)  # then "one second increments" (AWS, "Announcing EC2 per second billing", 2017)
_ADDRESS = 0.005  # US dollars per hour of a public IPv4 address
_GIB_MONTH = 0.08  # US dollars for a GiB of gp3 in us-east-1; up to twice that elsewhere
_USUAL_DISK = 8  # GiB of Ubuntu's image; those with drivers have more, on machines that cost a hundred times as much
_HOURS_OF_A_MONTH = 730

_CAPACITY = {
    "InsufficientInstanceCapacity",
    "InsufficientHostCapacity",
    "InsufficientFreeAddressesInSubnet",
    "SpotMaxPriceTooLow",
    "UnfulfillableCapacity",
    "Unsupported",  # this type in this zone
}
_QUOTA = {"InstanceLimitExceeded", "MaxSpotInstanceCountExceeded", "VcpuLimitExceeded", "VolumeLimitExceeded"}
_NOT_YET = {"InvalidGroup.Duplicate", "InvalidGroup.NotFound"}  # a new group is not visible everywhere at once
_TOO_OFTEN = {"EC2ThrottledException", "RequestLimitExceeded", "Throttling", "ThrottlingException"}
# How far some refusals reach; for others that follows from the error's type.
_SCOPES = {
    "AuthFailure": Scope.REGION,  # also the answer of regions that the account has not enabled
    "AuthFailure.ServiceLinkedRoleCreationNotPermitted": Scope.SPOT,
    "Blocked": Scope.ACCOUNT,
    "InvalidAMIID.NotFound": Scope.REGION,
    "InvalidSubnetID.NotFound": Scope.REGION,
    "OptInRequired": Scope.REGION,
    "PendingVerification": Scope.REGION,
    "UnauthorizedOperation": Scope.REGION,
}
_PRICES_DENIED = ("DescribeSpotPriceHistory", "UnauthorizedOperation")
# A policy may forbid types, zones or spot machines, and the reply does not say which.
_UNSAID = {
    ("RunInstances", "OptInRequired"): Scope.OFFER,
    ("RunInstances", "UnauthorizedOperation"): Scope.OFFER,
    _PRICES_DENIED: Scope.SPOT | Scope.REGION,
}
_DENIED = {"AuthFailure.ServiceLinkedRoleCreationNotPermitted", "UnauthorizedOperation"}
_STATES = {
    "pending": MachineState.STARTING,
    "running": MachineState.RUNNING,
    "shutting-down": MachineState.GONE,  # it costs nothing from then on
    "terminated": MachineState.GONE,
    "stopping": MachineState.FAILED,
    "stopped": MachineState.FAILED,
}

# Instance types by address and region, and when they were fetched: a dozen calls with the same reply all day.
_types: dict[tuple[str | None, str], tuple[float, list[InstanceType]]] = {}
_types_lock = threading.Lock()  # guards them
_groups_lock = threading.Lock()  # one security group per pool, though several orders may need it first


@dataclass(frozen=True, eq=False)
class AWS(CloudProvider):
    """EC2 instances in one region or several.

    An instance presents a host key that it received in its user data, so that the first connection is verified; no EC2
    key pair is created. Each pool has its own security group, which allows SSH from your address only. An instance that
    hears nothing for the pool's `orphan_timeout` shuts itself down, which terminates it.

    Prices include an estimate for the root volume, and the public IPv4 address unless `private` is set.

    Parameters
    ----------
    region
        One region, or several that are considered together; None: that of the environment or profile, or us-east-1.
    access_key, secret_key, token
        Default: what botocore finds (environment, profile, single sign-on, role, process, container, instance).
    profile
        Name of a profile in ``~/.aws``.
    image
        An AMI's id, or ``resolve:ssm:`` and a public parameter's name; None: the newest Ubuntu 24.04 for the machine's
        architecture, or the newest Deep Learning Base image where there are GPUs.
    user
        Login name of the image.
    disk
        Size of the root volume in GiB; None: the image's.
    subnet
        One of your subnets; None: the default VPC's in each zone.
    ssh_from
        Network that may connect, such as ``"203.0.113.7/32"``; None: your public address.
    private
        Whether to connect to private addresses, from within the VPC or over a VPN.
    instance_profile
        Name of an IAM instance profile for the nodes.
    url
        Address of the API, if not AWS's own.

    Raises
    ------
    ConfigError
        A value is out of range.
    """

    name: ClassVar[str] = "aws"
    traits: ClassVar[frozenset[Trait]] = CloudProvider.traits | {Trait.BATCH, Trait.SAFE_CREATE}
    listing_delay: ClassVar[float] = 30.0

    region: str | Sequence[str] | None = None
    access_key: str | None = field(default=None, repr=False, metadata=SECRET)
    secret_key: str | None = field(default=None, repr=False, metadata=SECRET)
    token: str | None = field(default=None, repr=False, metadata=SECRET)
    profile: str | None = None
    image: str | None = None
    user: str = "ubuntu"
    disk: int | None = None
    subnet: str | None = None
    ssh_from: str | None = None
    private: bool = False
    instance_profile: str | None = None
    url: str | None = None

    _ordered_in: set[str] = field(default_factory=set, init=False, repr=False)  # regions

    def __post_init__(self) -> None:
        if self.ssh_from is not None:
            try:
                ipaddress.ip_network(self.ssh_from)
            except ValueError as error:
                raise ConfigError(
                    f'AWS ssh_from={self.ssh_from!r} is not a network; write for example "203.0.113.7/32"'
                ) from error

    def make_driver(self) -> _Regions:
        """Make a driver for each region, all with the same credentials."""
        try:
            found = resolve(
                access_key=self.access_key, secret_key=self.secret_key, token=self.token, profile=self.profile
            )
            region = self.region or resolve_region(self.profile) or _REGION
        except CredentialsError as error:
            raise AuthFailed(f"aws: {error}") from error
        regions = [region] if isinstance(region, str) else list(region)
        try:
            return _Regions(
                {
                    name: EC2Driver(found.access_key, found.secret_key, region=name, token=found.token, url=self.url)
                    for name in regions
                }
            )
        except ValueError as error:
            raise ConfigError(f"AWS region={self.region!r}: {error}") from error

    def resolved(self) -> dict[str, object]:
        """The region, and the profile if that is where the credentials are."""
        found: dict[str, object] = {}
        with contextlib.suppress(CredentialsError):  # `make_driver` reports it
            found["region"] = resolve_region(self.profile) or _REGION
        named = os.environ.get("AWS_DEFAULT_PROFILE") or os.environ.get("AWS_PROFILE")
        if named and not self.access_key and not os.environ.get("AWS_ACCESS_KEY_ID"):
            found["profile"] = named
        return found

    # --- offers ---

    def offers(self, resources: Resources) -> Offers:
        """See `Provider.offers`: types of all regions that can be queried, and why others can't."""
        found: list[Offer] = []
        refused: list[SkywardError] = []
        for region in self._call(lambda driver: driver.regions):
            try:
                found += self._call(functools.partial(self._offers_in, region, resources, refused))
            except SkywardError as error:
                refused.append(error)
        if refused and not found:
            raise refused[0]
        return Offers(found, map(_of_one_region, refused))

    def _offers_in(
        self, region: str, resources: Resources, refused: list[SkywardError], driver: _Regions
    ) -> list[Offer]:
        here = driver.only(region)
        try:
            return list(self.list_offers(here, resources))
        except EC2Error as error:
            mapped = self.map_error(error)
            if mapped is None or (error.action, error.code) != _PRICES_DENIED:
                raise
            refused.append(mapped)
        return list(self.list_offers(here, resources, spot=False))  # without spot prices, only these can be offered

    def list_offers(self, driver: _Regions, resources: Resources, *, spot: bool = True) -> Iterator[Offer]:
        """List types that meet `resources`, by zone, with current spot prices.

        Parameters
        ----------
        driver
            The regions to query.
        resources
            What each machine must have.
        spot
            Whether to query spot prices, which may be forbidden.
        """
        for region in driver.regions:
            ec2 = driver[region]
            kinds = {kind.name: kind for kind in self._kinds(region, ec2) if _is_wanted(kind, resources)}
            if not kinds and resources.machine is None:
                # Nothing fits: list all, so that an error can name the closest match.
                kinds = {kind.name: kind for kind in self._kinds(region, ec2)}
            elif not kinds:
                yield from (_offer(kind, region, region, False, None) for kind in self._kinds(region, ec2))
                continue
            zones = ec2.offerings(list(kinds))
            bid = [name for name, kind in kinds.items() if spot and "spot" in kind.usage_classes]
            prices = ec2.spot_prices(bid) if bid else {}
            for name, kind in kinds.items():
                for zone in sorted(zones.get(name, ())):
                    if "on-demand" in kind.usage_classes:
                        yield _offer(kind, region, zone, False, self._with_others(ec2.on_demand_price(name)))
                    if (name, zone) in prices:
                        yield _offer(kind, region, zone, True, self._with_others(prices[name, zone].price))

    def _with_others(self, price: float | None) -> float | None:
        """An instance's price including its volume and its address, which AWS bills separately."""
        return None if price is None else price + self._others

    @property
    def _others(self) -> float:
        volume = (self.disk or _USUAL_DISK) * _GIB_MONTH / _HOURS_OF_A_MONTH
        return volume if self.private else volume + _ADDRESS

    def _kinds(self, region: str, ec2: EC2Driver) -> list[InstanceType]:
        key = (self.url, region)
        with _types_lock:
            known = _types.get(key)
            if known is None or time.monotonic() > known[0] + _TYPES_AGE:
                known = _types[key] = (time.monotonic(), ec2.instance_types({"current-generation": "true"}))
        return [
            kind for kind in known[1] if _architecture(kind) is not None and not (kind.bare_metal or _is_sliced(kind))
        ]

    # --- machines ---

    def create_machines(self, driver: _Regions, order: Order) -> Sequence[Machine]:
        """Launch as many as the zone has, at least one; the same order again returns the same machines."""
        offer = order.offer
        assert offer is not None
        assert offer.region is not None
        region = driver.of_zone(offer.region)
        self._ordered_in.add(region)
        ec2 = driver[region]
        image = self._image(ec2, offer)
        vpc, subnet = self._subnet(ec2, offer.region)
        user_data = first_boot.cloud_config(order, end=_END)
        launch = Launch(
            image=image if isinstance(image, str) else image.id,
            type=offer.machine,
            count=order.count,
            client_token=order.name,
            user_data=user_data,
            spot=offer.spot,
            max_price=_limit(order.resources.max_price, self._others, ec2.on_demand_price(offer.machine)),
            tags={"Name": order.name, _POOL: order.tag, _ORDER: order.name},
            subnet=subnet,
            security_groups=[self._group(ec2, order.tag, vpc)],
            public_ip=None if self.private else True,
            root_device=None if isinstance(image, str) else image.root_device,
            disk_gib=None if isinstance(image, str) else self.disk,
            data_devices=() if isinstance(image, str) else image.data_devices,
            instance_profile=self.instance_profile,
        )
        return [self._machine(region, made, order) for made in ec2.run_instances(launch)]

    def list_machines(self, driver: _Regions, tag: str | None) -> Sequence[Machine]:
        """List instances with our tags.

        A region that can't be queried is an error if this provider has ordered there, since what is not listed counts
        as lost; it does not matter if all orders went elsewhere. A sweep after another process gets that error only
        once everything in the other regions is terminated; a region that the account has not enabled holds nothing.
        """
        wanted = {"tag-key": _POOL} if tag is None else {f"tag:{_POOL}": tag}
        found: list[Machine] = []
        failed: dict[str, Exception] = {}
        for region in driver.regions:
            try:
                found += [self._machine(region, one) for one in driver[region].describe_instances(wanted)]
            except Exception as error:  # of any kind; the caller maps it
                failed[region] = error
        alive = any(machine.state is not MachineState.GONE for machine in found)
        for region, failure in failed.items():
            needed = tag is None or not alive
            if self._ordered_in and tag is not None:
                needed = region in self._ordered_in
            elif len(failed) < len(driver.regions) and isinstance(failure, EC2CredentialsError):
                needed = False
            if needed or region in self._ordered_in:
                raise failure
        return found

    def destroy_machine(self, driver: _Regions, id: MachineId) -> None:
        """Terminate an instance, with its volumes."""
        region, _, instance = id.rpartition("/")
        if region not in driver.regions:
            raise NotFound(f"aws: {id} is in none of the regions {driver.regions}")
        driver[region].terminate_instances([instance])

    def clear_leftovers(self, driver: _Regions, tag: str) -> None:
        """Delete the pool's security groups, and volumes that outlived their machines."""
        failed: list[Exception] = []
        for region in driver.regions:
            try:
                self._clear_region(driver[region], tag)
            except Exception as error:  # of any kind; the caller maps it
                if self._ordered_in and region not in self._ordered_in:
                    continue  # nothing of ours was ever there
                failed.append(error)
        # As for machines: a region that the account has not enabled holds nothing.
        other = [error for error in failed if not isinstance(error, EC2CredentialsError)]
        if failed and (other or len(failed) == len(driver.regions) or self._ordered_in):
            raise (other or failed)[0]

    def _clear_region(self, ec2: EC2Driver, tag: str) -> None:
        for group in ec2.security_groups({f"tag:{_POOL}": tag}):
            ec2.delete_security_group(group)
        # An image that only AWS resolves (``resolve:ssm:``) may have volumes that stay.
        for volume in ec2.volumes({f"tag:{_POOL}": tag, "status": ["available", "in-use"]}):
            ec2.delete_volume(volume)

    def _machine(self, region: str, found: Instance, order: Order | None = None) -> Machine:
        address = found.private_ip if self.private else found.public_ip
        state = _STATES.get(found.state, MachineState.STARTING)
        if found.state == "shutting-down" and found.reason_code.startswith("Server.Spot"):
            state = MachineState.PREEMPTED
        if state is MachineState.RUNNING and address is None:
            state = MachineState.STARTING
        return Machine(
            id=f"{region}/{found.id}",
            endpoint=Endpoint("ssh", address, 22, self.user) if address else None,
            name=found.tags.get("Name", found.id),
            state=state,
            order=order.name if order else found.tags.get(_ORDER, ""),
            tag=order.tag if order else found.tags.get(_POOL, ""),
            detail=f"{found.reason_code}: {found.reason}" if found.reason_code else found.state,
        )

    # --- what a machine needs ---

    def _image(self, ec2: EC2Driver, offer: Offer) -> MachineImage | str:
        if self.image is not None:
            return self.image if self.image.startswith("resolve:") else ec2.image(self.image)
        arm = offer.extra.get("architecture") == "arm64"
        architecture = {"architecture": "arm64" if arm else "x86_64"}
        if offer.accelerator is not None and offer.extra.get("nvidia"):
            owners, name = _DEEP_LEARNING_OWNERS, _DEEP_LEARNING
        else:
            owners, name = _UBUNTU_OWNERS, _UBUNTU.format("arm64" if arm else "amd64")
        found = ec2.images(owners, {"name": name, **architecture})
        if not found:
            raise NotFound(f"aws: {ec2.region_name} has no image {name!r} for {offer.machine}; name one with image=")
        return found[0]

    def _subnet(self, ec2: EC2Driver, zone: str) -> tuple[str, str]:
        """Return VPC and subnet for a zone."""
        if self.subnet is not None:
            reply = ec2.query("DescribeSubnets", {"SubnetId": [self.subnet]})
            found, where = (reply.findtext(f"subnetSet/item/{what}") or "" for what in ("vpcId", "availabilityZone"))
            if where != zone:
                raise NoCapacity(f"aws: subnet {self.subnet} is in {where}, not in {zone}", scope=Scope.ZONE)
            return found, self.subnet
        vpc = ec2.default_vpc()
        if vpc is None:
            text = f"aws: {ec2.region_name} has no default VPC; name a subnet with subnet="
            raise ProvisioningError(text, scope=Scope.REGION)
        subnet = next((subnet for subnet in ec2.subnets(vpc) if subnet.zone == zone), None)
        if subnet is None:
            raise NoCapacity(f"aws: the default VPC has no subnet in {zone}", scope=Scope.ZONE)
        return vpc, subnet.id

    def _group(self, ec2: EC2Driver, tag: str, vpc: str) -> str:
        """Return the pool's security group, which is created when first needed."""
        network = self.ssh_from or _own_address()
        with _groups_lock:
            found = ec2.security_groups({f"tag:{_POOL}": tag, "vpc-id": vpc})
            text = "Nodes of a skyward pool: SSH from its owner"
            group = found[0] if found else ec2.create_security_group(tag, text, vpc, {"Name": tag, _POOL: tag})
        # An existing one may lack its rule, if adding it failed, or have one for an earlier address of ours.
        ec2.authorize(group, network)
        ec2.authorize_members(group)
        return group

    # --- errors and checks ---

    def map_error(self, error: Exception) -> SkywardError | None:
        """Map errors by AWS's codes."""
        if isinstance(error, ValueError):
            return ProvisioningError(f"aws: {error}")
        if not isinstance(error, EC2Error):
            return None
        text, code = f"aws: {error}", error.code
        scope = _UNSAID.get((error.action, code), _SCOPES.get(code))
        if isinstance(error, EC2ClockSkewError):
            return AuthFailed(f"{text}. The clock of this machine is wrong; set it, for example by NTP")
        if isinstance(error, EC2CredentialsError) or code in _DENIED:
            return AuthFailed(text, scope=scope)
        if code in _TOO_OFTEN:
            return RateLimited(text)
        if code in _CAPACITY:
            return NoCapacity(text)
        if code in _QUOTA:
            return QuotaExceeded(f"{text}. Request more in the Service Quotas console")
        if isinstance(error, EC2InUseError) or code in _NOT_YET or error.status >= 500:
            return CloudError(text)
        return (NotFound if code.endswith(".NotFound") else ProvisioningError)(text, scope=scope)

    def examine(self, driver: _Regions) -> Iterable[Check]:
        """Check whose the credentials are, and whether there is a network for nodes."""
        for region in driver.regions:
            try:
                account, arn = driver[region].identity()
            except EC2Error as error:
                advice = "is the region enabled for the account? If not, leave it out of region="
                yield Check(f"account in {region}", False, str(error), advice)
                continue
            yield Check(f"account in {region}", True, f"{account} as {arn}")
            vpc = self.subnet or driver[region].default_vpc()
            yield Check(f"network in {region}", vpc is not None, str(vpc), "create a default VPC, or set subnet=")


class _Regions:
    """EC2 in several regions."""

    def __init__(self, drivers: dict[str, EC2Driver]) -> None:
        self._drivers = drivers
        self.regions = list(drivers)

    def __repr__(self) -> str:
        return f"<_Regions {self.regions}>"

    def __getitem__(self, region: str) -> EC2Driver:
        return self._drivers[region]

    def only(self, region: str) -> _Regions:
        """Keep one region only."""
        return _Regions({region: self._drivers[region]})

    def of_zone(self, zone: str) -> str:
        """Return the region that a zone is in."""
        return max((region for region in self.regions if zone.startswith(region)), key=len)


def _of_one_region(error: SkywardError) -> SkywardError:
    """Add advice to one region's error, when other regions returned offers."""
    if not isinstance(error.__cause__, EC2CredentialsError):
        return error
    advice = "Other regions accept the credentials: is this one enabled for the account?"
    advised = AuthFailed(f"{error}. {advice}", scope=Scope.REGION)
    advised.__cause__ = error
    return advised


def _is_wanted(kind: InstanceType, resources: Resources) -> bool:
    return meets(_offer(kind, "", "", False, None), resources, price=False)


def _is_sliced(kind: InstanceType) -> bool:
    """Whether it has a fraction of a GPU, which nobody who asks for that GPU wants."""
    return any(chip.count < 1 for chip in kind.accelerators)


def _architecture(kind: InstanceType) -> str | None:
    return next((name for name in ("x86_64", "arm64") if name in kind.architectures), None)


def _offer(kind: InstanceType, region: str, zone: str, spot: bool, price: float | None) -> Offer:
    chips = max(kind.accelerators, key=lambda chip: chip.count, default=None)
    architecture = _architecture(kind)
    nvidia = bool(chips and chips.manufacturer.upper() == "NVIDIA")  # our images have no driver for any other
    return Offer(
        machine=kind.name,
        vcpus=kind.vcpus,
        memory=kind.memory_mib * 2**20,
        accelerator=chips.name if chips else None,
        accelerators=int(chips.count) if chips else 0,
        accelerator_memory=chips.memory_mib * 2**20 if chips and chips.memory_mib else None,
        region=zone,
        spot=spot,
        price=price,
        extra={"architecture": architecture, "nvidia": nvidia},
        zone_of=region,
        usable=None if nvidia else 0,
        architecture={"arm64": "aarch64"}.get(architecture or "", architecture),
        billing=_BILLING,
    )


def _limit(max_price: float | None, others: float, on_demand: float | None) -> float | None:
    """Return the limit of a spot instance's own price; None if it would reach the on-demand price, as AWS rejects that.

    Parameters
    ----------
    max_price
        Maximum price of the instance with its volume and its address; None for no limit.
    others, on_demand
        The price of volume and address, and the on-demand price of the instance itself.
    """
    if max_price is None:
        return None
    limit = round(max_price - others, 6)
    return None if on_demand is not None and limit >= on_demand else limit


def _own_address() -> str:
    """Return our public address, as AWS sees it."""
    try:
        reply = requests.get(_WHO_AM_I, timeout=10)
        reply.raise_for_status()
        return f"{ipaddress.ip_address(reply.text.strip())}/{'128' if ':' in reply.text else '32'}"
    except (requests.RequestException, ValueError) as error:
        raise ProvisioningError(
            f"aws: can't determine the public address of this machine ({_WHO_AM_I}: {error}); set the network that "
            'may connect, as in sky.AWS(ssh_from="203.0.113.7/32")'
        ) from error
