"""What a fleet may spend holds, in whatever order its machines come, end and are replaced."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.core.billing import BY_THE_SECOND, Billing
from skyward.core.errors import BudgetExceeded, CloudError, NoCapacity
from skyward.core.machines import fleet_events as f
from skyward.core.machines.budget import Budget
from skyward.core.machines.fleet import Fleet
from skyward.core.spec import MachineState, Offer
from tests.core.machines.test_fleet import RENTED, SMALL, machine, of
from tests.examples import examples

BILLINGS = st.sampled_from(
    (BY_THE_SECOND, Billing(minimum=60.0), Billing(unit=3600.0), Billing(60.0, minimum_cost=0.01))
)


def paid_fleet(amount, wanted=1, least=1, offers=((0, SMALL),), sources=(RENTED,)):
    candidates = [f.Candidate(source, offer) for source, offer in offers]
    return Fleet(sources, candidates, wanted, "sky-1", Budget(amount, least))


def serve(it, order, names, now):
    """Let an order bring machines with addresses, which serve from then on."""
    return it.handle(f.Made(order, [machine(name, order=order) for name in names]), now)


def test_a_machine_may_run_for_its_share_of_the_budget_and_is_given_up_in_time() -> None:
    """$1 for two machines of $1/h: half an hour each."""
    it = paid_fleet(1.0, 2, sources=(f.Source("cloud", rented=True),))
    assert it.handle(f.Tick(), 0.0) == [f.Create("sky-1-1", f.Candidate(0, SMALL), 2, 1800.0)]
    serve(it, "sky-1-1", "ab", 5.0)
    assert of(it.handle(f.Tick(), 1769.0), f.Abandon) == []
    assert it.next_tick(1769.0) is not None
    commands = it.handle(f.Tick(), 1770.0)
    assert [type(command) for command in commands[:3]] == [f.Exhausted, f.Abandon, f.Abandon]
    assert commands[0].reason == "budget=$1 is spent: the machines have cost about $0.9833"
    it.handle(f.Lost(0, "a"), 1771.0)
    it.handle(f.Lost(0, "b"), 1771.0)
    assert of(it.handle(f.Tick(), 1900.0), f.Create) == []
    assert it.settled
    assert not it.count


def test_one_that_is_lost_is_replaced_for_what_it_did_not_use() -> None:
    it = paid_fleet(1.0)
    it.handle(f.Tick(), 0.0)
    serve(it, "sky-1-1", "a", 1.0)
    assert of(it.handle(f.Lost(0, "a"), 1800.0), f.Create) == []  # its share is held until it is surely terminated
    (create,) = of(it.handle(f.Destroyed(0, ["a"]), 1801.0), f.Create)
    assert create.seconds == pytest.approx(3600 - 1861)  # the one that ends may cost for a minute
    it.handle(f.Refused("sky-1-2", NoCapacity("none left")), 1811.0)
    for now in (1811.5, 1813.0, 1815.0):
        it.handle(f.Seen(0, []), now)
        it.handle(f.Tick(), now + 1)
    (create,) = of(it.handle(f.Tick(), 1900.0), f.Create)
    assert create.seconds == pytest.approx(3600 - 1801)  # it cost nothing after it was terminated


def test_nothing_is_bought_that_the_budget_does_not_pay_for() -> None:
    it = paid_fleet(0.01)
    told, exhausted = it.handle(f.Tick(), 0.0)
    reason = "budget=$0.01, which does not pay for a machine at $1/h for 5 minutes"
    assert (told, exhausted) == (f.Report(reason, warning=True), f.Exhausted(reason))
    assert it.settled
    assert [(type(error), str(error)) for error in it.refusals] == [(BudgetExceeded, reason)]


def test_fewer_machines_are_bought_only_if_the_pool_can_start_with_them() -> None:
    batch = (f.Source("cloud", rented=True),)
    it = paid_fleet(0.2, 4, least=2, sources=batch)
    _, create = it.handle(f.Tick(), 0.0)
    assert create == f.Create("sky-1-1", f.Candidate(0, SMALL), 2, pytest.approx(360.0))
    it = paid_fleet(0.2, 4, least=3, sources=batch)
    assert of(it.handle(f.Tick(), 0.0), f.Create) == []


def test_what_others_leave_is_used_before_the_tasks_are_told() -> None:
    """Two of four machines could not be had: when the others end, there is money for two more."""
    it = paid_fleet(1.0, 4, sources=(f.Source("cloud", rented=True),))
    it.handle(f.Tick(), 0.0)
    (create,) = of(serve(it, "sky-1-1", "ab", 1.0), f.Create)
    assert (create.count, create.seconds) == (2, pytest.approx(900.0))
    it.handle(f.Refused("sky-1-2", NoCapacity("none left")), 2.0)
    commands = it.handle(f.Tick(), 870.0)
    assert of(commands, f.Exhausted) == []
    assert len(of(commands, f.Abandon)) == 2
    (create,) = of(commands, f.Create)
    assert (create.count, create.seconds) == (2, pytest.approx(900.0))


def test_hours_in_which_the_clock_stood_still_count() -> None:
    """A laptop that slept: its machines did not."""
    it = paid_fleet(1.0)
    it.handle(f.Tick(), 0.0)
    serve(it, "sky-1-1", "a", 1.0)
    it.purse.slept = 3000.0
    assert of(it.handle(f.Tick(), 500.0), f.Abandon) == []
    assert of(it.handle(f.Tick(), 571.0), f.Abandon)


def test_what_the_budget_pays_for_is_used_before_less_is_wanted() -> None:
    """Hosts that cost nothing, a cheaper offer at the next provider, or one that only rests."""
    dear, cheap = Offer("dear", price=3.0), Offer("cheap", price=0.1)
    hosts = f.Source("hosts")
    it = paid_fleet(0.1, offers=((0, dear), (1, None)), sources=(RENTED, hosts))
    assert it.handle(f.Tick(), 0.0) == [f.Create("sky-1-1", f.Candidate(1, None), 1)]
    it = paid_fleet(0.1, offers=((0, dear), (1, cheap)), sources=(RENTED, RENTED))
    (create,) = it.handle(f.Tick(), 0.0)
    assert create.candidate == f.Candidate(1, cheap)
    it = paid_fleet(0.1, offers=((0, cheap), (0, dear)))
    it.handle(f.Tick(), 0.0)
    commands = it.handle(f.Refused("sky-1-1", NoCapacity("none left")), 1.0)
    assert of(commands, f.Exhausted) == of(commands, f.Create) == []
    assert it.settled
    assert of(it.handle(f.Tick(), 62.0), f.Create)


def test_a_pool_that_has_too_few_does_not_wait_for_what_would_pay_for_all() -> None:
    """The cheap machines are sold out, or a host is in use: a dear one is better than a pool that can't start."""
    cheap, dear = Offer("cheap", price=0.1), Offer("dear", price=1.0)
    batch, hosts = f.Source("cloud", rented=True), f.Source("hosts")
    for offers in (((0, cheap), (0, dear)), ((0, dear), (1, None))):
        it = paid_fleet(0.2, 3, offers=offers, sources=(batch, hosts))
        (create,) = of(it.handle(f.Tick(), 0.0), f.Create)
        assert (create.candidate.offer, create.count) != (dear, 3)
        (create,) = of(it.handle(f.Refused(create.order, NoCapacity("none left")), 1.0), f.Create)
        assert (create.candidate, create.count) == (f.Candidate(0, dear), 2)
        assert of(serve(it, create.order, "ab", 2.0), f.Create) == []
        assert it.settled, "the third waits for what is cheap"
    it = paid_fleet(0.2, 3, least=3, offers=((0, cheap), (0, dear)), sources=(batch,))
    (create,) = of(it.handle(f.Tick(), 0.0), f.Create)
    assert of(it.handle(f.Refused(create.order, NoCapacity("none left")), 1.0), f.Create) == []
    assert it.settled


def test_a_pool_does_not_fail_while_money_becomes_free() -> None:
    """The only machine that the budget pays for did not come up: once it has ended, there is money for another."""
    it = paid_fleet(0.15, offers=((0, SMALL), (0, Offer("other", price=1.0))))
    (create,) = of(it.handle(f.Tick(), 0.0), f.Create)
    it.handle(f.Made(create.order, [machine("a", MachineState.STARTING, None, create.order)]), 1.0)
    commands = it.handle(f.Seen(0, [machine("a", MachineState.FAILED, None, create.order)]), 10.0)
    assert of(commands, f.Create) == []
    assert not it.settled
    commands = it.handle(f.Destroyed(0, ["a"]), 11.0) + it.handle(f.Tick(), 20.0)
    assert [create.candidate.offer.machine for create in of(commands, f.Create)] == ["other"]


def test_a_share_is_held_while_its_machine_may_go_on() -> None:
    """Its provider does not answer, so it may run until its own end."""
    it = paid_fleet(1.0)
    it.handle(f.Tick(), 0.0)
    serve(it, "sky-1-1", "a", 1.0)
    it.handle(f.Lost(0, "a"), 300.0)
    commands = it.handle(f.NotDestroyed(0, ["a"], CloudError("down")), 301.0)
    commands += it.handle(f.Tick(), 310.0)
    assert of(commands, f.Create) == of(commands, f.Exhausted) == []


def test_a_machine_for_nothing_leaves_the_money_alone() -> None:
    it = paid_fleet(10.0, 2, offers=((0, Offer("free", price=0.0)), (0, SMALL)))
    (first, second) = of(it.handle(f.Tick(), 0.0), f.Create)
    assert (first.seconds, second.seconds) == (float("inf"), float("inf"))
    it.handle(f.Refused("sky-1-2", NoCapacity("none left")), 1.0)
    assert of(it.handle(f.Tick(), 2.0), f.Exhausted) == []


def test_fewer_than_the_minimum_are_not_begun_after_a_refusal_either() -> None:
    it = paid_fleet(
        0.1, 2, least=2, sources=(f.Source("cloud", rented=True),), offers=((0, Offer("m", price=0.6)), (0, SMALL))
    )
    it.handle(f.Tick(), 0.0)
    assert of(it.handle(f.Refused("sky-1-1", NoCapacity("none left")), 1.0), f.Create) == []


def test_machines_of_a_lost_reply_are_paid_for_until_they_are_surely_shown() -> None:
    it = paid_fleet(1.0)
    it.handle(f.Tick(), 0.0)
    commands = it.handle(f.Refused("sky-1-1", CloudError("reset")), 1.0)
    commands += it.handle(f.Seen(0, []), 2.0)  # too early to show it
    assert of(commands, f.Create) == []
    commands = it.handle(f.Tick(), 5.0)
    commands += it.handle(f.Tick(), 11.5)
    assert of(commands, f.Poll)
    commands = it.handle(f.Seen(0, []), 12.0)
    commands += it.handle(f.Tick(), 13.5)
    commands += it.handle(f.Seen(0, []), 14.0)
    (create,) = of(commands, f.Create)
    assert create.seconds == 3600.0


def test_what_ends_for_want_of_money_blames_no_task() -> None:
    it = paid_fleet(1.0, 2)
    it.handle(f.Tick(), 0.0)
    serve(it, "sky-1-1", "a", 1.0)
    it.handle(f.Made("sky-1-2", [machine("b", order="sky-1-2")]), 300.0)
    (abandon, *_) = of(it.handle(f.Tick(), 1790.0), f.Abandon)
    assert abandon.blameless


@given(st.data())
@examples(100)
def test_whatever_happens_the_bill_stays_within_the_budget(data: st.DataObject) -> None:
    """Machines that come late, die, are refused, or are shown although the order's reply was lost."""
    amount, wanted, billing = (data.draw(each) for each in (st.floats(0.05, 5.0), st.integers(1, 4), BILLINGS))
    offers = [
        (0, Offer(f"m{price}", price=price, billing=billing))
        for price in data.draw(st.lists(st.floats(0.05, 9.0), min_size=1, max_size=3))
    ]
    it = paid_fleet(amount, wanted, offers=offers)
    now, bill = 0.0, 0.0
    orders, alive = {}, {}  # name -> command and when; machine -> price, when, until

    def carry_out(commands):
        nonlocal bill
        for command in commands:
            if isinstance(command, f.Create):
                orders[command.order] = command, now
            elif isinstance(command, f.Destroy):
                for id in command.ids:
                    if id in alive:
                        price, since, until = alive.pop(id)
                        bill += price * billing.seconds(min(now, until) - since) / 3600
                carry_out(it.handle(f.Destroyed(0, command.ids), now))
            elif isinstance(command, f.Abandon):
                carry_out(it.handle(f.Lost(0, command.id), now))

    def seen():
        return [machine(id, order=id.rpartition("/")[0]) for id, (_, _, until) in alive.items() if until > now]

    carry_out(it.handle(f.Tick(), now))
    for _ in range(data.draw(st.integers(1, 40))):
        now += data.draw(st.sampled_from((0.1, 5.0, 100.0, 1000.0)))
        what = data.draw(st.sampled_from(("made", "refused", "vanished", "lost", "poll", "tick")))
        if what in ("made", "refused", "vanished") and orders:
            name, (command, since) = orders.popitem()
            made = {
                f"{name}/{k}": (command.candidate.offer.price, since, since + command.seconds)
                for k in range(command.count)
            }
            if what == "refused":
                carry_out(it.handle(f.Refused(name, NoCapacity("none")), now))
                continue
            alive |= made
            if what == "made":
                carry_out(it.handle(f.Made(name, [machine(id, order=name) for id in made]), now))
            else:
                carry_out(it.handle(f.Refused(name, CloudError("reset")), now))
        elif what == "lost" and alive:
            carry_out(it.handle(f.Lost(0, data.draw(st.sampled_from(sorted(alive)))), now))
        elif what == "poll":
            carry_out(it.handle(f.Seen(0, seen()), now))
        else:
            carry_out(it.handle(f.Tick(), now))
    # Nobody ends the others.
    bill += sum(price * billing.seconds(until - since) / 3600 for price, since, until in alive.values())
    assert bill <= amount * 1.000001
