"""What a pool may spend, and how long each machine may run for it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.core.billing import Billing
from skyward.core.machines.budget import MIN_SECONDS, Budget, Terms
from skyward.core.spec import Offer
from tests.examples import examples

SMALL = Offer("small", price=1.0)


def test_the_shares_are_equal_and_make_up_the_budget() -> None:
    """$10 for ten machines of $2/h: half an hour each."""
    terms = Budget(10.0).terms(Offer("m", price=2.0), 10, 10.0, 100.0)
    assert (terms.price, terms.began, terms.seconds, terms.share) == (2.0, 100.0, 1800.0, 1.0)


def test_a_machine_is_given_up_before_its_share_is_spent() -> None:
    """Half a minute, or a tenth of a short life: terminating takes a moment, during which it still costs."""
    assert Terms(1.0, 50.0, 3600.0).ends == 50 + 3600 - 30
    assert Terms(1.0, 50.0, 100.0).ends == 140.0
    free = Terms(0.0, 0.0, math.inf)
    assert (free.ends, free.share, free.cost(1e9), free.held(5.0)) == (math.inf, 0.0, 0.0, 0.0)


def test_what_ends_holds_only_what_it_has_cost_and_a_moment_more() -> None:
    terms = Terms(1.0, 0.0, 3600.0)
    assert terms.held() == 1.0
    assert terms.held(1800.0) == pytest.approx(1860 / 3600)
    assert terms.held(7200.0) == 1.0


def test_too_little_money_buys_fewer_machines_or_none() -> None:
    budget = Budget(1.0)
    least = MIN_SECONDS / 3600  # dollars for a machine of $1/h
    assert budget.pays_for(SMALL, 3, 3 * least) == 3
    assert budget.pays_for(SMALL, 3, 2.9 * least) == 2
    assert budget.pays_for(SMALL, 3, 0.9 * least) == 0
    assert budget.pays_for(Offer("m", price=0.0), 3, 0.0) == 3
    assert budget.pays_for(Offer("m", price=None), 3, 100.0) == 0


def test_where_each_hour_that_has_begun_is_billed_only_whole_hours_are_bought() -> None:
    """$10 for two machines of $1/h: five hours each; for three, three hours, and a dollar is left."""
    budget, offer = Budget(10.0), Offer("m", price=1.0, billing=Billing(unit=3600.0))
    assert budget.pays_for(offer, 20, 10.0) == 10
    assert budget.terms(offer, 2, 10.0, 0.0).seconds == 5 * 3600.0
    terms = budget.terms(offer, 3, 10.0, 0.0)
    assert (terms.seconds, terms.share, terms.cost(3601.0), terms.held(10.0)) == (3 * 3600.0, 3.0, 2.0, 1.0)
    assert budget.why_not(offer, 1, 0.5) == (
        "$0.5 of budget=$10 is left, which does not pay for a machine at $1/h for 60 minutes"
    )


def test_a_least_cost_is_part_of_each_share() -> None:
    """Five minutes of a machine of $0.006/h cost a cent where that is the least: a budget of two buys two."""
    budget, offer = Budget(0.025), Offer("m", price=0.006, billing=Billing(60.0, minimum_cost=0.01))
    assert budget.pays_for(offer, 3, 0.025) == 2
    terms = budget.terms(offer, 2, 0.025, 0.0)
    assert (terms.seconds, terms.share, terms.cost(1.0)) == (pytest.approx(7500.0), pytest.approx(0.0125), 0.01)
    assert terms.held(10.0) == 0.01
    assert budget.why_not(offer, 1, 0.005) == (
        "$0.005 of budget=$0.025 is left, which does not pay for a machine at $0.006/h for 5 minutes "
        "(minimum charge $0.01)"
    )


def test_why_not_says_what_is_left_and_what_it_would_take() -> None:
    assert Budget(0.5).why_not(SMALL, 10, 0.5) == (
        "budget=$0.5, which does not pay for 10 machines at $1/h for 5 minutes each"
    )
    assert Budget(3.0).why_not(SMALL, 1, 0.02) == (
        "$0.02 of budget=$3 is left, which does not pay for a machine at $1/h for 5 minutes"
    )


@given(
    amount=st.floats(0.01, 1e4),
    lives=st.lists(st.tuples(st.floats(0.001, 50.0), st.integers(1, 20), st.floats(0.0, 1.0)), max_size=10),
    billing=st.sampled_from(
        (Billing(), Billing(minimum=60.0), Billing(unit=3600.0), Billing(3600.0, 60.0), Billing(minimum_cost=0.01))
    ),
)
@examples(200)
def test_whatever_is_bought_in_turn_the_budget_holds(
    amount: float, lives: list[tuple[float, int, float]], billing: Billing
) -> None:
    """Each group is bought with what is free, and lives for a part of its time before the next one is bought."""
    budget, now, cost = Budget(amount), 0.0, 0.0
    for price, missing, part in lives:
        offer = Offer("m", price=price, billing=billing)
        free = budget.free([])
        count = budget.pays_for(offer, missing, free)
        if not count:
            continue
        terms = budget.terms(offer, count, free, now)
        assert terms.seconds >= MIN_SECONDS * 0.999
        left = budget.free([terms.held()] * count)
        assert left < count * price * billing.unit / 3600 or left == pytest.approx(0.0, abs=1e-6 * amount)
        now += part * terms.seconds
        budget.spent += count * terms.cost(now)
        cost += count * terms.cost(now)
    assert cost <= amount * 1.000001
