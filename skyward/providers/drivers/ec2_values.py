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
    "SpotPrice",
    "Subnet",
    "parse_image",
    "parse_instance",
    "parse_instance_type",
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
    """Maximum number; at least one is started if not all are available."""
    client_token: str = ""
    """The same token and parameters return the same instances again, whatever became of the first reply."""
    user_data: str = field(default="", repr=False)
    spot: bool = False
    max_price: float | None = None
    """US dollars per hour above which a spot instance is not started, or is preempted; None: the on-demand price."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """On instances, volumes, network interfaces and the spot request."""
    subnet: str | None = None
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

    def __post_init__(self) -> None:
        size = len(self.user_data.encode())
        if size > MAX_USER_DATA:
            raise ValueError(f"user data of {size} bytes; EC2 takes {MAX_USER_DATA}")
        if len(self.client_token) > MAX_CLIENT_TOKEN or not self.client_token.isascii():
            raise ValueError(f"client token {self.client_token!r} must be at most {MAX_CLIENT_TOKEN} ASCII characters")
        if self.disk_gib is not None and self.root_device is None:
            raise ValueError("disk_gib needs root_device, the name of the image's root volume")


@dataclass(frozen=True)
class Instance:
    """An instance as EC2 sees it."""

    id: str
    state: str
    """pending, running, shutting-down, terminated, stopping or stopped."""
    public_ip: str | None = None
    private_ip: str | None = None
    reason_code: str = ""
    """Such as Server.SpotInstanceTermination, Client.UserInitiatedShutdown or Client.InstanceInitiatedShutdown."""
    reason: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)


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
    bare_metal: bool = False


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
    created: datetime
    root_device: str
    data_devices: tuple[str, ...] = ()
    """Names of the EBS volumes other than the root's."""


@dataclass(frozen=True)
class Subnet:
    """A subnet, which is in one zone."""

    id: str
    zone: str
    default: bool
    free: int
    """Addresses left."""


def _text(element: ET.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _texts(element: ET.Element, path: str) -> tuple[str, ...]:
    return tuple((item.text or "").strip() for item in element.findall(f"{path}/item"))


def parse_instance(element: ET.Element) -> Instance:
    """From an item of ``instancesSet``."""
    return Instance(
        id=_text(element, "instanceId"),
        state=_text(element, "instanceState/name"),
        public_ip=_text(element, "ipAddress") or None,
        private_ip=_text(element, "privateIpAddress") or None,
        reason_code=_text(element, "stateReason/code"),
        reason=_text(element, "stateReason/message") or _text(element, "reason"),
        tags={_text(item, "key"): _text(item, "value") for item in element.findall("tagSet/item")},
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
        bare_metal=_text(element, "bareMetal") == "true",
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
    volumes = [_text(item, "deviceName") for item in mapped if item.find("ebs") is not None]
    return MachineImage(
        id=_text(element, "imageId"),
        created=datetime.fromisoformat(_text(element, "creationDate")),
        root_device=root,
        data_devices=tuple(device for device in volumes if device != root),
    )


def parse_subnet(element: ET.Element) -> Subnet:
    """From an item of ``subnetSet``."""
    return Subnet(
        id=_text(element, "subnetId"),
        zone=_text(element, "availabilityZone"),
        default=_text(element, "defaultForAz") == "true",
        free=int(_text(element, "availableIpAddressCount") or 0),
    )
