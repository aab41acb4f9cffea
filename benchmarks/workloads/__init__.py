"""What is measured, in the order of the tables."""

from __future__ import annotations

from benchmarks.model import Workload
from benchmarks.workloads import alone, arrays, faults, fits, small, waiting

__all__ = ["WORKLOADS"]

WORKLOADS: dict[str, Workload] = {
    workload.name: workload for module in (small, waiting, arrays, fits, faults, alone) for workload in module.WORKLOADS
}
