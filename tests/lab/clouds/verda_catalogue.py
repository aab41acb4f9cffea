"""What Verda sells: instance types, images, locations and where each type can be had. Shapes as its API gives them."""

from __future__ import annotations

import uuid
from typing import Any

__all__ = ["AVAILABLE", "IMAGES", "LOCATIONS", "SPOT", "TYPES", "VOLUME_TYPES", "fits"]

LOCATIONS = [
    {"code": "FIN-01", "name": "Finland 1", "country_code": "FI"},
    {"code": "FIN-02", "name": "Finland 2", "country_code": "FI"},
    {"code": "FIN-03", "name": "Finland 3", "country_code": "FI"},
    {"code": "ICE-01", "name": "Iceland 1", "country_code": "IS"},
]

VOLUME_TYPES = [
    {
        "type": kind,
        "price": {"price_per_month_per_gb": price, "cps_per_gb": price / 730 / 3600, "currency": "usd"},
        "is_shared_fs": shared,
    }
    for kind, price, shared in [("NVMe", 0.2, False), ("HDD", 0.05, False), ("NVMe_Shared", 0.2, True)]
]

# image type, name, whether it needs a GPU
_IMAGES = [
    ("ubuntu-24.04", "Ubuntu 24.04", False),
    ("ubuntu-22.04", "Ubuntu 22.04", False),
    ("ubuntu-24.04-cuda-12.8-open-docker", "Ubuntu 24.04 + CUDA 12.8 Open + Docker", True),
    ("ubuntu-24.04-cuda-13.0-open-docker", "Ubuntu 24.04 + CUDA 13.0 Open + Docker", True),
    ("ubuntu-22.04-cuda-12.4-docker", "Ubuntu 22.04 + CUDA 12.4 + Docker", True),
]

IMAGES: list[dict[str, Any]] = [
    {
        "id": str(uuid.uuid5(uuid.NAMESPACE_DNS, kind)),
        "image_type": kind,
        "name": name,
        "details": name.split(" + "),
        "is_default": kind == "ubuntu-24.04",
        "is_cluster": False,
        "category": "ubuntu",
    }
    for kind, name, _ in _IMAGES
]


def fits(image_type: str, instance_type: dict[str, Any]) -> bool:
    """Whether an instance of the type can be made from the image."""
    return image_type in instance_type["supported_os"]


def _machine(
    kind: str, prices: tuple[str, str], cores: int, memory: int, gpus: int = 0, gpu: str = ""
) -> dict[str, Any]:
    """An instance type; `gpu` is a model, form and memory, such as "H100 SXM5 80GB"."""
    price, spot = prices
    each = int(gpu.rsplit(maxsplit=1)[-1].removesuffix("GB")) if gpu else 0
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_DNS, kind)),
        "instance_type": kind,
        "price_per_hour": price,
        "spot_price": spot,
        "dynamic_price": price,
        "max_dynamic_price": price,
        "serverless_price": None,
        "serverless_spot_price": None,
        "currency": "usd",
        "description": "Dedicated Hardware Instance",
        "cpu": {"description": f"{cores} CPU", "number_of_cores": cores},
        "gpu": {"description": f"{gpus}x {gpu}" if gpus else "", "number_of_gpus": gpus},
        "memory": {"description": f"{memory}GB RAM", "size_in_gigabytes": memory},
        "gpu_memory": {"description": f"{gpus * each}GB GPU RAM" if gpus else "", "size_in_gigabytes": gpus * each},
        "storage": {"description": "dynamic"},
        "best_for": ["Large model inference", "Training"] if gpus else ["Data preparation", "Web servers"],
        "model": gpu.split(maxsplit=1)[0] if gpus else "CPU Node",
        "name": gpu or "AMD EPYC",
        "display_name": f"NVIDIA {gpu}" if gpus else "CPU Node",
        "manufacturer": "NVIDIA" if gpus else "AMD",
        "p2p": "900 GB/s" if gpus > 1 else "",
        "supported_os": [kind for kind, _, cuda in _IMAGES if gpus or not cuda],
        "deploy_warning": None,
    }


TYPES: dict[str, dict[str, Any]] = {
    row["instance_type"]: row
    for row in [
        _machine("CPU.4V.16G", ("0.0279", "0.0139"), 4, 16),
        _machine("CPU.16V.64G", ("0.1116", "0.0558"), 16, 64),
        _machine("1V100.6V", ("0.1381", "0.0690"), 6, 23, 1, "V100 16GB"),
        _machine("8V100.48V", ("1.1048", "0.5524"), 48, 180, 8, "V100 16GB"),
        _machine("1L40S.20V", ("0.9143", "0.4572"), 20, 60, 1, "L40S 48GB"),
        _machine("1A100.22V", ("1.2900", "0.6450"), 22, 120, 1, "A100 SXM4 80GB"),
        _machine("1H100.80S.22V", ("2.2900", "0.8015"), 22, 187, 1, "H100 SXM5 80GB"),
        _machine("8H100.80S.176V", ("18.3200", "6.4120"), 176, 1480, 8, "H100 SXM5 80GB"),
    ]
}

AVAILABLE: dict[str, list[str]] = {
    "FIN-01": ["CPU.4V.16G", "CPU.16V.64G", "1V100.6V", "1A100.22V"],
    "FIN-02": ["1H100.80S.22V"],
    "FIN-03": ["CPU.4V.16G", "1L40S.20V", "1A100.22V", "1H100.80S.22V", "8H100.80S.176V"],
    "ICE-01": ["1L40S.20V", "1H100.80S.22V"],
}
"""Location -> types that can be had there on demand; nowhere: 8V100.48V."""

SPOT: dict[str, list[str]] = {
    "FIN-01": ["CPU.4V.16G", "1V100.6V"],
    "FIN-02": [],
    "FIN-03": ["CPU.4V.16G", "1L40S.20V", "1H100.80S.22V"],
    "ICE-01": ["1H100.80S.22V"],
}
"""The same for spot instances."""
