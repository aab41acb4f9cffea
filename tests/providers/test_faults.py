"""What can go wrong at a cloud: the right result or the documented error, and nothing left."""

from __future__ import annotations

import functools
import math
import os

import pytest

import skyward as sky
from skyward.core.machines import fleet
from tests.providers.rentals import RENTALS, Rental, on_some
from tests.remote import *  # noqa: F403  fixtures

pytestmark = [pytest.mark.clouds, pytest.mark.lab, pytest.mark.slow]

WORKS: dict[str, dict] = {
    "throttle": {"times": 2},
    "server_error": {"times": 2},
    "html": {"times": 2},
    "slow_boot": {"seconds": 1.0},
    "eventual": {"seconds": 1.0, "times": math.inf},
    "lost_reply": {},
    "token_expired": {"later": True},
    "no_capacity": {},
    "never_boots": {"seconds": 5.0},  # until the vendor itself gives up, and lets it be deleted
    "never_answers": {},
    "wrong_host_key": {},
    "fails_to_start": {},
}
"""Faults that happen once or twice: another machine, or another try, makes up for them."""

FAILS: dict[str, type[sky.SkywardError] | tuple[type[sky.SkywardError], ...]] = {
    "no_capacity": (sky.NoCapacity, sky.ProvisioningError),
    "quota": (sky.QuotaExceeded, sky.ProvisioningError),
    "bad_credentials": sky.AuthFailed,
    "html": sky.CloudError,
    "server_error": sky.CloudError,
    "throttle": sky.RateLimited,
    "wrong_host_key": (sky.HostKeyError, sky.ProvisioningError),
    "never_answers": (sky.HostUnreachable, sky.ProvisioningError),
}
"""Faults that stay."""


@pytest.fixture(autouse=True)
def _state(tmp_path, monkeypatch):
    monkeypatch.setenv("SKYWARD_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(fleet, "_PAUSE", 0.1)


@pytest.fixture(params=RENTALS, ids=lambda rental: rental.name)
def rental(request) -> Rental:
    return request.param


def run(provider, index, meanwhile=lambda: None) -> None:
    with sky.Compute(provider=provider, image=sky.Image(index=index), console=False) as pool:
        meanwhile()
        assert pool.submit(abs, -1).result(60) == 1


@on_some("fault", WORKS)
def test_a_fault_that_passes(rental, lab, index, fault):
    with rental.cloud(lab) as cloud:
        details = dict(WORKS[fault])
        later = details.pop("later", False)
        switch_on = functools.partial(cloud.faults.on, fault, details.pop("times", 1), **details)
        if not later:
            switch_on()
        # Where it must run out, as long as a host takes here to answer: the more so the busier the machine is.
        runs_out = fault in ("never_boots", "never_answers", "wrong_host_key")
        patience = 12.0 * max(1.0, os.getloadavg()[0] / 4) if runs_out else 120.0
        run(rental.provider(cloud, patience=patience, retry_for=15.0), index, *[switch_on] * later)
        assert cloud.meter.live == []


@on_some("fault", FAILS)
def test_a_fault_that_stays(rental, lab, index, fault):
    with rental.cloud(lab) as cloud:
        provider = rental.provider(cloud, patience=6.0)
        cloud.faults.on(fault, math.inf)
        with pytest.raises(FAILS[fault]):
            run(provider, index)
        cloud.faults.clear()
        assert cloud.meter.live == []
