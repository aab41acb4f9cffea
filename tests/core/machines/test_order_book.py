"""Which offer is ordered next; that refusals reach no further than they say is shown in test_fleet.py."""

from __future__ import annotations

import math

import pytest

from skyward.core.errors import AuthFailed, NoCapacity, QuotaExceeded
from skyward.core.machines.fleet_events import Candidate, Create, Source
from skyward.core.machines.fleet_state import SourceState
from skyward.core.machines.order_book import NO_CAPACITY_REST, OrderBook, is_spot
from skyward.core.spec import Machine, Offer

SMALL, LARGE = Candidate(0, Offer("small", price=1.0)), Candidate(0, Offer("large", price=2.0))
OTHER, SPOT = Candidate(1, Offer("small", price=3.0)), Candidate(0, Offer("small", price=0.3, spot=True))


@pytest.fixture
def states() -> list[SourceState]:
    return [SourceState(number, Source(f"cloud-{number}", rented=True)) for number in range(2)]


def test_orders_are_numbered_and_counted_until_they_are_answered() -> None:
    book = OrderBook([SMALL, OTHER], "sky-1")
    assert book.place(0, 2) == Create("sky-1-1", SMALL, 2)
    assert book.place(1, 1) == Create("sky-1-2", OTHER, 1)
    assert (book.count, book.out_at(0), book.out_at(1)) == (3, 1, 1)
    assert book.made("sky-1-1", [Machine("m", None, "m")], 0.0) is SMALL
    assert book.refused("sky-1-2", NoCapacity("none")) == (1, 1)
    assert (book.count, book.placed) == (0, {"sky-1-1": 0, "sky-1-2": 1})


def test_an_offer_rests_after_a_refusal_and_wakes_when_it_is_tried(states: list[SourceState]) -> None:
    book = OrderBook([SMALL, LARGE], "sky-1")
    book.place(0, 1)
    number, _ = book.refused("sky-1-1", error := NoCapacity("none"))
    book.rest(number, error, 1, 100.0)
    assert book.choice(states, 100.0) == 1
    assert book.choice(states, 100.0 + NO_CAPACITY_REST) == 0
    assert list(book.due_times) == [100.0 + NO_CAPACITY_REST]
    assert book.wake(0) is SMALL
    assert list(book.due_times) == []


def test_an_answer_without_machines_is_a_want_of_capacity(states: list[SourceState]) -> None:
    book = OrderBook([SMALL], "sky-1")
    book.place(0, 1)
    book.made("sky-1-1", [], 5.0)
    assert book.choice(states, 5.0) is None
    assert book.choice(states, -math.inf) is None, "it rests"


def test_after_many_refusals_of_spot_machines_all_of_them_rest(states: list[SourceState]) -> None:
    book = OrderBook([SPOT, Candidate(0, Offer("large", spot=True)), SMALL], "sky-1")
    book.rest(0, NoCapacity("none"), 19, 0.0)
    assert book.choice(states, 0.0) == 1
    book.rest(0, NoCapacity("none"), 20, 0.0)
    assert book.choice(states, 0.0) == 2
    assert [is_spot(candidate) for candidate in book.candidates] == [True, True, False]


def test_a_refused_account_leaves_other_sources_alone(states: list[SourceState]) -> None:
    book = OrderBook([SMALL, LARGE, OTHER], "sky-1")
    book.rest(0, AuthFailed("no"), 1, 0.0)
    assert book.choice(states, 0.0) == 2


def test_a_source_that_cant_list_its_machines_gets_no_order(states: list[SourceState]) -> None:
    states[0].blind = True
    assert OrderBook([SMALL, OTHER], "sky-1").choice(states, 0.0) == 1


def test_refusals_are_forgotten_once_a_later_order_brings_machines() -> None:
    book = OrderBook([SMALL, LARGE], "sky-1")
    book.place(0, 1)
    book.refused("sky-1-1", QuotaExceeded("old"))
    book.place(1, 1)
    book.note(NoCapacity("new"))
    book.made("sky-1-2", [Machine("m", None, "m")], 0.0)
    assert [str(error) for error in book.refusals] == ["new"]


def test_a_machine_belongs_to_the_source_that_ordered_it() -> None:
    """Though another one of the same account shows it too; and while its order is out, the reply will tell."""
    book = OrderBook([SMALL, OTHER], "sky-1")
    book.place(1, 1)
    machine = Machine("m", None, "m", order="sky-1-1")
    assert not book.belongs_to(machine, 0)
    assert not book.belongs_to(machine, 1), "its order is out"
    book.made("sky-1-1", [machine], 0.0)
    assert (book.belongs_to(machine, 0), book.belongs_to(machine, 1)) == (False, True)
    assert book.belongs_to(Machine("x", None, "x", order="unknown"), 0), "the first source that shows it"


def test_what_no_later_machine_makes_up_for_is_remembered() -> None:
    book = OrderBook([SMALL], "sky-1")
    book.note(NoCapacity("once"))
    book.note(lasting := NoCapacity("for good"), lasting=True)
    book.place(0, 1)
    book.made("sky-1-1", [Machine("m", None, "m")], 0.0)
    assert book.refusals == [lasting]
