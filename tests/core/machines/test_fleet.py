"""The fleet's promises, whatever order things happen in."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.core.errors import (
    AuthFailed,
    CloudError,
    NoCapacity,
    ProvisioningError,
    QuotaExceeded,
)
from skyward.core.machines import fleet_events as f
from skyward.core.machines.fleet import Fleet
from skyward.core.scope import Scope
from skyward.core.spec import Endpoint, Machine, MachineState, Offer
from tests.examples import examples

SMALL, LARGE = Offer("small", vcpus=2, price=1.0), Offer("large", vcpus=8, price=2.0)
SPOT = Offer("small", vcpus=2, price=0.3, spot=True)
RENTED = f.Source("cloud", batch=False, rented=True, patience=100.0, listing_delay=10.0, poll=1.0)
HOSTS = f.Source("hosts")
WHERE = Endpoint("ssh", "192.0.2.1")


def fleet(wanted=1, sources=(RENTED,), offers=((0, SMALL),)):
    return Fleet(sources, [f.Candidate(source, offer) for source, offer in offers], wanted, "sky-1")


def machine(id="m1", state=MachineState.RUNNING, endpoint=WHERE, order=""):
    return Machine(id, endpoint, id, state=state, order=order)


def of(commands, kind):
    return [command for command in commands if isinstance(command, kind)]


def test_hosts_are_begun_at_once_and_forgotten_when_released() -> None:
    it = fleet(2, (HOSTS,), [(0, None)])
    (create,) = it.handle(f.Tick(), 0.0)
    assert create == f.Create("sky-1-1", f.Candidate(0, None), 2)
    begun = it.handle(f.Made("sky-1-1", [machine("a"), machine("b")]), 1.0)
    assert begun == [f.Begin(0, machine("a")), f.Begin(0, machine("b"))]
    assert it.settled
    assert it.handle(f.Shutdown(), 2.0) == []
    assert of(it.handle(f.Lost(0, "a"), 3.0), f.Destroy) == [f.Destroy(0, ["a"])]
    it.handle(f.Lost(0, "b"), 3.0)
    it.handle(f.Destroyed(0, ["a"]), 4.0)
    assert not it.done
    it.handle(f.Destroyed(0, ["b"]), 4.0)
    assert it.done


def test_a_rented_machine_is_polled_until_it_has_an_address_and_until_it_is_gone() -> None:
    it = fleet()
    it.handle(f.Tick(), 0.0)
    assert it.handle(f.Made("sky-1-1", [machine(state=MachineState.STARTING, endpoint=None)]), 1.0) == [f.Poll(0)]
    assert it.handle(f.Seen(0, []), 2.0) == []  # not shown yet: too young to be missed
    assert it.handle(f.Tick(), 3.0) == [f.Poll(0)]
    assert it.handle(f.Seen(0, [machine()]), 3.0) == [f.Begin(0, machine())]
    it.handle(f.Shutdown(), 4.0)
    assert it.handle(f.Lost(0, "m1"), 4.0)[:1] == [f.Destroy(0, ["m1"])]
    assert it.handle(f.Destroyed(0, ["m1"]), 5.0) == [f.Poll(0)]
    it.handle(f.Seen(0, [machine()]), 6.0)  # still there
    assert not it.done
    it.handle(f.Tick(), 7.0)
    assert it.handle(f.Seen(0, []), 7.5) == []
    assert it.left().machines == [("cloud", "m1")]  # one look may be wrong
    it.handle(f.Tick(), 10.0)
    assert not it.done
    assert it.handle(f.Seen(0, []), 10.5) == []  # nor does it count before all that was ordered is surely shown
    it.handle(f.Tick(), 11.5)
    assert it.handle(f.Seen(0, []), 12.0) == [f.Clear(0)]
    it.handle(f.Cleared(0), 12.5)
    assert it.done


def test_machines_that_are_no_nodes_are_counted() -> None:
    """Those that cost: hosts that exist do not."""
    it = fleet(2, sources=(f.Source("cloud", rented=True),))
    it.handle(f.Tick(), 0)
    assert it.waiting == (2, 0, 0)
    it.handle(f.Made("sky-1-1", [machine("a", MachineState.STARTING, None), machine("b")]), 1)
    assert it.waiting == (0, 1, 0)
    it.handle(f.Shutdown(), 2)
    it.handle(f.Lost(0, "b"), 3)
    assert it.waiting == (0, 0, 2)
    hosts = fleet(2, sources=(HOSTS,))
    hosts.handle(f.Tick(), 0)
    assert (hosts.count, hosts.waiting) == (2, (0, 0, 0))


def test_the_next_offer_is_tried_and_each_refusal_reported() -> None:
    it = fleet(offers=[(0, SPOT), (0, SMALL), (0, LARGE)])
    it.handle(f.Tick(), 0.0)
    told, create = it.handle(f.Refused("sky-1-1", NoCapacity("cloud: none left")), 1.0)
    assert told == f.Report("cloud: small spot, $0.3/h: none left")
    assert create == f.Create("sky-1-2", f.Candidate(0, SMALL), 1)
    # a quota that small is too large for is too small for large, too
    assert of(it.handle(f.Refused("sky-1-2", QuotaExceeded("0 of 0")), 2.0), f.Create) == []
    assert it.settled
    assert it.count == 0


def test_a_refusal_is_remembered_until_an_order_placed_after_it_brings_a_machine() -> None:
    """Replies come in any order, and a refusal that a later machine does not explain is still reported."""
    it = fleet(2)
    it.handle(f.Tick(), 0.0)
    it.handle(f.Refused("sky-1-2", NoCapacity("none left")), 1.0)
    it.handle(f.Made("sky-1-1", [machine("a")]), 2.0)
    assert it.settled
    assert [str(error) for error in it.refusals] == ["none left"]
    assert of(it.handle(f.Tick(), 100.0), f.Create) == [f.Create("sky-1-3", f.Candidate(0, SMALL), 1)]
    it.handle(f.Made("sky-1-3", [machine("b")]), 101.0)
    assert it.refusals == []


def test_other_providers_are_tried_when_one_refuses_the_credentials() -> None:
    it = fleet(sources=(RENTED, HOSTS), offers=[(0, SMALL), (0, LARGE), (1, None)])
    it.handle(f.Tick(), 0.0)
    assert of(it.handle(f.Refused("sky-1-1", AuthFailed("no")), 1.0), f.Create) == [
        f.Create("sky-1-2", f.Candidate(1, None), 1)
    ]


def test_an_order_whose_reply_was_lost_is_looked_for_and_used() -> None:
    it = fleet()
    it.handle(f.Tick(), 0.0)
    commands = it.handle(f.Refused("sky-1-1", CloudError("connection reset")), 1.0)
    assert of(commands, f.Poll)
    assert not of(commands, f.Create)
    assert it.handle(f.Seen(0, [machine("orphan")]), 2.0) == [f.Begin(0, machine("orphan"))]
    assert it.count == 1


def test_what_a_lost_reply_made_is_destroyed_when_it_shows_too_late() -> None:
    it = fleet()
    it.handle(f.Tick(), 0.0)
    it.handle(f.Refused("sky-1-1", CloudError("connection reset")), 1.0)
    assert of(it.handle(f.Seen(0, []), 2.0), f.Create)
    it.handle(f.Made("sky-1-2", [machine("second")]), 101.0)
    assert of(it.handle(f.Seen(0, [machine("first"), machine("second")]), 102.0), f.Destroy) == [
        f.Destroy(0, ["first"])
    ]


def test_after_a_lost_reply_the_end_waits_until_a_poll_can_be_trusted() -> None:
    it = fleet()
    it.handle(f.Tick(), 0.0)
    it.handle(f.Refused("sky-1-1", CloudError("connection reset")), 1.0)
    it.handle(f.Shutdown(), 2.0)
    it.handle(f.Seen(0, []), 2.0)
    assert not it.done
    assert it.next_tick(2.0) is not None
    assert of(it.handle(f.Tick(), 11.0), f.Poll)
    assert it.handle(f.Seen(0, [machine("late")]), 11.5) == [f.Destroy(0, ["late"])]


def test_a_machine_that_never_boots_is_replaced() -> None:
    it = fleet(offers=[(0, SMALL), (0, LARGE)])
    it.handle(f.Tick(), 0.0)
    it.handle(f.Made("sky-1-1", [machine(state=MachineState.STARTING, endpoint=None)]), 0.0)
    commands = it.handle(f.Tick(), 100.0)
    assert of(commands, f.Destroy) == [f.Destroy(0, ["m1"])]
    assert of(commands, f.Create) == [f.Create("sky-1-2", f.Candidate(0, LARGE), 1)]


def test_a_machine_that_is_taken_back_is_abandoned() -> None:
    it = fleet()
    it.handle(f.Tick(), 0.0)
    it.handle(f.Made("sky-1-1", [machine()]), 0.0)
    gone = Machine("m1", None, "m1", state=MachineState.PREEMPTED, detail="outbid")
    assert f.Abandon(0, "m1", "outbid") in it.handle(f.Seen(0, [gone]), 30.0)


# --- sources of one account ---


def test_a_source_leaves_the_machines_of_another_alone() -> None:
    """Two regions: each shows the whole account, also before the reply to the other's order is there."""
    it = fleet(2, (RENTED, RENTED), [(0, SMALL), (1, LARGE)])
    it.handle(f.Tick(), 0.0)
    it.handle(f.Made("sky-1-1", [machine("a", order="sky-1-1")]), 1.0)
    it.handle(f.Refused("sky-1-2", NoCapacity("none left")), 1.0)
    both = [machine("a", order="sky-1-1"), machine("b", order="sky-1-3")]
    assert it.handle(f.Seen(0, both), 2.0) == []
    assert f.Begin(1, both[1]) in it.handle(f.Made("sky-1-3", [both[1]]), 3.0)
    for now in range(3, 300, 3):
        for source in (0, 1):
            assert not of(it.handle(f.Seen(source, both), float(now)), (f.Destroy, f.Begin, f.Create))
    assert it.count == 2


def test_what_a_lost_reply_made_is_used_by_the_source_that_ordered_it() -> None:
    it = fleet(2, (RENTED, RENTED), [(0, SMALL), (1, LARGE)])
    it.handle(f.Tick(), 0.0)
    it.handle(f.Made("sky-1-1", [machine("a", order="sky-1-1")]), 1.0)
    it.handle(f.Refused("sky-1-2", CloudError("connection reset")), 1.0)
    found = [machine("a", order="sky-1-1"), machine("b", order="sky-1-2")]
    assert of(it.handle(f.Seen(0, found), 2.0), f.Begin) == [f.Begin(0, found[1])]
    # and one that nobody knows is ended once, by who shows it first
    found.append(machine("c", order="sky-1-77"))
    it.handle(f.Tick(), 70.0)
    assert of(it.handle(f.Seen(0, found), 71.0), f.Destroy) == [f.Destroy(0, ["c"])]
    assert not of(it.handle(f.Seen(1, found), 71.0), f.Destroy)


# --- machines that fail one after another ---


def test_machines_that_never_get_an_address_are_not_bought_for_ever() -> None:
    """Also where there is always another offer that is rested, and orders go well."""
    world = World(1, (RENTED,), boots=False, kinds=[Offer(f"kind{n}", price=1.0) for n in range(9)])
    settled = world.run_until(lambda: world.fleet.settled and not world.fleet.count)
    assert settled
    assert world.bought <= 3
    assert any("had no address" in str(error) for error in world.fleet.refusals)
    world.now += 10 * 86400.0  # nobody is needed who waits
    world.tell(f.Tick())
    assert world.bought <= 3


def test_when_replacements_fail_the_others_go_on() -> None:
    world = World(2, (RENTED,))
    assert world.run_until(lambda: len(world.serving) == 2)
    world.tell(f.CameUp())
    world.boots = False
    world.lose(world.serving[0])
    assert world.run_until(lambda: world.fleet.settled and world.fleet.count == 1)
    assert world.bought <= 5
    assert len(world.serving) == 1


def test_a_host_is_released_before_it_is_requested_again() -> None:
    it = fleet(2, (HOSTS,), [(0, None)])
    it.handle(f.Tick(), 0.0)
    it.handle(f.Made("sky-1-1", [machine(id) for id in "ab"]), 0.0)
    it.handle(f.CameUp(), 0.0)
    commands = it.handle(f.Lost(0, "a", served=True), 1.0)
    assert (len(of(commands, f.Destroy)), of(commands, f.Create)) == (1, [])
    (create,) = of(it.handle(f.Destroyed(0, ["a"]), 1.1), f.Create)
    assert create.count == 1


def test_failures_before_and_after_the_address_are_counted_together() -> None:
    it = fleet(5, (HOSTS,), [(0, None)])
    it.handle(f.Tick(), 0.0)
    it.handle(f.Made("sky-1-1", [machine(id) for id in "abcde"]), 0.0)
    for id in "ab":
        it.handle(f.Lost(0, id, served=False), 0.0)
    it.handle(f.Destroyed(0, ["a", "b"]), 0.0)
    assert it.next_tick(0.0) == 4.0  # the second in a row
    (create,) = of(it.handle(f.Tick(), 4.0), f.Create)
    assert create.count == 2
    it.handle(f.Made("sky-1-2", [machine(id) for id in "fg"]), 4.0)
    for id in "cde":
        it.handle(f.Lost(0, id, served=False), 4.0)
    it.handle(f.Destroyed(0, ["c", "d", "e"]), 4.0)
    assert of(it.handle(f.Tick(), 600.0), f.Create) == []
    assert it.count == 2
    it.handle(f.CameUp(), 600.0)
    it.handle(f.Lost(0, "f", served=False), 600.0)
    it.handle(f.Destroyed(0, ["f"]), 600.0)
    assert of(it.handle(f.Tick(), 602.0), f.Create)


def test_machines_on_which_no_task_succeeds_are_not_bought_for_ever() -> None:
    """They come up each time, and fail all that they are given. A result in between shows that others do not."""
    it = fleet(1, (HOSTS,), [(0, None)])

    def turn(number: int, now: float) -> list[f.Command]:
        """One comes up, is removed and terminated; what is bought in its place."""
        it.handle(f.Made(f"sky-1-{number}", [machine(f"m{number}")]), now)
        it.handle(f.CameUp(), now)
        it.handle(f.Lost(0, f"m{number}", barren=True), now)
        it.handle(f.Destroyed(0, [f"m{number}"]), now)
        return of(it.handle(f.Tick(), now + 50.0), f.Create)

    it.handle(f.Tick(), 0.0)
    assert turn(1, 0.0)
    assert turn(2, 100.0)
    it.handle(f.Worked(), 150.0)
    assert turn(3, 200.0)
    assert turn(4, 300.0)
    assert not turn(5, 400.0)
    assert it.settled
    assert not it.count


def test_a_source_that_may_not_be_polled_is_given_up() -> None:
    """A key that may create but not list: what it makes can never be reached."""
    it = fleet(offers=[(0, SMALL), (0, LARGE)])
    it.handle(f.Tick(), 0.0)
    it.handle(f.Made("sky-1-1", [machine(state=MachineState.STARTING, endpoint=None)]), 0.0)
    told: list[f.Command] = []
    for now in (1.0, 3.0, 7.0):
        told += it.handle(f.NotSeen(0, AuthFailed("may not list")), now)
        it.handle(f.Tick(), now + 1.0)
    assert "can't list its machines: may not list" in of(told, f.Report)[0].text
    assert of(told, f.Destroy) == [f.Destroy(0, ["m1"])]
    assert it.settled
    assert it.count == 0
    assert isinstance(it.refusals[0], AuthFailed)
    # when it may, it is of use again
    assert of(it.handle(f.Seen(0, []), 20.0), f.Create)


def test_the_next_source_is_asked_when_one_may_not_be_polled() -> None:
    it = fleet(sources=(RENTED, HOSTS), offers=[(0, SMALL), (1, None)])
    it.handle(f.Tick(), 0.0)
    it.handle(f.Refused("sky-1-1", CloudError("connection reset")), 0.0)
    asked: list[f.Command] = []
    for now in (1.0, 3.0, 7.0):
        asked += it.handle(f.NotSeen(0, AuthFailed("may not list")), now)
    assert of(asked, f.Create) == [f.Create("sky-1-2", f.Candidate(1, None), 1)]


def test_a_poll_that_fails_is_reported_once_and_retried() -> None:
    it = fleet()
    it.handle(f.Tick(), 0.0)
    it.handle(f.Made("sky-1-1", [machine(state=MachineState.STARTING, endpoint=None)]), 0.0)
    told: list[f.Command] = []
    for now in range(40, 80, 2):
        told += it.handle(f.NotSeen(0, CloudError("503")), float(now))
        it.handle(f.Tick(), now + 1.0)
    assert [tell.text for tell in of(told, f.Report)] == ["cloud: can't list its machines: 503; retrying"]
    assert it.count == 1


# --- how far a refusal reaches ---

KINDS = [
    Offer(name, vcpus=2, price=price, spot=spot, region=f"{region}{zone}", zone_of=region)
    for price, name in enumerate(("small", "medium", "large"), 1)
    for spot in (True, False)
    for region in ("east", "west")
    for zone in "ab"
]
RULES = {
    "no spot": lambda offer: not offer.spot,
    "only one region": lambda offer: offer.zone_of == "west",
    "only one zone": lambda offer: offer.region == "eastb",
    "only one type": lambda offer: offer.machine == "large",
    "only one": lambda offer: offer == KINDS[-1],
}


def _ask(it: Fleet, allowed, error) -> list[Offer]:
    """What is tried until an order is allowed, or nothing more is ordered."""
    tried: list[Offer] = []
    commands = it.handle(f.Tick(), 0.0)
    while created := of(commands, f.Create):
        (create,) = created
        tried.append(create.candidate.offer)
        if allowed(tried[-1]):
            return tried
        commands = it.handle(f.Refused(create.order, error(tried[-1])), 0.0)
    return tried


@pytest.mark.parametrize("rule", list(RULES))
@given(offers=st.permutations(KINDS))
def test_a_policy_that_does_not_say_what_it_forbids_leaves_what_it_allows(rule, offers) -> None:
    it = fleet(sources=(RENTED, HOSTS), offers=[*((0, offer) for offer in offers), (1, None)])
    tried = _ask(it, RULES[rule], lambda _: AuthFailed("not authorized", scope=Scope.OFFER))
    assert RULES[rule](tried[-1])
    if rule in ("no spot", "only one region"):
        assert len(tried) <= 7, "two of each market of the other region, and of the wrong ones here"


@pytest.mark.parametrize("scope", [Scope.SPOT, Scope.REGION, Scope.TYPE, Scope.ZONE, Scope.SPOT | Scope.REGION])
@given(offers=st.permutations(KINDS))
def test_what_is_refused_for_some_excludes_those_and_no_others(scope, offers) -> None:
    """The first offer is of what is refused; its others are not requested, and each of the rest is available."""

    def parts(offer: Offer) -> tuple[object, ...]:
        told = {
            Scope.TYPE: offer.machine,
            Scope.SPOT: offer.spot,
            Scope.ZONE: offer.region,
            Scope.REGION: offer.zone_of,
        }
        return tuple(value for bit, value in told.items() if bit in scope)

    refused = parts(offers[0])
    it = fleet(offers=[(0, offer) for offer in offers])
    tried = _ask(it, lambda offer: parts(offer) != refused, lambda _: ProvisioningError("no", scope=scope))
    assert tried == [offers[0], next(offer for offer in offers if parts(offer) != refused)]


def test_after_twenty_spot_machines_that_nobody_has_one_on_demand_is_asked_for() -> None:
    spot = [Offer(f"kind{n}", vcpus=2, price=n / 100, spot=True) for n in range(100)]
    it = fleet(offers=[(0, offer) for offer in (*spot, SMALL)])
    tried = _ask(it, lambda offer: not offer.spot, lambda _: NoCapacity("none"))
    assert (len(tried), tried[-1]) == (21, SMALL)


def test_an_account_that_may_nothing_is_asked_a_few_times_only() -> None:
    many = [Offer(f"kind{n}", vcpus=2, price=n, spot=bool(n % 2), region="east") for n in range(1000)]
    it = fleet(sources=(RENTED, HOSTS), offers=[*((0, offer) for offer in many), (1, None)])
    tried = _ask(it, lambda offer: offer is None, lambda _: AuthFailed("no", scope=Scope.OFFER))
    assert len(tried) <= 41


# --- the end ---


def test_credentials_that_have_ended_end_the_wait_and_what_is_left_is_known() -> None:
    it = fleet()
    it.handle(f.Tick(), 0.0)
    it.handle(f.Made("sky-1-1", [machine()]), 1.0)
    it.handle(f.Shutdown(), 100.0)
    it.handle(f.Lost(0, "m1"), 100.0)
    for now in (100.5, 102.0, 105.0):
        assert not it.done
        it.handle(f.NotDestroyed(0, ["m1"], AuthFailed("expired")), now)
        it.handle(f.Tick(), now + 1.0)
    assert it.done
    assert it.next_tick(105.0) is None
    assert it.left().machines == [("cloud", "m1")]
    assert it.left().price == SMALL.price
    assert [(name, str(error)) for name, error in it.left().given_up] == [("cloud", "expired")]


def test_who_may_not_poll_may_terminate_machines_all_the_same() -> None:
    it = fleet()
    it.handle(f.Tick(), 0.0)
    it.handle(f.Made("sky-1-1", [machine()]), 1.0)
    it.handle(f.Shutdown(), 100.0)
    for now in (101.0, 103.0, 106.0):
        it.handle(f.NotSeen(0, AuthFailed("may not list")), now)
    assert it.left().given_up
    assert not it.done, "a machine that still serves was never tried to be ended"
    assert it.handle(f.Lost(0, "m1"), 107.0) == [f.Destroy(0, ["m1"])]
    it.handle(f.Destroyed(0, ["m1"]), 108.0)
    assert it.done


def test_a_machine_that_was_not_destroyed_is_not_forgotten() -> None:
    """One server of the API does not show it while the call that ends it fails."""
    it = fleet()
    it.handle(f.Tick(), 0.0)
    it.handle(f.Made("sky-1-1", [machine()]), 1.0)
    it.handle(f.Seen(0, [machine()]), 2.0)
    it.handle(f.Shutdown(), 100.0)
    it.handle(f.Lost(0, "m1"), 100.0)
    for now in (103.0, 106.0, 109.0):
        it.handle(f.Tick(), now)
        it.handle(f.Seen(0, []), now + 1.0)
    assert it.left().machines == [("cloud", "m1")]
    it.handle(f.NotDestroyed(0, ["m1"], CloudError("503")), 111.0)
    assert of(it.handle(f.Tick(), 112.0), f.Destroy) == [f.Destroy(0, ["m1"])]


def test_what_is_said_to_be_gone_is_gone_at_once() -> None:
    it = fleet()
    it.handle(f.Tick(), 0.0)
    it.handle(f.Made("sky-1-1", [machine()]), 1.0)
    it.handle(f.Seen(0, [machine()]), 2.0)
    it.handle(f.Shutdown(), 50.0)
    it.handle(f.Lost(0, "m1"), 50.0)
    it.handle(f.Destroyed(0, ["m1"]), 50.5)
    assert it.handle(f.Tick(), 51.5) == [f.Poll(0)]
    assert it.handle(f.Seen(0, [machine(state=MachineState.GONE)]), 52.0) == [f.Clear(0)]


def test_a_refusal_that_was_none_is_found_at_the_end() -> None:
    """An error that was misread must not cost for ever."""
    it = fleet()
    it.handle(f.Tick(), 0.0)
    it.handle(f.Refused("sky-1-1", NoCapacity("503, taken for a refusal")), 1.0)
    assert it.handle(f.Shutdown(), 2.0) == []
    assert it.next_tick(2.0) == 11.0
    assert it.handle(f.Tick(), 11.0) == [f.Poll(0)]
    assert it.handle(f.Seen(0, [machine("late", order="sky-1-1")]), 11.5) == [f.Destroy(0, ["late"])]


def test_an_end_long_after_the_last_order_takes_one_poll() -> None:
    it = fleet()
    it.handle(f.Tick(), 0.0)
    it.handle(f.Refused("sky-1-1", NoCapacity("none")), 1.0)
    assert it.handle(f.Shutdown(), 20.0) == [f.Poll(0)]
    assert it.handle(f.Seen(0, []), 20.2) == [f.Clear(0)]


# --- any order of events ---


class World:
    """Clouds that answer in any order, and fail as they are told.

    Parameters
    ----------
    shared
        All sources are of one account: each shows the machines of all.
    boots
        Machines get an address.
    kinds
        Offers of those that rent.
    """

    def __init__(
        self,
        wanted: int,
        sources: tuple[f.Source, ...],
        *,
        shared: bool = False,
        boots: bool = True,
        kinds: Sequence[Offer] = (SMALL, LARGE),
    ) -> None:
        self.now = 0.0
        self.ids = itertools.count(1)
        account: dict[str, tuple[float, str]] = {}  # id -> from when it is shown, its order
        self.alive = [account if shared else {} for _ in sources]
        self.boots = boots
        self.bought = 0
        self.stale = [False for _ in sources]  # whether the last look was wrong
        self.sources = sources
        offers = [(n, offer) for n, source in enumerate(sources) for offer in (kinds if source.rented else (None,))]
        self.fleet = fleet(wanted, sources, offers)
        self.wanted = wanted
        self.out: list[f.Command] = []
        self.serving: list[tuple[int, str]] = []
        self.begun: set[str] = set()
        self.lost_replies = 0
        self.stopping = False
        self.tell(f.Tick())

    def tell(self, event: f.Event) -> None:
        for command in self.fleet.handle(event, self.now):
            if isinstance(command, f.Begin):
                key = (command.source, command.machine.id)
                assert key[1] not in self.begun, "begun twice"
                self.begun.add(key[1])
                self.serving.append(key)
            elif isinstance(command, f.Abandon):
                self.lose((command.source, command.id))
            elif not isinstance(command, f.Report):
                if isinstance(command, f.Create):
                    assert not self.stopping, "ordered after Stop"
                if isinstance(command, f.Destroy):
                    assert not {id for _, id in self.serving} & {*command.ids}, "destroyed while it serves"
                self.out.append(command)
        assert self.fleet.count <= max(self.wanted, len(self.serving))

    def lose(self, key: tuple[int, str], **how) -> None:
        if key in self.serving:
            self.serving.remove(key)
            self.tell(f.Lost(*key, **how))

    def answer(self, index: int, how: str) -> None:
        """One of the things that are out comes to its end."""
        command = self.out.pop(index % len(self.out))
        match command:
            case f.Create(order, candidate, count):
                source = self.sources[candidate.source]
                if how in ("lost", "lied", "refused", "auth", "fail"):
                    error = {"refused": NoCapacity("x"), "lied": NoCapacity("x"), "auth": AuthFailed("x")}.get(how)
                    if how in ("lost", "lied") and source.rented:
                        self.make(candidate.source, order, count, self.now + 5.0)
                    self.tell(f.Refused(order, error or CloudError("x")))
                else:
                    made = self.make(candidate.source, order, count if how != "part" else 1, self.now)
                    self.tell(f.Made(order, [self.shown(candidate.source, id) for id in made]))
            case f.Poll(source):
                # At times one server of an API knows nothing, but not twice in a row.
                self.stale[source] = how == "part" and not self.stale[source]
                if how in ("fail", "lost", "auth"):
                    self.tell(f.NotSeen(source, AuthFailed("x") if how == "auth" else CloudError("x")))
                else:
                    known = {} if self.stale[source] else self.alive[source]
                    shown = [id for id, (since, _) in known.items() if since <= self.now]
                    self.tell(f.Seen(source, [self.shown(source, id) for id in shown]))
            case f.Destroy(source, ids):
                if how in ("fail", "refused", "auth"):
                    error = AuthFailed("x") if how == "auth" else CloudError("x")
                    self.tell(f.NotDestroyed(source, ids, error))
                else:
                    if how != "lost" or not self.sources[source].rented:  # "lost" says yes and does nothing
                        for id in ids:
                            self.alive[source].pop(id, None)
                    self.tell(f.Destroyed(source, ids))
            case f.Clear(source):
                own = [
                    id for id, (_, order) in self.alive[source].items() if self.fleet._orders.placed[order] == source
                ]
                assert not own, "cleared while machines live"
                failures = {"fail": CloudError("x"), "auth": AuthFailed("x")}
                self.tell(f.NotCleared(source, failures[how]) if how in failures else f.Cleared(source))

    def make(self, source: int, order: str, count: int, shown_from: float) -> list[str]:
        made = [f"m{next(self.ids)}" for _ in range(count)]
        self.bought += count
        self.alive[source].update(dict.fromkeys(made, (shown_from, order)))
        return made

    def shown(self, source: int, id: str) -> Machine:
        order = self.alive[source][id][1]
        if self.boots or (source, id) in self.serving:
            return machine(id, order=order)
        return machine(id, MachineState.STARTING, None, order)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.tell(f.Tick())

    def run_until(self, condition, how: str = "well") -> bool:
        """Let everything go well, or as it is said; whether the condition came true."""
        for _ in range(2000):
            if condition():
                return True
            if self.out:
                self.answer(0, how)
            else:
                due = self.fleet.next_tick(self.now)
                assert due is not None, "stuck"
                self.pass_time(max(0.01, due - self.now))
        return bool(condition())

    def stop(self) -> None:
        if not self.stopping:
            self.stopping = True
            self.tell(f.Shutdown())
            for key in list(self.serving):
                self.lose(key)


HOW = st.sampled_from(["well", "well", "well", "part", "lost", "lied", "refused", "auth", "fail"])
STEPS = st.one_of(
    st.tuples(st.just("answer"), st.integers(0, 7), HOW),
    st.tuples(st.just("time"), st.sampled_from([0.1, 1.0, 7.0, 61.0, 120.0]), st.none()),
    st.tuples(st.just("lose"), st.integers(0, 7), st.tuples(st.booleans(), st.booleans(), st.booleans())),
    st.tuples(st.just("worked"), st.none(), st.none()),
    st.tuples(st.just("ready"), st.none(), st.none()),
    st.tuples(st.just("vanish"), st.integers(0, 7), st.none()),
)


BATCH = f.Source("batch", rented=True)


@pytest.mark.parametrize(
    ("sources", "shared"),
    [
        ((RENTED,), False),
        ((HOSTS,), False),
        ((RENTED, HOSTS), False),
        ((BATCH, RENTED), False),
        ((RENTED, RENTED), True),
        ((BATCH, RENTED, RENTED), True),
    ],
)
@examples(60)
@given(wanted=st.integers(1, 4), steps=st.lists(STEPS, max_size=60))
def test_whatever_happens_nothing_is_left(sources, shared, wanted, steps) -> None:
    world = World(wanted, sources, shared=shared)
    live(world, steps)
    world.stop()
    assert world.run_until(lambda: world.fleet.done)
    assert not any(world.alive)


@pytest.mark.parametrize("sources", [(RENTED,), (BATCH,), (RENTED, HOSTS), (BATCH, RENTED)])
@examples(60)
@given(wanted=st.integers(1, 4), steps=st.lists(STEPS, max_size=60))
def test_whenever_credentials_end_the_wait_is_short_and_all_that_is_left_is_reported(sources, wanted, steps) -> None:
    world = World(wanted, sources)
    live(world, steps)
    world.stop()
    begun = world.now
    assert world.run_until(lambda: world.fleet.done, "auth")
    assert world.now - begun < 60.0, "and not the 900 s after which everything is given up"
    told = {id for _, id in world.fleet.left().machines}
    given_up = {name for name, _ in world.fleet.left().given_up}
    for source, alive in zip(sources, world.alive, strict=True):
        if source.rented:
            assert source.name in given_up or not alive
            assert world.begun & {*alive} <= told


def live(world: World, steps) -> None:
    for what, number, how in steps:
        if what == "answer" and world.out:
            world.answer(number, how)
        elif what == "time":
            world.pass_time(number)
        elif what == "lose" and world.serving:
            key = world.serving[number % len(world.serving)]
            world.lose(key, served=how[0], replace=how[1], barren=how[2])
        elif what == "ready":
            world.tell(f.CameUp())
        elif what == "worked":
            world.tell(f.Worked())
        elif what == "vanish" and world.serving:
            source, id = world.serving[number % len(world.serving)]
            if world.sources[source].rented:
                world.alive[source].pop(id, None)


@examples(60)
@given(wanted=st.integers(1, 6), answers=st.lists(HOW, max_size=30))
def test_when_providers_are_willing_all_that_is_wanted_comes(wanted, answers) -> None:
    world = World(wanted, (RENTED,))
    for how in answers:
        if world.out:
            world.answer(0, "refused" if how == "auth" else how)
    assert world.run_until(lambda: len(world.serving) == wanted)
    world.stop()


@pytest.mark.parametrize("shared", [False, True])
@examples(60)
@given(wanted=st.integers(1, 5), stock=st.integers(0, 3), answers=st.lists(st.integers(0, 7), max_size=30))
def test_two_sources_fill_what_is_wanted_and_then_all_is_calm(shared, wanted, stock, answers) -> None:
    """The first has so many machines, the second the rest; no more is bought, and nothing is exchanged."""
    world = World(wanted, (RENTED, RENTED), shared=shared)
    left = stock
    for index in itertools.chain(answers, itertools.repeat(0, 200)):
        if not world.out:
            due = world.fleet.next_tick(world.now)
            world.pass_time(max(0.01, (due or world.now) - world.now))
            continue
        command = world.out[index % len(world.out)]
        if isinstance(command, f.Create) and command.candidate.source == 0:
            world.answer(index, "well" if left > 0 else "refused")
            left -= 1
        else:
            world.answer(index, "well")
    assert len(world.serving) == world.bought == wanted


def test_a_source_that_refuses_again_and_again_rests_and_the_next_one_is_asked() -> None:
    """Not all of a thousand offers of a cloud that has nothing."""
    many = [(0, Offer(f"kind{n}", vcpus=2, price=n / 100)) for n in range(1000)]
    it = fleet(sources=(RENTED, HOSTS), offers=[*many, (1, None)])
    (create,) = it.handle(f.Tick(), 0.0)
    for _ in range(50):
        if create.candidate.source == 1:
            break
        (create,) = of(it.handle(f.Refused(create.order, NoCapacity("none")), 0.0), f.Create)
    assert create.candidate.source == 1


def test_what_its_source_can_not_end_any_more_is_ended_by_another_that_shows_it() -> None:
    """Two regions of one account, of which one refuses the credentials; whether or not its reply had arrived."""
    for known in (True, False):
        it = fleet(1, (RENTED, RENTED), [(0, SMALL), (1, SMALL)])
        (create,) = of(it.handle(f.Tick(), 0.0), f.Create)
        if known:
            it.handle(f.Made(create.order, [machine("a", order=create.order)]), 1.0)
        else:
            it.handle(f.Refused(create.order, CloudError("no reply")), 1.0)
        it.handle(f.Shutdown(), 2.0)
        ends = []
        for now in (2.0, 3.5, 8.0, 9.0):
            if known:
                it.handle(f.NotDestroyed(0, ["a"], AuthFailed("expired")), now)
            it.handle(f.NotSeen(0, AuthFailed("expired")), now)
            ends += of(it.handle(f.Seen(1, [machine("a", order=create.order)]), now), f.Destroy)
        assert ends == [f.Destroy(1, ["a"])]
        it.handle(f.Destroyed(1, ["a"]), 10.0)
        for now in (11.0, 30.0, 50.0, 70.0):
            it.handle(f.Seen(1, []), now)
            it.handle(f.Tick(), now)
        assert it.done
        assert it.left().machines == []
