"""How far refusals reach; what a fleet makes of it is in test_fleet.py."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.core.errors import AuthFailed, CloudError, NoCapacity, ProvisioningError, QuotaExceeded
from skyward.core.machines.refusals import Denials, reaches
from skyward.core.scope import Scope
from skyward.core.spec import Offer

OFFERS = [
    Offer(machine, vcpus=vcpus, spot=spot, region=f"{region}{zone}", zone_of=region)
    for (machine, vcpus), spot, region, zone in itertools.product(
        [("small", 2), ("large", 8)], [True, False], ["east", "west"], "ab"
    )
]
SCOPES = st.sets(st.sampled_from(list(Scope))).map(lambda bits: Scope(sum(bit.value for bit in bits)))


@given(st.sampled_from(OFFERS), st.sampled_from(OFFERS), SCOPES, SCOPES)
def test_a_wider_scope_reaches_all_that_a_narrower_one_does(refused, other, one, more) -> None:
    narrow, wide = ProvisioningError("no", scope=one | more), ProvisioningError("no", scope=one)
    assert reaches(narrow, refused, refused)
    assert reaches(ProvisioningError("no", scope=Scope.ACCOUNT), refused, other)
    if reaches(narrow, refused, other):
        assert reaches(wide, refused, other)


def test_what_a_region_does_not_let_have_others_may() -> None:
    small = OFFERS[0]
    reached = [offer for offer in OFFERS if reaches(QuotaExceeded("0 of 0"), small, offer)]
    assert {(offer.spot, offer.zone_of) for offer in reached} == {(small.spot, small.zone_of)}
    assert {offer.machine for offer in reached} == {"small", "large"}, "what small is too much for, large is too"
    large = next(offer for offer in OFFERS if offer.machine == "large")
    assert not reaches(QuotaExceeded("4 of 4"), large, small)


@pytest.mark.parametrize(
    ("error", "account"), [(AuthFailed("no"), True), (CloudError("x"), True), (NoCapacity("none"), False)]
)
def test_without_a_scope_it_follows_from_the_type(error, account) -> None:
    assert reaches(error, OFFERS[0], OFFERS[-1]) is account
    assert reaches(error, None, None) is account


def test_a_place_where_nothing_is_left_is_no_denial() -> None:
    denials = Denials()
    for error in (NoCapacity("none"), QuotaExceeded("0"), CloudError("x"), AuthFailed("no", scope=Scope.SPOT)):
        denials.add(error, OFFERS[0])
    assert not denials
    denials.add(AuthFailed("no", scope=Scope.OFFER), OFFERS[0])
    assert denials
    same, other = denials.rank(OFFERS[0]), denials.rank(OFFERS[-1])
    assert other < same
