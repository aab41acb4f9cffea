"""Extends libcloud's EC2 driver with what it lacks, through raw calls.

Added here: all regions, one-time spot instances, tags on everything that a launch creates, current instance types and
spot prices, state reasons, errors with AWS's code. Calls return frozen values (ec2_values.py), are signed (version 4)
and sent by POST (ec2_wire.py), and are never retried: EC2 throttles with a 503, which only the caller can pace.

Like every libcloud driver, an object is for one thread at a time.
"""

from __future__ import annotations

import base64
import re
import urllib.parse
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from libcloud.common.types import MalformedResponseError
from libcloud.compute.drivers.ec2 import EC2NodeDriver
from libcloud.pricing import get_size_price

from .ec2_values import (
    Instance,
    InstanceType,
    Launch,
    MachineImage,
    SpotPrice,
    Subnet,
    parse_image,
    parse_instance,
    parse_instance_type,
    parse_spot_price,
    parse_subnet,
)
from .ec2_wire import (
    EC2ClockSkewError,
    EC2CredentialsError,
    EC2Error,
    EC2InUseError,
    QueryConnection,
    STSConnection,
    request,
)

__all__ = ["EC2ClockSkewError", "EC2CredentialsError", "EC2Driver", "EC2Error", "EC2InUseError", "Filters"]

Filters = Mapping[str, str | Sequence[str]]
"""Name -> value or values, one of which must match; like EC2's own, with * and ? as wildcards."""

_REGION = re.compile(r"[a-z]{2,4}(-[a-z]+)+-\d{1,2}")
_DOMAINS = (
    ("cn-", "amazonaws.com.cn"),
    ("eusc-", "amazonaws.eu"),
    ("us-iso-", "c2s.ic.gov"),
    ("us-isob-", "sc2s.sgov.gov"),
    ("us-isof-", "csp.hci.ic.gov"),
    ("eu-isoe-", "cloud.adc-e.uk"),
)
_DOMAIN = "amazonaws.com"
_BATCH = 100  # names or filter values in one request; EC2 takes 100 to 200
_PAGE = 1000
_TYPES_PAGE = 100  # maximum of DescribeInstanceTypes
_UNKNOWN_INSTANCE = frozenset({"InvalidInstanceID.NotFound", "InvalidInstanceID.Malformed"})

T = TypeVar("T")


class EC2Driver(EC2NodeDriver):
    """EC2 in one region.

    Parameters
    ----------
    key, secret, token
        Credentials; the token is part of temporary ones.
    region
        Any region, even one that libcloud does not know.
    url
        Another endpoint, such as ``http://127.0.0.1:5000``, for all services.
    options
        ``timeout`` (seconds for which a call may receive nothing, 60 by default), ``proxy_url`` and other keywords of
        libcloud's drivers.

    Raises
    ------
    ValueError
        The region's name does not have the form of AWS's.
    """

    connectionCls = QueryConnection  # noqa: N815 (libcloud's name)

    def __init__(
        self,
        key: str,
        secret: str,
        *,
        region: str,
        token: str | None = None,
        url: str | None = None,
        **options: Any,
    ) -> None:
        if _REGION.fullmatch(region) is None:
            raise ValueError(f"{region!r} is not the name of an AWS region such as eu-central-1")
        self.region_name = region
        self.token = token
        self.signature_version = "4"
        self.api_name = "ec2_" + region.replace("-", "_")
        self.country = ""
        self._url = url
        self._options = {"timeout": 60.0, **options}
        # libcloud's own constructor looks the region up in its table, and refuses those that are not in it.
        super(EC2NodeDriver, self).__init__(  # type: ignore[no-untyped-call]
            key, secret, region=region, **_place("ec2", region, url), **self._options
        )

    def __repr__(self) -> str:
        return f"<EC2Driver {self.region_name} at {self.connection.host}>"

    # Calls in general

    def query(self, action: str, parameters: Mapping[str, Any]) -> ET.Element:
        """Make any EC2 call; parameters may be nested. Returns the root of the reply, without namespaces.

        Raises
        ------
        EC2Error
            AWS refused; a subclass if the call itself is not the reason.
        MalformedResponseError
            The reply is not AWS's.
        """
        return request(self.connection, action, parameters)

    def _pages(self, action: str, parameters: Mapping[str, Any], size: int = _PAGE) -> Iterator[ET.Element]:
        """Fetch all pages of a call."""
        token: str | None = None
        while True:
            page = self.query(action, {**parameters, "MaxResults": size, "NextToken": token})
            yield page
            following = (page.findtext("nextToken") or "").strip()
            if not following:
                return
            if following == token:
                message = f"{action} pages in a circle: the next page has this page's token"
                raise MalformedResponseError(message, body=token, driver=self)
            token = following

    def identity(self) -> tuple[str, str]:
        """Return the account number and ARN of the credentials: the cheapest way to check them, without permissions."""
        make: Any = STSConnection
        credentials = {"user_id": self.key, "key": self.secret, "token": self.token, "signature_version": "4"}
        connection = make(**credentials, **_place("sts", self.region_name, self._url), **self._options)
        connection.driver = self
        reply = request(connection, "GetCallerIdentity", {})
        account, arn = (reply.findtext(f"GetCallerIdentityResult/{name}") for name in ("Account", "Arn"))
        return account or "", arn or ""

    # Instances

    def run_instances(self, launch: Launch) -> list[Instance]:
        """Start instances in one call, which succeeds or fails as a whole.

        Their metadata service requires a session token (version 2), and a shutdown from inside terminates them.
        """
        reply = self.query("RunInstances", _run_parameters(launch))
        return [parse_instance(item) for item in reply.findall("instancesSet/item")]

    def describe_instances(self, filters: Filters) -> list[Instance]:
        """List instances that match; terminated ones are shown for about an hour."""
        pages = self._pages("DescribeInstances", {"Filter": _filters(filters)})
        return _collect(pages, "reservationSet/item/instancesSet/item", parse_instance)

    def terminate_instances(self, ids: Iterable[str]) -> frozenset[str]:
        """Terminate instances; may be repeated. Returns the ids that EC2 does not know: too new, or long gone.

        One unknown id makes EC2 refuse the whole call, which is therefore halved until only unknown ids are left.
        """
        unknown: set[str] = set()
        left = [part for part in _batches(sorted(set(ids)), _PAGE) if part]
        while left:
            part = left.pop()
            try:
                self.query("TerminateInstances", {"InstanceId": part})
            except EC2Error as error:
                if error.code not in _UNKNOWN_INSTANCE:
                    raise
                if len(part) == 1:
                    unknown.update(part)
                else:
                    half = len(part) // 2
                    left += [part[half:], part[:half]]
        return frozenset(unknown)

    # Instance types, prices, images

    def instance_types(self, filters: Filters) -> list[InstanceType]:
        """List types of the region that match, such as ``{"instance-type": "g5.*"}``; all types take a dozen calls."""
        pages = self._pages("DescribeInstanceTypes", {"Filter": _filters(filters)}, _TYPES_PAGE)
        return _collect(pages, "instanceTypeSet/item", parse_instance_type)

    def offerings(self, types: Sequence[str]) -> dict[str, frozenset[str]]:
        """Return the region's zones by instance type; a type that is available nowhere is left out."""
        zones: dict[str, set[str]] = {}
        for part in _batches(types, _BATCH):
            parameters = {"LocationType": "availability-zone", "Filter": _filters({"instance-type": part})}
            for page in self._pages("DescribeInstanceTypeOfferings", parameters):
                for item in page.findall("instanceTypeOfferingSet/item"):
                    zones.setdefault(item.findtext("instanceType") or "", set()).add(item.findtext("location") or "")
        return {name: frozenset(where) for name, where in zones.items()}

    def spot_prices(self, types: Sequence[str]) -> dict[tuple[str, str], SpotPrice]:
        """Return current spot prices for Linux by (type, zone); without a price there is no spot of that type there."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        newest: dict[tuple[str, str], SpotPrice] = {}
        for part in _batches(types, _BATCH):
            # From now on: EC2 then returns the price that applies now, whenever it was set.
            parameters = {"InstanceType": part, "ProductDescription": ["Linux/UNIX"], "StartTime": now}
            for page in self._pages("DescribeSpotPriceHistory", parameters):
                for item in page.findall("spotPriceHistorySet/item"):
                    price = parse_spot_price(item)
                    known = newest.get((price.type, price.zone))
                    if known is None or known.since < price.since:
                        newest[price.type, price.zone] = price
        return newest

    def on_demand_price(self, type: str) -> float | None:
        """Return US dollars per hour for Linux from libcloud's table, which may be out of date; None if unknown."""
        price: float | None = get_size_price("compute", "ec2_linux", type, self.region_name)
        return price or None  # the table has 0 for unknown prices

    def images(self, owners: Sequence[str], filters: Filters) -> list[MachineImage]:
        """List available AMIs, newest first.

        Parameters
        ----------
        owners
            Account numbers, or "self", "amazon", "aws-marketplace".
        filters
            Such as ``{"name": "ubuntu/images/*noble-24.04-amd64-server-*", "architecture": "x86_64"}``.
        """
        parameters = {"Owner": list(owners), "Filter": _filters({"state": "available", **filters})}
        found = _collect(self._pages("DescribeImages", parameters), "imagesSet/item", parse_image)
        return sorted(found, key=lambda image: image.created, reverse=True)

    def image(self, id: str) -> MachineImage:
        """Return one AMI; EC2Error with code ``InvalidAMIID.NotFound`` if there is none."""
        reply = self.query("DescribeImages", {"ImageId": [id]})
        found = _collect([reply], "imagesSet/item", parse_image)
        if not found:  # deregistered lately
            raise EC2Error("InvalidAMIID.NotFound", f"The image id '[{id}]' does not exist", 400, "DescribeImages")
        return found[0]

    # Networks

    def default_vpc(self) -> str | None:
        """Return the id of the region's default VPC; None if its owner deleted it."""
        reply = self.query("DescribeVpcs", {"Filter": _filters({"is-default": "true"})})
        return reply.findtext("vpcSet/item/vpcId")

    def subnets(self, vpc: str) -> list[Subnet]:
        """List a VPC's subnets by zone; in each the default first, then by free addresses."""
        pages = self._pages("DescribeSubnets", {"Filter": _filters({"vpc-id": vpc, "state": "available"})})
        found = _collect(pages, "subnetSet/item", parse_subnet)
        return sorted(found, key=lambda subnet: (subnet.zone, not subnet.default, -subnet.free))

    def create_security_group(self, name: str, description: str, vpc: str, tags: Mapping[str, str]) -> str:
        """Create a security group that allows nothing in, and return its id.

        Parameters
        ----------
        name
            Must be new in the VPC.
        description, tags
            Of the group.
        vpc
            Id of the VPC.
        """
        parameters = {"GroupName": name, "GroupDescription": description, "VpcId": vpc}
        reply = self.query("CreateSecurityGroup", {**parameters, **_tag_specifications(tags, ["security-group"])})
        return reply.findtext("groupId") or ""

    def authorize(self, group: str, cidr: str) -> None:
        """Allow SSH from a network, IPv4 or IPv6; may be repeated."""
        kind = {"Ipv6Ranges": [{"CidrIpv6": cidr}]} if ":" in cidr else {"IpRanges": [{"CidrIp": cidr}]}
        self._authorize(group, {"FromPort": 22, "ToPort": 22, **kind})

    def authorize_members(self, group: str) -> None:
        """Allow TCP between instances of a group, on unprivileged ports; may be repeated."""
        self._authorize(group, {"FromPort": 1024, "ToPort": 65535, "Groups": [{"GroupId": group}]})

    def _authorize(self, group: str, rule: dict[str, Any]) -> None:
        rule = {"IpProtocol": "tcp", **rule}
        try:
            self.query("AuthorizeSecurityGroupIngress", {"GroupId": group, "IpPermissions": [rule]})
        except EC2Error as error:
            if error.code != "InvalidPermission.Duplicate":
                raise

    def security_groups(self, filters: Filters) -> list[str]:
        """List ids of groups that match, such as ``{"tag:skyward-pool": "p1"}``."""
        pages = self._pages("DescribeSecurityGroups", {"Filter": _filters(filters)})
        return _collect(pages, "securityGroupInfo/item", lambda item: item.findtext("groupId") or "")

    def delete_security_group(self, id: str) -> bool:
        """Delete a group; False if there was none.

        Raises
        ------
        EC2InUseError
            Instances use it, including some that are not terminated yet; retry when they are.
        """
        return self._delete("DeleteSecurityGroup", {"GroupId": id}, "InvalidGroup.NotFound")

    def volumes(self, filters: Filters) -> list[str]:
        """List ids of volumes that match, such as ``{"tag:skyward-pool": "p1", "status": "available"}``."""
        pages = self._pages("DescribeVolumes", {"Filter": _filters(filters)})
        return _collect(pages, "volumeSet/item", lambda item: item.findtext("volumeId") or "")

    def delete_volume(self, id: str) -> bool:
        """Delete a volume; False if there was none.

        Raises
        ------
        EC2InUseError
            An instance uses it, perhaps one that is not terminated yet; retry when it is.
        """
        return self._delete("DeleteVolume", {"VolumeId": id}, "InvalidVolume.NotFound")

    def _delete(self, action: str, parameters: Mapping[str, Any], unknown: str) -> bool:
        """Delete something; False if AWS answers with the code `unknown`, since it does not exist."""
        try:
            self.query(action, parameters)
        except EC2Error as error:
            if error.code != unknown:
                raise
            return False
        return True


def _place(service: str, region: str, url: str | None) -> dict[str, Any]:
    """Where a service is, as arguments of a connection."""
    domain = next((domain for prefix, domain in _DOMAINS if region.startswith(prefix)), _DOMAIN)
    parts = urllib.parse.urlsplit(url or f"https://{service}.{region}.{domain}")
    secure = parts.scheme == "https"
    return {"secure": secure, "host": parts.hostname, "port": parts.port or (443 if secure else 80)}


def _run_parameters(launch: Launch) -> dict[str, Any]:
    """Convert a launch to the parameters of RunInstances."""
    made = ["instance", "volume", "network-interface", *(["spot-instances-request"] if launch.spot else [])]
    return {
        "ImageId": launch.image,
        "InstanceType": launch.type,
        "MinCount": 1,
        "MaxCount": launch.count,
        "ClientToken": launch.client_token or None,
        "UserData": base64.b64encode(launch.user_data.encode()).decode() or None,
        "InstanceInitiatedShutdownBehavior": "terminate",
        "MetadataOptions": {"HttpEndpoint": "enabled", "HttpTokens": "required"},
        "InstanceMarketOptions": _market(launch.max_price) if launch.spot else None,
        "IamInstanceProfile": {"Name": launch.instance_profile},
        **_block_devices(launch),
        **_network(launch),
        **_tag_specifications(launch.tags, made),
    }


def _market(limit: float | None) -> dict[str, Any]:
    # A persistent request would start it again.
    options = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate", "MaxPrice": limit}
    return {"MarketType": "spot", "SpotOptions": options}


def _block_devices(launch: Launch) -> dict[str, Any]:
    # Whatever is not set here is as in the image, which may keep a volume, and its cost, after its instance has ended.
    volumes: dict[str, dict[str, Any]] = {device: {"DeleteOnTermination": True} for device in launch.data_devices}
    if launch.root_device is not None:
        root = {"VolumeType": "gp3", "DeleteOnTermination": True, "VolumeSize": launch.disk_gib}
        volumes = {launch.root_device: root, **volumes}
    return {"BlockDeviceMapping": [{"DeviceName": device, "Ebs": volume} for device, volume in volumes.items()]}


def _network(launch: Launch) -> dict[str, Any]:
    if launch.public_ip is None:
        return {"SubnetId": launch.subnet, "SecurityGroupId": list(launch.security_groups)}
    # Only a network interface has this option, and then it has the subnet and the groups too.
    interface = {
        "DeviceIndex": 0,
        "SubnetId": launch.subnet,
        "SecurityGroupId": list(launch.security_groups),
        "AssociatePublicIpAddress": launch.public_ip,
        "DeleteOnTermination": True,
    }
    return {"NetworkInterface": [interface]}


def _filters(filters: Filters) -> list[dict[str, Any]]:
    return [
        {"Name": name, "Value": [value] if isinstance(value, str) else list(value)} for name, value in filters.items()
    ]


def _tag_specifications(tags: Mapping[str, str], kinds: Sequence[str]) -> dict[str, Any]:
    if not tags:
        return {}
    given = [{"Key": key, "Value": value} for key, value in tags.items()]
    return {"TagSpecification": [{"ResourceType": kind, "Tag": given} for kind in kinds]}


def _collect(pages: Iterable[ET.Element], path: str, parse: Callable[[ET.Element], T]) -> list[T]:
    return [parse(item) for page in pages for item in page.findall(path)]


def _batches(items: Sequence[str], size: int) -> list[list[str]]:
    return [list(items[start : start + size]) for start in range(0, len(items), size)]
