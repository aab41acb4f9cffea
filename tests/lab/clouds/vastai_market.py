"""Vast.ai's market: a catalogue of offers as the API shows them, and its search."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["catalogue", "matches", "ordered", "priced"]

_HOURS_OF_A_MONTH = 730.0
_SETTINGS = {"order", "type", "limit", "allocated_storage", "disable_bundling"}  # of a search, and no fields

# id, number and kind of GPU, MB of each, place, cores (host, share), MB of the host, $/h, least bid, and what differs
_KINDS: list[tuple[int, int, str | None, int, str, int | None, float, int, float, float, dict[str, Any]]] = [
    (7001001, 1, "RTX 4090", 24564, "California, US", 64, 16.0, 257000, 0.39, 0.12, {}),
    (7001002, 1, "RTX 4090", 24564, "Quebec, CA", 32, 16.0, 128000, 0.42, 0.15, {"reliability": 0.97}),
    (7001003, 2, "RTX 4090", 24564, "Sweden, SE", 128, 64.0, 515000, 0.81, 0.30, {}),
    (7001004, 1, "RTX 3090", 24576, "Texas, US", 24, 12.0, 64000, 0.18, 0.08, {"cuda_max_good": 12.2}),
    (7001005, 4, "RTX 3090", 24576, "Bulgaria, BG", 48, 48.0, 257000, 0.76, 0.32, {"inet_down": 90.0}),
    (7001006, 1, "H100 SXM", 81559, "Iceland, IS", 224, 28.0, 2063000, 2.20, 1.10, {"datacenter": True}),
    (7001007, 2, "H100 SXM", 81559, "Iceland, IS", 224, 56.0, 2063000, 4.35, 2.20, {"datacenter": True}),
    (7001008, 8, "H100 SXM", 81559, "Virginia, US", 192, 192.0, 1548000, 17.10, 8.80, {"datacenter": True}),
    (7001009, 1, "A100 SXM4", 81920, "Japan, JP", None, 15.0, 503000, 0.95, 0.45, {"gpu_frac": 0.125}),
    (7001010, 1, "RTX 4090", 24564, "Germany, DE", 32, 8.0, 128000, 0.35, 0.11, {"direct_port_count": 0}),
    (7001011, 1, "RTX A4000", 16376, "Poland, PL", 16, 8.0, 64000, 0.09, 0.03, {"verification": "unverified"}),
    (7001012, 1, "RTX 5090", 32607, "Washington, US", 48, 24.0, 192000, 0.55, 0.25, {"verification": "deverified"}),
    (7002001, 0, None, 0, "Oregon, US", 32, 32.0, 128000, 0.05, 0.02, {}),
    (7002002, 0, None, 0, "Germany, DE", 64, 16.0, 257000, 0.04, 0.015, {}),
    (7002003, 0, None, 0, "France, FR", 128, 8.0, 515000, 0.02, 0.008, {"disk_space": 60.0}),
    (7002004, 0, None, 0, "Ontario, CA", 16, 4.0, 64000, 0.01, 0.004, {"direct_port_count": 0}),
]


def catalogue() -> list[dict[str, Any]]:
    """A market of GPUs and of plain CPUs, in several countries; some unverified, some without direct ports."""
    offers = []
    for n, (id, gpus, gpu, vram, place, cores, share, ram, price, bid, other) in enumerate(_KINDS):
        offer = {
            **_COMMON,
            "id": id,
            "machine_id": 40000 + n // 2,  # a machine may have several offers
            "host_id": 900 + n // 4,
            "num_gpus": gpus,
            "gpu_name": gpu,
            "gpu_ram": vram,
            "gpu_total_ram": vram * gpus,
            "gpu_frac": round(share / cores, 3) if cores else 1.0,
            "gpu_arch": "nvidia" if gpus else None,
            "compute_cap": 890 if gpus else None,
            "cuda_max_good": 12.8 if gpus else None,
            "driver_version": "570.86.15" if gpus else None,
            "resource_type": "gpu" if gpus else "cpu",
            "geolocation": place,
            "cpu_cores": cores,
            "cpu_cores_effective": share,
            "cpu_ram": ram,
            "dph_base": price,
            "min_bid": bid,
            "score": round(300.0 * (gpus or 0.1) / price, 1),
            "public_ipaddr": f"203.0.113.{n + 1}",
            **other,
        }
        offer["reliability2"] = offer["reliability"]
        offer["ask_contract_id"] = offer["id"]
        offers.append(offer)
    return offers


_COMMON: dict[str, Any] = {
    "bundle_id": 1,
    "bundled_results": None,
    "bw_nvlink": 0,
    "cluster_id": None,
    "cpu_arch": "amd64",
    "cpu_ghz": 3.5,
    "cpu_name": "AMD EPYC",
    "datacenter": False,
    "direct_port_count": 100,
    "disk_bw": 2000.0,
    "disk_name": "NVMe",
    "disk_space": 500.0,
    "dlperf": 100.0,
    "dlperf_per_dphtotal": 250.0,
    "duration": 864000.0,
    "end_date": 1893456000,
    "external": False,
    "flops_per_dphtotal": 200.0,
    "geolocode": 1,
    "gpu_display_active": False,
    "gpu_lanes": 16,
    "gpu_max_power": 450,
    "gpu_max_temp": 80,
    "gpu_mem_bw": 900.0,
    "has_avx": 1,
    "hosting_type": 0,
    "inet_down": 800.0,
    "inet_down_cost": 0.001,
    "inet_up": 700.0,
    "inet_up_cost": 0.001,
    "is_bid": False,
    "mobo_name": "X",
    "os_version": "22.04",
    "pci_gen": 4.0,
    "pcie_bw": 20.0,
    "reliability": 0.998,
    "rentable": True,
    "rented": False,
    "start_date": 1700000000.0,
    "static_ip": True,
    "storage_cost": 0.15,
    "total_flops": 80.0,
    "verification": "verified",
    "vms_enabled": False,
}


def priced(offer: Mapping[str, Any], storage: float) -> dict[str, Any]:
    """The offer as a search for so many GB shows it."""
    disk = offer["storage_cost"] * storage / _HOURS_OF_A_MONTH
    total = round(offer["dph_base"] + disk, 6)
    costs = {"gpuCostPerHour": offer["dph_base"], "diskHour": disk, "totalHour": total}
    return {**offer, "dph_total": total, "storage_total_cost": disk, "search": costs, "instance": costs}


def matches(row: Mapping[str, Any], query: Mapping[str, Any]) -> bool:
    """Whether a row meets all conditions ``{field: {operator: value}}``."""
    for field, conditions in query.items():
        if field in _SETTINGS or not isinstance(conditions, dict):
            continue
        value = _value(row, field)
        if not all(_holds(value, name, wanted) for name, wanted in conditions.items()):
            return False
    return True


def _value(row: Mapping[str, Any], field: str) -> Any:
    if field == "verified":
        return row["verification"] == "verified"
    if field == "geolocation":
        return row["geolocation"].rpartition(",")[2].strip()  # shown as "California, US", searched as "US"
    return row.get(field)


_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "neq": operator.ne,
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}


def _holds(value: Any, name: str, wanted: Any) -> bool:
    if name in {"in", "notin"}:
        return any(_holds(value, "eq", one) for one in wanted) is (name == "in")
    if isinstance(value, bool):
        wanted = str(wanted).lower() in {"true", "1"}
    elif isinstance(value, int | float):  # the vendor's client sends numbers as text
        wanted = float(wanted) if wanted is not None else math.nan
    elif value is None and name not in {"eq", "neq"}:
        return False
    return _COMPARE[name](value, wanted)


def ordered(rows: Sequence[dict[str, Any]], order: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Rows by ``[[field, "asc" | "desc"], …]``; those without a value come last."""
    result = list(rows)
    for field, direction in reversed(order):
        some = [row for row in result if row.get(field) is not None]
        none = [row for row in result if row.get(field) is None]
        result = [*sorted(some, key=operator.itemgetter(field), reverse=direction == "desc"), *none]
    return json.loads(json.dumps(result))
