"""What a provider bills for a machine."""

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


@pytest.mark.parametrize(
    ("billing", "price", "lived", "cost"),
    [
        (Billing(), 0.5, 1800.0, 0.25),
        (Billing(minimum=60.0, minimum_cost=0.01), 6.0, 30.0, 0.1),
        (Billing(minimum=60.0, minimum_cost=0.01), 0.006, 300.0, 0.01),
        (Billing(unit=3600.0, minimum_cost=0.01), 0.0, 300.0, 0.0),
    ],
)
def test_what_it_costs(billing: Billing, price: float, lived: float, cost: float) -> None:
    assert billing.cost(price, lived) == pytest.approx(cost)


def test_for_how_long_the_money_lasts() -> None:
    a_cent_at_least = Billing(minimum=60.0, minimum_cost=0.01)
    assert a_cent_at_least.affordable(0.006, 0.009) == 0.0
    assert a_cent_at_least.affordable(0.006, 0.01) == pytest.approx(6000.0)
    assert a_cent_at_least.affordable(6.0, 0.05) == 0.0  # half a minute
    assert a_cent_at_least.affordable(0.0, 0.0) == math.inf


@given(
    st.builds(
        Billing,
        st.sampled_from((0.0, 60.0, 600.0)),
        st.sampled_from((0.0, 1.0, 60.0, 3600.0)),
        st.sampled_from((0.0, 0.01, 1.0)),
    ),
    st.floats(1e-3, 1e3),
    st.floats(0, 1e5),
)
@examples(200)
def test_who_lives_as_long_as_is_affordable_costs_no_more(billing: Billing, price: float, dollars: float) -> None:
    lived = billing.affordable(price, dollars)
    assert 0 <= lived
    if lived:
        assert billing.cost(price, lived) <= dollars * (1 + 1e-4) + 1e-4
    else:
        assert dollars < billing.cost(price, 0.0) or dollars == 0
    again = billing.affordable(price, billing.cost(price, lived) * (1 + 1e-9))
    assert again >= lived * (1 - 1e-6) - 0.01
