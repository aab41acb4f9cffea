"""What EC2 in the lab has to offer: images, and which of AWS's machine types, where, and at which spot prices."""

from __future__ import annotations

import functools
import zlib
from typing import Any

from libcloud.pricing import get_size_price

__all__ = [
    "AMIS",
    "DATA_DEVICES",
    "PARAMETERS",
    "machine_types",
    "on_demand_price",
    "spot_price",
    "usage_classes",
    "user_of",
    "zones",
]

_UBUNTU, _DEBIAN, _AMAZON = "099720109477", "136693071363", "137112412989"
_DEEP, _OWN = "898082745236", "123456789012"

# AWS has some 1,400 types, which take moto ten seconds to list.
_FAMILIES = {"t3", "t3a", "t4g", "m5", "m6i", "m7g", "c5", "c6i", "c7g", "c7i-flex", "r5", "r6g"}
_FAMILIES |= {"g4dn", "g5", "g5g", "g6", "g6f", "g6e", "p3", "p4d", "p5", "trn1", "inf2"}


def _ami(id: str, name: str, owner: str, arch: str, created: str, root: str = "/dev/sda1") -> dict[str, Any]:
    return {
        "ami_id": f"ami-{id:0<17}",
        "name": name,
        "owner_id": owner,
        "architecture": arch,
        "creation_date": created,
        "root_device_name": root,
        "root_device_type": "ebs",
        "virtualization_type": "hvm",
        "hypervisor": "xen",
        "image_location": f"amazon/{name}",
        "image_type": "machine",
        "description": name,
        "public": True,
        "sriov": "simple",
        "state": "available",
    }


_NOBLE = "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-{}-server-{}"
_JAMMY = "ubuntu/images/hvm-ssd/ubuntu-jammy-22.04-{}-server-{}"
_DLAMI = "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 24.04) {}"
_DLAMI_ARM = "Deep Learning ARM64 Base OSS Nvidia Driver GPU AMI (Ubuntu 24.04) {}"

AMIS = [
    _ami("0a1", _NOBLE.format("amd64", "20260714"), _UBUNTU, "x86_64", "2026-07-14T05:12:51.000Z"),
    _ami("0a2", _NOBLE.format("amd64", "20261002"), _UBUNTU, "x86_64", "2026-10-02T06:31:07.000Z"),
    _ami("0a3", _NOBLE.format("arm64", "20260714"), _UBUNTU, "arm64", "2026-07-14T05:19:33.000Z"),
    _ami("0a4", _NOBLE.format("arm64", "20261002"), _UBUNTU, "arm64", "2026-10-02T06:38:45.000Z"),
    _ami("0b1", _JAMMY.format("amd64", "20260928"), _UBUNTU, "x86_64", "2026-09-28T04:44:19.000Z"),
    _ami("0b2", _JAMMY.format("arm64", "20260928"), _UBUNTU, "arm64", "2026-09-28T04:51:02.000Z"),
    _ami("0c1", _DLAMI.format("20260901"), _DEEP, "x86_64", "2026-09-01T17:03:11.000Z"),
    _ami("0c2", _DLAMI.format("20261015"), _DEEP, "x86_64", "2026-10-15T17:20:40.000Z"),
    _ami("0c3", _DLAMI_ARM.format("20261015"), _DEEP, "arm64", "2026-10-15T17:31:58.000Z"),
    _ami("0d1", "debian-13-amd64-20260911-2230", _DEBIAN, "x86_64", "2026-09-11T12:00:00.000Z", "/dev/xvda"),
    _ami("0d2", "debian-13-arm64-20260911-2230", _DEBIAN, "arm64", "2026-09-11T12:04:00.000Z", "/dev/xvda"),
    _ami(
        "0e1",
        "al2023-ami-2023.12.20260930.0-kernel-6.1-x86_64",
        _AMAZON,
        "x86_64",
        "2026-09-30T20:11:00.000Z",
        "/dev/xvda",
    ),
    _ami("0f1", "image-of-the-account-with-a-data-volume", _OWN, "x86_64", "2026-10-20T08:00:00.000Z"),
]
"""Keywords of moto's own class of images."""

DATA_DEVICES = {f"ami-{'0f1':0<17}": ("/dev/sdf",)}
"""Volumes that images have besides the root volume."""

_CANONICAL = "/aws/service/canonical/ubuntu/server/{}/stable/current/{}/hvm/{}/ami-id"
_DEEP_LEARNING = "/aws/service/deeplearning/ami/{}/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"

PARAMETERS = {
    name: f"ami-{id:0<17}"
    for name, id in {
        _CANONICAL.format("24.04", "amd64", "ebs-gp3"): "0a2",
        _CANONICAL.format("24.04", "arm64", "ebs-gp3"): "0a4",
        _CANONICAL.format("22.04", "amd64", "ebs-gp2"): "0b1",
        _CANONICAL.format("22.04", "arm64", "ebs-gp2"): "0b2",
        _DEEP_LEARNING.format("x86_64"): "0c2",
        _DEEP_LEARNING.format("arm64"): "0c3",
        "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64": "0e1",
        "/account/image-with-data": "0f1",
    }.items()
}
"""Parameters that name images; public ones, and one of the account."""


def user_of(image: str) -> str:
    """The default user of an image by its name."""
    if image.startswith("debian"):
        return "admin"
    return "ec2-user" if image.startswith("al20") else "ubuntu"


@functools.cache
def zones(region: str) -> dict[str, tuple[str, ...]]:
    """Zones of a region by machine type."""
    from moto.ec2.models.instance_types import INSTANCE_TYPE_OFFERINGS

    found: dict[str, list[str]] = {}
    for offer in INSTANCE_TYPE_OFFERINGS["availability-zone"].get(region, ()):
        name = offer["InstanceType"]
        # A zone is a region and a letter; the other places have few types and an opt-in.
        if name.split(".")[0] in _FAMILIES and offer["Location"][:-1] == region:
            found.setdefault(name, []).append(offer["Location"])
    return {name: tuple(sorted(places)) for name, places in sorted(found.items())}


def machine_types() -> dict[str, dict[str, Any]]:
    """All types that AWS has, as its DescribeInstanceTypes shows them."""
    from moto.ec2.models.instance_types import INSTANCE_TYPES

    return INSTANCE_TYPES


def usage_classes(type: str) -> list[str]:
    """on-demand, spot, …"""
    return list(machine_types()[type]["SupportedUsageClasses"])


def on_demand_price(type: str, region: str) -> float:
    """Dollars an hour; where libcloud's table does not know, by the number of processors."""
    known = get_size_price("compute", "ec2_linux", type, region)
    return known or 0.05 * float(machine_types()[type]["VCpuInfo"]["DefaultVCpus"])


def spot_price(type: str, zone: str) -> float:
    """Between a quarter and seven tenths of the on-demand price, always the same for a type in a zone."""
    share = 0.25 + 0.45 * (zlib.crc32(f"{type} {zone}".encode()) % 1000) / 1000
    return round(on_demand_price(type, zone[:-1]) * share, 6)
