"""What EC2 makes of a launch before it starts anything: what it stands for, and what is wrong with it."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any

from .aws import Call, Refusal
from .ec2_catalogue import PARAMETERS, machine_types, spot_price, usage_classes, zones

__all__ = ["check", "image_of", "subnet_in", "why_not", "with_volumes", "zone_of"]

_USER_DATA_LIMIT = 16384
_RESOLVE = "resolve:ssm:"
_TAGGED = {"instance", "volume", "network-interface", "spot-instances-request", "elastic-gpu"}


def image_of(call: Call, backend: Any) -> Any:
    """The image of a launch."""
    id = call.fields.get("ImageId", "")
    if id.startswith(_RESOLVE):
        name = id.removeprefix(_RESOLVE)
        if name not in PARAMETERS:
            message = f"Parameter {name} is not found or you do not have permission to use it."
            raise Refusal(400, "InvalidParameterValue", message)
        id = PARAMETERS[name]
    if not id:
        raise Refusal(400, "MissingParameter", "The request must contain the parameter ImageId")
    if re.fullmatch(r"ami-([0-9a-f]{8}|[0-9a-f]{17})", id) is None:
        raise Refusal(400, "InvalidAMIID.Malformed", f'Invalid id: "{id}"')
    image = backend.amis.get(id)
    if image is None:
        raise Refusal(400, "InvalidAMIID.NotFound", f"The image id '[{id}]' does not exist")
    return image


def zone_of(call: Call, backend: Any) -> str:
    """Where the instances will be."""
    subnet = call.fields.get("SubnetId") or call.fields.get("NetworkInterface.1.SubnetId")
    asked = call.fields.get("Placement.AvailabilityZone", "")
    if not subnet:
        return asked or f"{call.region}a"
    for subnets in backend.subnets.values():
        if subnet in subnets:
            return str(subnets[subnet].availability_zone)
    raise Refusal(400, "InvalidSubnetID.NotFound", f"The subnet ID '{subnet}' does not exist")


def check(call: Call, image: Any, zone: str, surge: float) -> None:
    """Refuse what AWS refuses before it looks for capacity, where spot prices are `surge` times the catalogue's."""
    fields, type = call.fields, call.fields.get("InstanceType", "m1.small")
    if type not in machine_types():
        raise Refusal(400, "InvalidParameterValue", f"Invalid value '{type}' for InstanceType.")
    here = zones(call.region).get(type, ())
    if zone not in here:
        message = (
            f"Your requested instance type ({type}) is not supported in your requested Availability Zone ({zone}). "
            f"Please retry your request by not specifying an Availability Zone or choosing {', '.join(here)}."
        )
        raise Refusal(400, "Unsupported", message)
    supported = machine_types()[type]["ProcessorInfo"]["SupportedArchitectures"]
    if image.architecture not in supported:
        message = (
            f"The architecture '{','.join(supported)}' of the specified instance type does not match the architecture "
            f"'{image.architecture}' of the specified AMI. Specify an instance type and an AMI that have matching "
            f"architectures, and try again."
        )
        raise Refusal(400, "InvalidParameterValue", message)
    market = fields.get("InstanceMarketOptions.MarketType")
    if market == "spot" and "spot" not in usage_classes(type):
        raise Refusal(400, "InvalidParameterValue", f"The instance type {type} does not support spot")
    limit = fields.get("InstanceMarketOptions.SpotOptions.MaxPrice")
    if market == "spot" and limit is not None and float(limit) < spot_price(type, zone) * surge:
        message = (
            f"Your Spot request price of {limit} is lower than the minimum required Spot request fulfillment price of "
            f"{spot_price(type, zone) * surge:.6f}."
        )
        raise Refusal(400, "SpotMaxPriceTooLow", message)
    try:
        size = len(base64.b64decode(fields.get("UserData", ""), validate=True))
    except ValueError:
        raise Refusal(400, "InvalidUserData.Malformed", "Invalid BASE64 encoding of user data.") from None
    if size > _USER_DATA_LIMIT:
        raise Refusal(400, "InvalidParameterValue", "User data is limited to 16384 bytes")
    kinds = {value for name, value in fields.items() if re.fullmatch(r"TagSpecification\.\d+\.ResourceType", name)}
    if kinds - _TAGGED or (market != "spot" and "spot-instances-request" in kinds):
        raise Refusal(400, "InvalidParameterValue", f"{sorted(kinds)}: not all are valid taggable resource types here.")


def _devices(fields: Mapping[str, str]) -> dict[str, str]:
    """Number of each block device mapping -> its device's name."""
    names = (re.fullmatch(r"BlockDeviceMapping\.(\d+)\.DeviceName", name) for name in fields)
    return {found[1]: fields[found[0]] for found in names if found is not None}


def subnet_in(zone: str, fields: Mapping[str, str], backend: Any) -> dict[str, str]:
    """The zone's default subnet for a launch that names none; moto would put it nowhere."""
    place = "NetworkInterface.1.SubnetId" if "NetworkInterface.1.DeviceIndex" in fields else "SubnetId"
    return {} if fields.get(place) else {place: backend.get_default_subnets()[zone].id}


def why_not(type: str, zone: str, *, spot: bool, quota: bool) -> Refusal:
    """The refusal of a launch that may not be, or for which there is no room."""
    if quota and spot:
        return Refusal(400, "MaxSpotInstanceCountExceeded", "Max spot instance count exceeded")
    if quota:
        message = (
            "You have requested more vCPU capacity than your current vCPU limit of 0 allows for the instance bucket "
            "that the specified instance type belongs to. Please visit http://aws.amazon.com/contact-us/ec2-request "
            "to request an adjustment to this limit."
        )
        return Refusal(400, "VcpuLimitExceeded", message)
    message = (
        f"We currently do not have sufficient {type} capacity in the Availability Zone you requested ({zone}). "
        f"Our system will be working on provisioning additional capacity."
    )
    if spot:
        message = "There is no Spot capacity available that matches your request."
    return Refusal(500, "InsufficientInstanceCapacity", message)


def with_volumes(fields: Mapping[str, str], image: Any) -> dict[str, str]:
    """The fields, where each volume has a size, and the image's own volumes come besides those of other names."""
    devices = _devices(fields)
    given = {f"BlockDeviceMapping.{number}.Ebs.VolumeSize": "8" for number in devices}
    place = max(map(int, devices), default=0)
    for device in (image.root_device_name, *image.data_devices):
        if device not in devices.values():
            place += 1
            ends = str(device == image.root_device_name).lower()
            own = {"DeviceName": device, "Ebs.VolumeSize": "8", "Ebs.DeleteOnTermination": ends}
            given |= {f"BlockDeviceMapping.{place}.{name}": value for name, value in own.items()}
    return {**given, **fields}
