"""Money: what a pool may spend is not exceeded, whatever dies. For every cloud, by the cloud's own meter."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

import skyward as sky
from skyward.core.machines import budget
from skyward.core.machines.offer_selection import select
from skyward.core.resume.listing import overview
from skyward.core.spec import Resources
from tests.lab.wait import eventually
from tests.providers.rentals import RENTALS, Rental
from tests.providers.test_deaths import children, driver, no_reaper, says
from tests.remote import *  # noqa: F403  fixtures

__all__ = ["driver"]  # a fixture

pytestmark = [pytest.mark.clouds, pytest.mark.lab, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _state(tmp_path, monkeypatch):
    monkeypatch.setenv("SKYWARD_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(budget, "MIN_SECONDS", 1.0)


@pytest.fixture(params=RENTALS, ids=lambda rental: rental.name)
def rental(request) -> Rental:
    return request.param


def dollars(provider, nodes: int, seconds: float) -> tuple[float, float]:
    """What so many of the machines that a pool would rent cost for so many seconds, and how many that are.

    They are more when this machine is busy, or where the cloud bills more.
    """
    offer, *_ = select(provider.offers(Resources()), Resources(vcpus=1, memory="2GiB"), "on-demand")
    billed = offer.billing.seconds(seconds * max(1.0, os.getloadavg()[0] / 4))
    return nodes * offer.price * billed / 3600, billed


def test_the_tasks_that_are_left_are_told_and_the_bill_is_in_time(rental, lab, index, tmp_path):
    """And what was computed for the money is there in the next run, wherever that is."""
    if rental.name not in ("aws", "verda"):
        pytest.skip("what differs among clouds is how machines end, which the other tests see")
    with rental.cloud(lab) as cloud:
        provider = rental.provider(cloud)
        amount, _ = dollars(provider, 2, 25.0)
        with sky.Compute(
            provider,
            nodes=2,
            budget=amount,
            allocation="on-demand",
            image=sky.Image(index=index, sync="none"),
            resume=str(tmp_path / "search.run"),
            console=False,
        ) as pool:
            futures = [pool.submit(time.sleep, 0.5) for _ in range(2000)]
            with pytest.raises(
                sky.BudgetExceeded, match=r"is spent: the machines have cost about \$.*had ended by then"
            ):
                futures[-1].result(120)
            assert futures[0].result() is None
            with pytest.raises(sky.BudgetExceeded):
                pool.submit(abs, -1).result(30)
        assert cloud.meter.live == []
        assert 0.5 * amount < cloud.meter.cost_of("instance") <= amount
    paid = [future.exception() is None for future in futures].index(False)
    with sky.Compute(concurrency=1, resume=str(tmp_path / "search.run"), console=False) as pool:
        for future in [pool.submit(time.sleep, 0.5) for _ in range(paid)]:
            future.result()
    assert overview(str(tmp_path / "search.run")).runs[0].taken == paid > 0


def test_more_than_it_pays_for_is_not_begun(rental, lab, index):
    with rental.cloud(lab) as cloud:
        provider = rental.provider(cloud)
        amount = dollars(provider, 1, 0.1)[0] / max(1.0, os.getloadavg()[0] / 4)
        with (
            pytest.raises(sky.BudgetExceeded, match="does not pay for 2 machines"),
            sky.Compute(provider, nodes=2, budget=amount, allocation="on-demand", console=False),
        ):
            pytest.fail("the block began")
        assert cloud.meter.ever("instance") == []


def test_a_machine_ends_itself_when_its_share_is_spent_and_nobody_is_left(rental, lab, driver):
    """Driver and reaper are killed, and nobody else would end it for an hour."""
    if not rental.ends_itself:
        pytest.skip(f"a machine of {rental.name} has no right to end itself")
    with rental.cloud(lab) as cloud:
        provider = rental.provider(cloud)
        amount, seconds = dollars(provider, 2, 40.0)
        process = driver(provider, orphan_timeout=3600.0, budget=amount, allocation="on-demand")
        says(process, "ready")
        with no_reaper(process):
            process.kill()
            process.wait(30)
        limit = 2 * seconds + 30.0
        eventually(lambda: not {"instance", "volume"} & {kind for kind, _ in cloud.meter.live}, limit, "no instance")
        late = 2 * 25.0  # seconds of both: the watchdog looks every 15, and a busy machine takes some to end
        assert cloud.meter.cost_of("instance") <= amount * (1 + late / (2 * seconds))


@pytest.mark.skipif("SKYWARD_KILLS" not in os.environ, reason="takes minutes; SKYWARD_KILLS=6 runs it at six moments")
@pytest.mark.parametrize("moment", range(int(os.environ.get("SKYWARD_KILLS", "1"))))
def test_the_bill_is_within_the_budget_whenever_all_are_killed(rental, lab, driver, moment):
    """Driver and reaper are killed while machines are ordered, prepared or used."""
    if not rental.ends_itself:
        pytest.skip(f"a machine of {rental.name} has no right to end itself")
    with rental.cloud(lab) as cloud:
        provider = rental.provider(cloud)
        amount, seconds = dollars(provider, 2, 40.0)
        wait = random.uniform(0.0, 40.0)
        process = driver(provider, orphan_timeout=3600.0, budget=amount, allocation="on-demand")
        reaper = eventually(lambda: children(process.pid, "skyward.core.machines.reaper"), 60.0)[0]
        time.sleep(wait)
        bought = len(cloud.meter.ever("instance"))
        for pid in (reaper, process.pid):
            os.kill(pid, signal.SIGSTOP)
        for pid in (reaper, process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait(30)
        print(f"killed {wait:.1f} s after the reaper had started, with {bought} machines ordered")
        limit = 2 * seconds + 60.0  # an order that was under way may still arrive
        eventually(lambda: not {"instance", "volume"} & {kind for kind, _ in cloud.meter.live}, limit, "no instance")
        late = 2 * 25.0  # seconds of both: the watchdog looks every 15, and a busy machine takes some to end
        assert cloud.meter.cost_of("instance") <= amount * (1 + late / (2 * seconds))
