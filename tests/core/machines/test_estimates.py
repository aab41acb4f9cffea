"""What machines are expected to cost is kept for the pool that rents them."""

from __future__ import annotations

from skyward.core.machines import estimates
from skyward.core.machines.estimates import Rented, estimated, keep

SMALL, LARGE = Rented("test", "small", False), Rented("test", "large", False)


def test_the_latest_estimate_of_as_many_machines_of_the_kind_is_found() -> None:
    keep(SMALL, 4, 0.5)
    keep(SMALL, 4, 0.4)
    assert estimated([SMALL] * 5, 4) == 0.4, "one of them is a replacement"
    assert estimated([SMALL], 1) is None
    assert estimated([SMALL, LARGE], 4) is None
    assert estimated([], 4) is None


def test_what_is_kept_is_bounded() -> None:
    for number in range(2000):
        keep(Rented("test", f"m{number}", False), 1, 1.0)
    assert len(estimates._kept) <= 1000
    assert estimated([Rented("test", "m1999", False)], 1) == 1.0
    assert estimated([Rented("test", "m0", False)], 1) is None
