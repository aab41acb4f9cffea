"""The fleet's promises, whatever order things happen in."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyward.core import fleet as f
from skyward.core.errors import AuthFailed, CloudError, NoCapacity, QuotaExceeded
from skyward.core.spec import Endpoint, Machine, MachineState, Offer

SMALL, LARGE = Offer("small", vcpus=2, price=1.0), Offer("large", vcpus=8, price=2.0)
SPOT = Offer("small", vcpus=2, price=0.3, spot=True)
RENTED = f.Source("cloud", batch=False, rented=True, patience=100.0, settle=10.0, poll=1.0)
HOSTS = f.Source("hosts")
WHERE = Endpoint("ssh", "192.0.2.1")


def fleet(wanted=1, sources=(RENTED,), offers=((0, SMALL),)):
    return f.Fleet(sources, [f.Candidate(source, offer) for source, offer in offers], wanted)


def machine(id="m1", state=MachineState.RUNNING, endpoint=WHERE):
    return Machine(id, endpoint, id, state=state)


def of(commands, kind):
    return [command for command in commands if isinstance(command, kind)]


def test_hosts_are_begun_at_once_and_forgotten_when_given_back() -> None:
    it = fleet(2, (HOSTS,), [(0, None)])
    (create,) = it.handle(f.Tick(), 0.0)
    assert create == f.Create(1, f.Candidate(0, None), 2)
    begun = it.handle(f.Made(1, [machine("a"), machine("b")]), 1.0)
    assert begun == [f.Begin(0, machine("a")), f.Begin(0, machine("b"))]
    assert it.settled
    assert it.handle(f.Stop(), 2.0) == []
    assert of(it.handle(f.Lost(0, "a"), 3.0), f.Destroy) == [f.Destroy(0, ["a"])]
    it.handle(f.Lost(0, "b"), 3.0)
    it.handle(f.Destroyed(0, ["a"]), 4.0)
    assert not it.done
    it.handle(f.Destroyed(0, ["b"]), 4.0)
    assert it.done


def test_a_rented_machine_is_looked_at_until_it_has_an_address_and_until_it_is_gone() -> None:
    it = fleet()
    it.handle(f.Tick(), 0.0)
    assert it.handle(f.Made(1, [machine(state=MachineState.STARTING, endpoint=None)]), 1.0) == [f.Look(0)]
    assert it.handle(f.Seen(0, []), 2.0) == []  # not shown yet: too young to be missed
    assert it.handle(f.Tick(), 3.0) == [f.Look(0)]
    assert it.handle(f.Seen(0, [machine()]), 3.0) == [f.Begin(0, machine())]
    it.handle(f.Stop(), 4.0)
    assert it.handle(f.Lost(0, "m1"), 4.0)[:1] == [f.Destroy(0, ["m1"])]
    assert it.handle(f.Destroyed(0, ["m1"]), 5.0) == [f.Look(0)]
    it.handle(f.Seen(0, [machine()]), 6.0)  # still there
    assert not it.done
    it.handle(f.Tick(), 7.0)
    assert it.handle(f.Seen(0, []), 7.5) == [f.Clear(0)]
    it.handle(f.Cleared(0), 8.0)
    assert it.done


def test_the_next_offer_is_tried_and_each_refusal_told() -> None:
    it = fleet(offers=[(0, SPOT), (0, SMALL), (0, LARGE)])
    it.handle(f.Tick(), 0.0)
    told, create = it.handle(f.Refused(1, NoCapacity("none left")), 1.0)
    assert told == f.Tell("cloud: small spot, $0.3/h: none left")
    assert create == f.Create(2, f.Candidate(0, SMALL), 1)
    # a quota that small is too large for is too small for large, too
    assert of(it.handle(f.Refused(2, QuotaExceeded("0 of 0")), 2.0), f.Create) == []
    assert it.settled
    assert it.count == 0


def test_other_providers_are_tried_when_one_refuses_the_credentials() -> None:
    it = fleet(sources=(RENTED, HOSTS), offers=[(0, SMALL), (0, LARGE), (1, None)])
    it.handle(f.Tick(), 0.0)
    assert of(it.handle(f.Refused(1, AuthFailed("no")), 1.0), f.Create) == [f.Create(2, f.Candidate(1, None), 1)]


def test_an_order_whose_reply_was_lost_is_looked_for_and_used() -> None:
    it = fleet()
    it.handle(f.Tick(), 0.0)
    commands = it.handle(f.Refused(1, CloudError("connection reset")), 1.0)
    assert of(commands, f.Look)
    assert not of(commands, f.Create)
    assert it.handle(f.Seen(0, [machine("orphan")]), 2.0) == [f.Begin(0, machine("orphan"))]
    assert it.count == 1


def test_what_a_lost_reply_made_is_destroyed_when_it_shows_too_late() -> None:
    it = fleet()
    it.handle(f.Tick(), 0.0)
    it.handle(f.Refused(1, CloudError("connection reset")), 1.0)
    assert of(it.handle(f.Seen(0, []), 2.0), f.Create)
    it.handle(f.Made(2, [machine("second")]), 101.0)
    assert of(it.handle(f.Seen(0, [machine("first"), machine("second")]), 102.0), f.Destroy) == [
        f.Destroy(0, ["first"])
    ]


def test_after_a_lost_reply_the_end_waits_until_a_look_can_be_trusted() -> None:
    it = fleet()
    it.handle(f.Tick(), 0.0)
    it.handle(f.Refused(1, CloudError("connection reset")), 1.0)
    it.handle(f.Stop(), 2.0)
    it.handle(f.Seen(0, []), 2.0)
    assert not it.done
    assert it.next_tick(2.0) is not None
    assert of(it.handle(f.Tick(), 11.0), f.Look)
    assert it.handle(f.Seen(0, [machine("late")]), 11.5) == [f.Destroy(0, ["late"])]


def test_a_machine_that_never_boots_is_replaced() -> None:
    it = fleet(offers=[(0, SMALL), (0, LARGE)])
    it.handle(f.Tick(), 0.0)
    it.handle(f.Made(1, [machine(state=MachineState.STARTING, endpoint=None)]), 0.0)
    commands = it.handle(f.Tick(), 100.0)
    assert of(commands, f.Destroy) == [f.Destroy(0, ["m1"])]
    assert of(commands, f.Create) == [f.Create(2, f.Candidate(0, LARGE), 1)]


def test_a_machine_that_is_taken_back_is_abandoned() -> None:
    it = fleet()
    it.handle(f.Tick(), 0.0)
    it.handle(f.Made(1, [machine()]), 0.0)
    gone = Machine("m1", None, "m1", state=MachineState.TAKEN_BACK, detail="outbid")
    assert f.Abandon(0, "m1", "outbid") in it.handle(f.Seen(0, [gone]), 30.0)


class World:
    """A cloud that answers in any order, and fails as it is told."""

    def __init__(self, wanted: int, sources: tuple[f.Source, ...]) -> None:
        self.now = 0.0
        self.ids = itertools.count(1)
        self.alive: list[dict[str, float]] = [{} for _ in sources]  # id -> from when it is shown
        self.sources = sources
        offers = [
            (n, offer) for n, source in enumerate(sources) for offer in ((SMALL, LARGE) if source.rented else (None,))
        ]
        self.fleet = fleet(wanted, sources, offers)
        self.wanted = wanted
        self.out: list[f.Command] = []
        self.serving: list[tuple[int, str]] = []
        self.begun: set[tuple[int, str]] = set()
        self.lost_replies = 0
        self.stopping = False
        self.tell(f.Tick())

    def tell(self, event: f.Event) -> None:
        for command in self.fleet.handle(event, self.now):
            if isinstance(command, f.Begin):
                key = (command.source, command.machine.id)
                assert key not in self.begun, "begun twice"
                self.begun.add(key)
                self.serving.append(key)
            elif isinstance(command, f.Abandon):
                self.lose((command.source, command.id))
            elif not isinstance(command, f.Tell):
                if isinstance(command, f.Create):
                    assert not self.stopping, "ordered after Stop"
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
                if how in ("lost", "refused", "auth", "fail"):
                    error = {"refused": NoCapacity("x"), "auth": AuthFailed("x")}.get(how, CloudError("x"))
                    if how == "lost" and source.rented:
                        self.make(candidate.source, count, self.now + 5.0)
                    self.tell(f.Refused(order, error))
                else:
                    made = self.make(candidate.source, count if how != "part" else 1, self.now)
                    self.tell(f.Made(order, [self.shown(candidate.source, id) for id in made]))
            case f.Look(source):
                if how in ("fail", "lost"):
                    self.tell(f.NotSeen(source, CloudError("x")))
                else:
                    shown = [id for id, since in self.alive[source].items() if since <= self.now]
                    self.tell(f.Seen(source, [self.shown(source, id) for id in shown]))
            case f.Destroy(source, ids):
                if how in ("fail", "refused"):
                    self.tell(f.NotDestroyed(source, ids, CloudError("x")))
                else:
                    if how != "lost" or not self.sources[source].rented:  # "lost" says yes and does nothing
                        for id in ids:
                            self.alive[source].pop(id, None)
                    self.tell(f.Destroyed(source, ids))
            case f.Clear(source):
                assert not self.alive[source], "cleared while machines live"
                self.tell(f.NotCleared(source, CloudError("x")) if how == "fail" else f.Cleared(source))

    def make(self, source: int, count: int, shown_from: float) -> list[str]:
        made = [f"m{next(self.ids)}" for _ in range(count)]
        self.alive[source].update(dict.fromkeys(made, shown_from))
        return made

    def shown(self, source: int, id: str) -> Machine:
        return machine(id)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.tell(f.Tick())

    def stop(self) -> None:
        if not self.stopping:
            self.stopping = True
            self.tell(f.Stop())
            for key in list(self.serving):
                self.lose(key)


HOW = st.sampled_from(["well", "well", "well", "part", "lost", "refused", "auth", "fail"])
STEPS = st.one_of(
    st.tuples(st.just("answer"), st.integers(0, 7), HOW),
    st.tuples(st.just("time"), st.sampled_from([0.1, 1.0, 7.0, 61.0, 120.0]), st.none()),
    st.tuples(st.just("lose"), st.integers(0, 7), st.booleans()),
    st.tuples(st.just("vanish"), st.integers(0, 7), st.none()),
)


@pytest.mark.parametrize("sources", [(RENTED,), (HOSTS,), (RENTED, HOSTS), (f.Source("batch", rented=True), RENTED)])
@settings(max_examples=60, deadline=None)
@given(wanted=st.integers(1, 4), steps=st.lists(STEPS, max_size=60))
def test_whatever_happens_nothing_is_left(sources, wanted, steps) -> None:
    world = World(wanted, sources)
    for what, number, how in steps:
        if what == "answer" and world.out:
            world.answer(number, how)
        elif what == "time":
            world.pass_time(number)
        elif what == "lose" and world.serving:
            key = world.serving[number % len(world.serving)]
            world.lose(key, replace=how)
        elif what == "vanish" and world.serving:
            source, id = world.serving[number % len(world.serving)]
            if world.sources[source].rented:
                world.alive[source].pop(id, None)
    world.stop()
    for _ in range(400):
        if world.fleet.done:
            break
        if world.out:
            world.answer(0, "well")
        else:
            due = world.fleet.next_tick(world.now)
            assert due is not None, "stuck"
            world.pass_time(max(0.01, due - world.now))
    assert world.fleet.done
    assert not any(world.alive)


@settings(max_examples=60, deadline=None)
@given(wanted=st.integers(1, 6), answers=st.lists(HOW, max_size=30))
def test_when_providers_are_willing_all_that_is_wanted_comes(wanted, answers) -> None:
    world = World(wanted, (RENTED,))
    for how in answers:
        if world.out:
            world.answer(0, "refused" if how == "auth" else how)
    for _ in range(400):
        if len(world.serving) == wanted:
            break
        if world.out:
            world.answer(0, "well")
        else:
            due = world.fleet.next_tick(world.now)
            assert due is not None, "stuck"
            world.pass_time(max(0.01, due - world.now))
    assert len(world.serving) == wanted
    world.stop()


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
