"""EC2's replies as frozen values. Knows the replies' elements, whose namespaces are already removed."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

__all__ = [
    "MAX_CLIENT_TOKEN",
    "MAX_USER_DATA",
    "Accelerator",
    "Instance",
    "InstanceType",
    "Launch",
    "MachineImage",
    "SecurityGroup",
    "SpotPrice",
    "Subnet",
    "parse_image",
    "parse_instance",
    "parse_instance_type",
    "parse_security_group",
    "parse_spot_price",
    "parse_subnet",
]

MAX_USER_DATA = 16384  # bytes, before base64
MAX_CLIENT_TOKEN = 64


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One RunInstances call. ValueError if AWS would refuse it in any case."""

    image: str
    """An AMI's id, or ``resolve:ssm:`` and the name of a public parameter."""
    type: str
    count: int = 1
    at_least: int | None = None
    """Min number where `count` are not available; None: all or none."""
    client_token: str = ""
    """The same token and parameters return the same instances again, whatever became of the first reply."""
    user_data: str = field(default="", repr=False)
    spot: bool = False
    max_price: float | None = None
    """US dollars per hour above which a spot instance is not started, or is preempted; None: the on-demand price."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """On instances, volumes, network interfaces and the spot request."""
    subnet: str | None = None
    zone: str | None = None
    """Needs no subnet: that of the default VPC in the zone is used."""
    security_groups: Sequence[str] = ()
    """Ids. None given: the VPC's default group."""
    public_ip: bool | None = None
    """None: the subnet's default."""
    root_device: str | None = None
    """The image's (`MachineImage.root_device`): with another name AWS adds a second volume. None: no change."""
    disk_gib: int | None = None
    """Size of the root volume; None: the image's."""
    data_devices: Sequence[str] = ()
    """The image's other volumes (`MachineImage.data_devices`); deleted with the instance, whatever the image says."""
    instance_profile: str | None = None
    key_name: str | None = None

    def __post_init__(self) -> None:
        size = len(self.user_data.encode())
        if size > MAX_USER_DATA:
            raise ValueError(f"user data of {size} bytes; EC2 takes {MAX_USER_DATA}")
        if len(self.client_token) > MAX_CLIENT_TOKEN or not self.client_token.isascii():
            raise ValueError(f"client token {self.client_token!r} must be at most {MAX_CLIENT_TOKEN} ASCII characters")
        if not 1 <= (self.at_least or 1) <= self.count:
            raise ValueError(f"at_least={self.at_least} must be from 1 to count={self.count}")
        if self.disk_gib is not None and self.root_device is None:
            raise ValueError("disk_gib needs root_device, the name of the image's root volume")


@dataclass(frozen=True)
class Instance:
    """An instance as EC2 sees it."""

    id: str
    type: str
    state: str
    """pending, running, shutting-down, terminated, stopping or stopped."""
    zone: str
    spot: bool
    image: str = ""
    public_ip: str | None = None
    private_ip: str | None = None
    launched: datetime | None = None
    reason_code: str = ""
    """Such as Server.SpotInstanceTermination, Client.UserInitiatedShutdown or Client.InstanceInitiatedShutdown."""
    reason: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    client_token: str = ""
    subnet: str = ""
    spot_request: str = ""
    volumes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Accelerator:
    """GPUs, or AWS's own chips, of one kind in an instance type."""

    name: str
    manufacturer: str
    count: float
    """Below one where a machine has a fraction of a GPU."""
    memory_mib: int
    """Of one accelerator, or of the fraction."""


@dataclass(frozen=True)
class InstanceType:
    """A size of machine."""

    name: str
    vcpus: int
    memory_mib: int
    architectures: tuple[str, ...] = ()
    """x86_64, arm64, i386, …"""
    accelerators: tuple[Accelerator, ...] = ()
    usage_classes: tuple[str, ...] = ()
    """on-demand, spot, capacity-block."""
    current: bool = True
    bare_metal: bool = False
    burstable: bool = False


@dataclass(frozen=True)
class SpotPrice:
    """US dollars per hour for a type in a zone, since a time."""

    type: str
    zone: str
    price: float
    since: datetime


@dataclass(frozen=True)
class MachineImage:
    """An AMI."""

    id: str
    name: str
    owner: str
    architecture: str
    created: datetime
    root_device: str
    root_gib: int | None
    data_devices: tuple[str, ...] = ()
    """Names of the EBS volumes other than the root's."""
    deprecated: datetime | None = None


@dataclass(frozen=True)
class Subnet:
    """A subnet, which is in one zone."""

    id: str
    vpc: str
    zone: str
    default: bool
    public: bool
    """Instances get a public address by default."""
    free: int
    """Addresses left."""


@dataclass(frozen=True)
class SecurityGroup:
    """A firewall."""

    id: str
    name: str
    vpc: str
    tags: Mapping[str, str] = field(default_factory=dict)


def _text(element: ET.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _texts(element: ET.Element, path: str) -> tuple[str, ...]:
    return tuple((item.text or "").strip() for item in element.findall(f"{path}/item"))


def _tags(element: ET.Element) -> dict[str, str]:
    return {_text(item, "key"): _text(item, "value") for item in element.findall("tagSet/item")}


def _time(text: str) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def parse_instance(element: ET.Element) -> Instance:
    """From an item of ``instancesSet``."""
    return Instance(
        id=_text(element, "instanceId"),
        type=_text(element, "instanceType"),
        state=_text(element, "instanceState/name"),
        zone=_text(element, "placement/availabilityZone"),
        spot=_text(element, "instanceLifecycle") == "spot",
        image=_text(element, "imageId"),
        public_ip=_text(element, "ipAddress") or None,
        private_ip=_text(element, "privateIpAddress") or None,
        launched=_time(_text(element, "launchTime")),
        reason_code=_text(element, "stateReason/code"),
        reason=_text(element, "stateReason/message") or _text(element, "reason"),
        tags=_tags(element),
        client_token=_text(element, "clientToken"),
        subnet=_text(element, "subnetId"),
        spot_request=_text(element, "spotInstanceRequestId"),
        volumes=tuple(_text(item, "ebs/volumeId") for item in element.findall("blockDeviceMapping/item")),
    )


def parse_instance_type(element: ET.Element) -> InstanceType:
    """From an item of ``instanceTypeSet``."""
    return InstanceType(
        name=_text(element, "instanceType"),
        vcpus=int(_text(element, "vCpuInfo/defaultVCpus") or 0),
        memory_mib=int(_text(element, "memoryInfo/sizeInMiB") or 0),
        architectures=_texts(element, "processorInfo/supportedArchitectures"),
        accelerators=tuple(_accelerators(element)),
        usage_classes=_texts(element, "supportedUsageClasses"),
        current=_text(element, "currentGeneration") == "true",
        bare_metal=_text(element, "bareMetal") == "true",
        burstable=_text(element, "burstablePerformanceSupported") == "true",
    )


def _accelerators(element: ET.Element) -> Iterator[Accelerator]:
    # AWS's newer chips are listed as Neuron devices, and some of them as inference accelerators again.
    neurons = element.findall("neuronInfo/neuronDevices/item")
    inference = [] if neurons else element.findall("inferenceAcceleratorInfo/accelerators/item")
    for item in [*element.findall("gpuInfo/gpus/item"), *neurons, *inference]:
        count = float(_text(item, "count") or 0)
        if count == 0:  # a fraction of a GPU is counted as 0
            slices = float(_text(item, "logicalGpuCount") or 0)
            count = float(_text(item, "gpuPartitionSize") or 0) * slices
        yield Accelerator(
            name=_text(item, "name"),
            manufacturer=_text(item, "manufacturer") or "AWS",
            count=count,
            memory_mib=int(_text(item, "memoryInfo/sizeInMiB") or 0),
        )


def parse_spot_price(element: ET.Element) -> SpotPrice:
    """From an item of ``spotPriceHistorySet``."""
    return SpotPrice(
        type=_text(element, "instanceType"),
        zone=_text(element, "availabilityZone"),
        price=float(_text(element, "spotPrice")),
        since=datetime.fromisoformat(_text(element, "timestamp")),
    )


def parse_image(element: ET.Element) -> MachineImage:
    """From an item of ``imagesSet``."""
    root = _text(element, "rootDeviceName")
    mapped = element.findall("blockDeviceMapping/item")
    sizes = {
        _text(item, "deviceName"): _text(item, "ebs/volumeSize") for item in mapped if item.find("ebs") is not None
    }
    return MachineImage(
        id=_text(element, "imageId"),
        name=_text(element, "name"),
        owner=_text(element, "imageOwnerId"),
        architecture=_text(element, "architecture"),
        created=datetime.fromisoformat(_text(element, "creationDate")),
        root_device=root,
        root_gib=int(sizes[root]) if sizes.get(root) else None,
        data_devices=tuple(device for device in sizes if device != root),
        deprecated=_time(_text(element, "deprecationTime")),
    )


def parse_subnet(element: ET.Element) -> Subnet:
    """From an item of ``subnetSet``."""
    return Subnet(
        id=_text(element, "subnetId"),
        vpc=_text(element, "vpcId"),
        zone=_text(element, "availabilityZone"),
        default=_text(element, "defaultForAz") == "true",
        public=_text(element, "mapPublicIpOnLaunch") == "true",
        free=int(_text(element, "availableIpAddressCount") or 0),
    )


def parse_security_group(element: ET.Element) -> SecurityGroup:
    """From an item of ``securityGroupInfo``."""
    return SecurityGroup(
        id=_text(element, "groupId"),
        name=_text(element, "groupName"),
        vpc=_text(element, "vpcId"),
        tags=_tags(element),
    )
