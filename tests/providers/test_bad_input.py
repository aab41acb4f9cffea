"""What is requested and not available: one clear error at once, and nothing bought. For every cloud, without hosts."""

from __future__ import annotations

import math

import pytest

import skyward as sky
from tests.providers.rentals import RENTALS, Rental

pytestmark = pytest.mark.slow  # clouds take seconds to start


@pytest.fixture(params=RENTALS, ids=lambda rental: rental.name)
def rental(request) -> Rental:
    return request.param


@pytest.fixture
def cloud(rental, tmp_path, monkeypatch):
    monkeypatch.setenv("SKYWARD_STATE", str(tmp_path / "state"))
    with rental.cloud(None) as running:
        yield running
        assert running.meter.ever("instance") == []
        assert running.meter.live == []


def refused(rental, cloud, error, match, **wanted):
    with (
        pytest.raises(error, match=match),
        sky.Compute(provider=rental.provider(cloud), console=False, **wanted),
    ):
        pytest.fail("the block began")


def test_a_machine_type_that_is_not_there(rental, cloud):
    words = r"no offer has machine='m9z\.nothing'; the closest names are '"
    refused(rental, cloud, sky.NoOffer, words, machine="m9z.nothing")


@pytest.mark.slow
def test_an_accelerator_that_nobody_offers(rental, cloud):
    words = r"no offer has accelerator='Z9000'(; the closest are|, or any other accelerator)"
    refused(rental, cloud, sky.NoOffer, words, accelerator="Z9000")


def test_a_price_below_all(rental, cloud):
    refused(rental, cloud, sky.NoOffer, r"\(max_price=1e-06\); the cheapest is .*\$", max_price=1e-6)


def test_more_than_any_machine_has(rental, cloud):
    refused(rental, cloud, sky.NoOffer, r"the largest have \d+ vCPUs", vcpus=100_000)


@pytest.mark.slow
def test_spot_where_there_is_none(rental, cloud):
    if rental.evict:
        cloud.faults.on("no_capacity", math.inf)
        refused(rental, cloud, sky.ProvisioningError, None, allocation="always-spot")
    else:
        refused(rental, cloud, sky.NoOffer, "is a spot machine", allocation="always-spot")


@pytest.mark.slow
def test_a_quota_of_nothing(rental, cloud):
    cloud.faults.on("quota", math.inf)
    refused(rental, cloud, sky.QuotaExceeded, None)


def test_wrong_credentials(rental, cloud):
    cloud.faults.on("bad_credentials", math.inf)
    refused(rental, cloud, sky.AuthFailed, rental.name)


@pytest.mark.slow
def test_a_proxy_that_answers_in_html(rental, cloud):
    cloud.faults.on("html", math.inf)
    refused(rental, cloud, sky.CloudError, rental.name)


@pytest.mark.slow
def test_the_next_provider_of_a_list_is_asked(rental, cloud, caplog):
    """And it is said in one line what the first one refused."""
    cloud.faults.on("bad_credentials", math.inf)
    providers = [rental.provider(cloud), sky.Local()]
    with sky.Compute(provider=providers, console=False) as pool:
        assert pool.submit(abs, -1).result(30) == 1
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith(rental.name)]
    assert "\n" not in line


@pytest.mark.parametrize("wanted", [{"max_price": -1}, {"max_price": "cheap"}, {"accelerator": "A100:none"}])
def test_values_that_make_no_sense(rental, cloud, wanted):
    refused(rental, cloud, sky.ConfigError, next(iter(wanted)), **wanted)
