"""The clouds that are rented from, each with its fake in the lab: what the tests for all of them need."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
from skyward_hetzner import Hetzner

import skyward as sky
from tests.lab import Lab
from tests.lab.clouds import Cloud, Machines
from tests.lab.clouds.digitalocean import DigitalOcean
from tests.lab.clouds.ec2 import EC2
from tests.lab.clouds.hetzner import Hetzner as HetznerCloud
from tests.lab.clouds.vastai import VastAI
from tests.lab.clouds.verda import Verda

__all__ = ["RENTALS", "Rental", "on", "on_some"]


@dataclass(frozen=True)
class Rental:
    """A cloud of the lab, and how its provider is made."""

    name: str
    make_cloud: Callable[[Machines], Cloud]
    make_provider: Callable[[Any], Any]
    evict: Callable[[Any, str], None] | None = None
    """Takes a spot machine back, by its id on the cloud's meter."""
    ends_itself: bool = False
    """Whether a machine can end itself when its owner is gone."""

    def cloud(self, lab: Lab | None) -> Cloud:
        """A new one, with hosts if there is a lab."""
        return self.make_cloud(Machines(lab))

    def provider(self, cloud: Cloud, **attributes: Any) -> Any:
        """A provider that uses the cloud; attributes of its class may be given, such as `patience`."""
        made = self.make_provider(cloud)
        kind = type(made)
        quick = type(kind.__name__, (kind,), {"poll": 0.2, "listing_delay": 2.0, "retry_for": 4.0, **attributes})
        object.__setattr__(made, "__class__", quick)
        return made


RENTALS = [
    Rental("hetzner", HetznerCloud, lambda cloud: Hetzner(token=cloud.token, url=cloud.api)),
    Rental(
        "libcloud:digitalocean", DigitalOcean, lambda cloud: sky.Libcloud("digitalocean", cloud.token, url=cloud.url)
    ),
    Rental(
        "aws",
        EC2,
        lambda cloud: sky.AWS(
            region="us-east-1",
            access_key=cloud.access_key,
            secret_key=cloud.secret_key,
            url=cloud.url,
            ssh_from="10.77.0.0/16",
        ),
        evict=lambda cloud, which: cloud.evict(which, notice=0.0),
        ends_itself=True,
    ),
    Rental(
        "vastai",
        VastAI,
        lambda cloud: sky.VastAI(api_key=cloud.key, url=cloud.url, pace=0.0),
        evict=lambda cloud, which: cloud.outbid(which),
        ends_itself=True,
    ),
    Rental(
        "verda",
        Verda,
        lambda cloud: sky.Verda(client_id=cloud.client_id, client_secret=cloud.client_secret, url=cloud.base_url),
        evict=lambda cloud, which: cloud.evict(which),
    ),
]

_ALL = "SKYWARD_ALL_CLOUDS" in os.environ  # else each test sees some, for there are hundreds and each takes seconds


def on(*names: str) -> pytest.MarkDecorator:
    """Run a test that has a fixture ``rental`` on these clouds only: those among which differs what it tests."""
    some = [rental for rental in RENTALS if _ALL or rental.name in names]
    return pytest.mark.parametrize("rental", some, indirect=True, ids=lambda rental: rental.name)


def on_some(name: str, cases: Iterable[Any]) -> pytest.MarkDecorator:
    """Run each case of a test on two clouds, which take turns, so that each cloud meets as many."""
    count = len(RENTALS)
    pairs = [
        pytest.param(rental, case, id=f"{rental.name}-{case}")
        for number, case in enumerate(cases)
        for place, rental in enumerate(RENTALS)
        if _ALL or (place - number) % count in (0, 2)
    ]
    return pytest.mark.parametrize(("rental", name), pairs, indirect=["rental"])
