"""For how long a provider bills a machine."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.core.billing import Billing
from tests.examples import examples


@pytest.mark.parametrize(
    ("billing", "lived", "billed"),
    [
        (Billing(), 12.5, 12.5),
        (Billing(), -1.0, 0.0),
        (Billing(minimum=60.0), 12.5, 60.0),
        (Billing(minimum=60.0), 61.5, 61.5),
        (Billing(unit=3600.0), 0.0, 3600.0),
        (Billing(unit=3600.0), 3600.0, 3600.0),
        (Billing(unit=3600.0), 3601.0, 7200.0),
        (Billing(minimum=90.0, unit=60.0), 1.0, 120.0),
        (Billing(unit=3600.0), math.inf, math.inf),
    ],
)
def test_what_is_billed(billing: Billing, lived: float, billed: float) -> None:
    assert billing.seconds(lived) == billed


@given(
    st.builds(Billing, st.sampled_from((0.0, 60.0, 600.0)), st.sampled_from((0.0, 1.0, 60.0, 3600.0))),
    st.floats(0, 1e7),
)
@examples(200)
def test_who_lives_within_what_is_paid_is_billed_no_more(billing: Billing, paid: float) -> None:
    lived = billing.within(paid)
    assert 0 <= lived <= paid + 0.01
    if lived:
        assert billing.seconds(lived) <= paid + 0.01
    else:
        assert paid < billing.seconds(0.0) or paid == 0
    assert billing.within(billing.seconds(lived)) >= lived - 0.01
