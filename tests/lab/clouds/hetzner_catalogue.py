"""What Hetzner Cloud sells, in the API's own shapes: locations, server types and images.

Names, sizes and the kind of each price are the vendor's; the figures are of 2025 and only have to be plausible.
"""

from __future__ import annotations

import itertools
from typing import Any

__all__ = ["PLACES", "SOLD_OUT", "TYPES", "VAT", "images", "location", "server_type"]

PLACES = {
    "fsn1": (1, "Falkenstein DC Park 1", "DE", "Falkenstein", "eu-central"),
    "nbg1": (2, "Nuremberg DC Park 1", "DE", "Nuremberg", "eu-central"),
    "hel1": (3, "Helsinki DC Park 1", "FI", "Helsinki", "eu-central"),
    "ash": (4, "Ashburn, VA", "US", "Ashburn, VA", "us-east"),
    "hil": (5, "Hillsboro, OR", "US", "Hillsboro, OR", "us-west"),
    "sin": (6, "Singapore", "SG", "Singapore", "ap-southeast"),
}
_EUROPE = ("fsn1", "nbg1", "hel1")
# name: id, cores, GB of memory, GB of disk, kind of CPU, architecture, euros an hour (net), locations
TYPES: dict[str, tuple[int, int, float, int, str, str, float, tuple[str, ...]]] = {
    "cx22": (104, 2, 4, 40, "shared", "x86", 0.0060, _EUROPE),
    "cx23": (114, 2, 4, 40, "shared", "x86", 0.0056, _EUROPE),
    "cx33": (115, 4, 8, 80, "shared", "x86", 0.0088, _EUROPE),
    "cx53": (117, 16, 32, 320, "shared", "x86", 0.0280, _EUROPE),
    "cax11": (45, 2, 4, 40, "shared", "arm", 0.0060, _EUROPE),
    "cax41": (93, 16, 32, 320, "shared", "arm", 0.0392, _EUROPE),
    "cpx11": (22, 2, 2, 40, "shared", "x86", 0.0080, ("ash", "hil", "sin")),
    "ccx13": (96, 2, 8, 80, "dedicated", "x86", 0.0200, tuple(PLACES)),
    "ccx63": (101, 48, 192, 960, "dedicated", "x86", 0.4632, tuple(PLACES)),
}
_RETIRED = {"cx22": "2026-01-01T00:00:00+00:00"}
SOLD_OUT = {("cx53", "hel1")}
_IMAGES = (("ubuntu", "22.04"), ("ubuntu", "24.04"), ("debian", "12"), ("debian", "13"))
VAT = 1.19


def location(name: str) -> dict[str, Any]:
    id, description, country, city, zone = PLACES[name]
    place = {"id": id, "name": name, "description": description, "country": country, "city": city}
    return {**place, "latitude": 50.0, "longitude": 12.0, "network_zone": zone}


def server_type(name: str) -> dict[str, Any]:
    id, cores, memory, disk, cpu, architecture, price, places = TYPES[name]
    gone = _RETIRED.get(name)
    deprecation = None if gone is None else {"announced": "2025-10-01T00:00:00+00:00", "unavailable_after": gone}
    return {
        "id": id,
        "name": name,
        "description": name.upper(),
        "category": "Dedicated" if cpu == "dedicated" else "Cost-Optimized",
        "cores": cores,
        "memory": memory,
        "disk": disk,
        "deprecated": gone is not None,
        "deprecation": deprecation,
        "prices": [
            {
                "location": place,
                "price_hourly": {"net": f"{price:.10f}", "gross": f"{price * VAT:.16f}"},
                "price_monthly": {"net": f"{price * 625:.10f}", "gross": f"{price * 625 * VAT:.16f}"},
                "included_traffic": 20 * 1024**4,
                "price_per_tb_traffic": {"net": "1.0000000000", "gross": "1.1900000000000000"},
            }
            for place in places
        ],
        "storage_type": "local",
        "cpu_type": cpu,
        "architecture": architecture,
        "locations": [
            {
                "id": PLACES[place][0],
                "name": place,
                "deprecation": deprecation,
                "available": (name, place) not in SOLD_OUT and gone is None,
                "recommended": gone is None,
            }
            for place in places
        ],
    }


def images() -> list[dict[str, Any]]:
    """Every system twice: the name is the same for both architectures."""
    pairs = itertools.product(_IMAGES, ("x86", "arm"))
    return [
        {
            "id": 161547269 + number,
            "type": "system",
            "status": "available",
            "name": f"{flavor}-{version}",
            "description": f"{flavor.title()} {version}",
            "image_size": None,
            "disk_size": 5,
            "created": "2024-04-25T13:26:27+00:00",
            "created_from": None,
            "bound_to": None,
            "os_flavor": flavor,
            "os_version": version,
            "rapid_deploy": True,
            "protection": {"delete": False},
            "deprecated": None,
            "deprecation": None,
            "deleted": None,
            "labels": {},
            "architecture": architecture,
        }
        for number, ((flavor, version), architecture) in enumerate(pairs)
    ]
