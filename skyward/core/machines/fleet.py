"""PURE. Machines wanted and machines seen -> what to order, look at, begin and destroy.

`Fleet.handle` takes an event and the time, and returns commands; whoever carries them out reports back with events. It
keeps these promises whatever order events come in (tests/core/machines/test_fleet.py drives it through all of them):

- Never are more machines ordered and alive than wanted.
- Every machine that was made, or that is seen to carry our tag, is destroyed in the end, and destroyed again until the
  provider no longer shows it. The source where it was ordered does that, though others of its account show it too.
- An order whose fate is unknown is looked for before another is placed; what it made after all is used, or destroyed.
- Machines that fail one after another are not bought for ever, be it that they don't come up or that nothing goes well
  on them.
- What is refused for some offers, be it all spot machines or a region, keeps no other from being tried.
- After `Stop` nothing is ordered, and no source counts as left before a look has shown nothing there. Only one that
  refuses the credentials again and again is given up, and whoever asks is told what is left there.

The life of a machine: ordered -> booting -> serving -> ending -> forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from skyward.core.errors import (
    AuthFailed,
    CloudError,
    NoCapacity,
    ProvisioningError,
    QuotaExceeded,
    RateLimited,
    SkywardError,
)
from skyward.core.machines.fleet_events import (
    Abandon,
    Begin,
    Candidate,
    Clear,
    Cleared,
    Command,
    Create,
    Destroy,
    Destroyed,
    Doubt,
    Event,
    Lost,
    Made,
    NotCleared,
    NotDestroyed,
    NotSeen,
    Poll,
    Ready,
    Refused,
    Report,
    Seen,
    Source,
    Stop,
    Tick,
    Worked,
)
from skyward.core.machines.fleet_state import OwnedMachine, Phase, SourceState, end, leaves
from skyward.core.machines.refusals import reaches
from skyward.core.spec import Machine, MachineId, MachineState

__all__ = ["Fleet"]

_MOST_AT_ONCE = 8  # orders of one machine each that a provider without BATCH gets at the same time
_MOST_REFUSALS = 20  # in a row of a source's spot machines, or of its others, after which those are let rest
_WATCH = 60.0  # seconds between two looks when all machines serve
_BACKOFF = (1.0, 30.0)  # seconds before something that failed is asked again: first, and at most
_RETRY_DESTROY = 15.0  # seconds after which a machine that was destroyed and is still there is destroyed again
_MISSES = 2  # looks that may leave a machine out before it counts as gone
_LOST_REPLIES = 3  # in a row, after which a source is let rest
_TRIES_TOLD = 3  # failures to look or to destroy after which the user is told
_DENIED_FOR = 2.5  # seconds for which credentials may be refused at the end; asked again after 1 and 3
_TRIES = 3  # machines in a row that may fail to come up before those that fail are not replaced any more
_PAUSE = 2.0  # seconds before the next order when a machine could not be used, times the number of failures so far
_REST: dict[type[SkywardError], float] = {NoCapacity: 60.0, QuotaExceeded: 600.0, CloudError: 30.0}
_LONG_REST = 600.0  # for refusals that will hardly be other next time


class Fleet:
    """Decides about the machines of one pool.

    Parameters
    ----------
    sources
        The providers.
    candidates
        Offers in the order in which to try them.
    wanted
        Machines.
    tag
        The pool's; names of orders begin with it.
    """

    def __init__(self, sources: Sequence[Source], candidates: Sequence[Candidate], wanted: int, tag: str) -> None:
        self._states = [SourceState(source) for source in sources]
        self._candidates = list(candidates)
        self._resting: dict[int, float] = {}  # candidate -> until when
        self._tag = tag
        self._orders: dict[str, tuple[int, int]] = {}  # those that are out -> candidate, count
        self._last_order = 0
        self._placed: dict[str, int] = {}  # every order -> the source whose state its machines belong to
        self._wanted = wanted
        self._failures = 0  # machines in a row that did not come up
        self._barren = 0  # those in a row on which nothing went well
        self._pause_until = -math.inf
        self._stopped = math.inf
        self._refusals: list[tuple[int, SkywardError]] = []  # beside each the last order that had been placed then

    def __repr__(self) -> str:
        return f"<Fleet {self.count} of {self._wanted}, {len(self._orders)} orders out>"

    @property
    def _stopping(self) -> bool:
        return self._stopped < math.inf

    @property
    def count(self) -> int:
        """Machines that are ordered, boot or serve."""
        return sum(count for _, count in self._orders.values()) + sum(
            owned.phase is not Phase.ENDING for state in self._states for owned in state.machines.values()
        )

    @property
    def refusals(self) -> list[SkywardError]:
        """Why machines were not had. What was known before an order was placed that did bring some is forgotten."""
        return [error for _, error in self._refusals]

    @property
    def settled(self) -> bool:
        """Nothing more will come by itself now: nothing is out, and all that is wanted is there or was refused."""
        if any(state.uncertain is not None and not state.blind for state in self._states):
            return False
        return not self._orders and (self.count >= self._wanted or self._choice(-math.inf) is None)

    @property
    def done(self) -> bool:
        """After `Stop`: nothing is left anywhere."""
        return (
            self._stopping
            and not self._orders
            and all(
                all(owned.tried for owned in state.machines.values())
                if state.given_up
                else not state.machines and (not leaves(state) or state.cleared)
                for state in self._states
            )
        )

    @property
    def given_up(self) -> list[tuple[str, SkywardError]]:
        """(source's name, why) of those where things may be left that can't be given back."""
        return [(state.source.name, state.given_up) for state in self._states if state.given_up is not None]

    @property
    def waiting(self) -> tuple[int, int, int]:
        """Machines that cost and are no nodes: that are ordered, that boot, that end."""
        rented = [state for state in self._states if state.source.rented]
        orders = [(self._states[self._candidates[number].source], count) for number, count in self._orders.values()]
        phases = [owned.phase for state in rented for owned in state.machines.values()]
        ordered = sum(count for state, count in orders if state.source.rented)
        return ordered, phases.count(Phase.BOOTING), phases.count(Phase.ENDING)

    def left(self) -> list[tuple[str, MachineId]]:
        """(source's name, machine) of what is not known to be gone."""
        return [(state.source.name, id) for state in self._states for id in state.machines]

    def left_price(self) -> float | None:
        """Dollars per hour of what is not known to be gone; None where a price is not known."""
        machines = [owned for state in self._states for owned in state.machines.values()]
        prices = [
            owned.candidate.offer.price if owned.candidate and owned.candidate.offer else None for owned in machines
        ]
        known = [price for price in prices if price is not None]
        return sum(known) if known and len(known) == len(prices) else None

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take an event; what to do about it."""
        commands: list[Command] = []
        if self._stopping:
            self._judge(event, now)
        match event:
            case Made():
                commands += self._made(event, now)
            case Refused():
                commands += self._refused(event, now)
            case Seen():
                commands += self._seen(event, now)
            case NotSeen():
                commands += self._not_seen(event, now)
            case Ready():
                self._failures = 0
            case Lost():
                self._lost(event, now)
            case Worked():
                self._barren = 0
            case Doubt(source):
                self._states[source].next_poll = now
            case Destroyed(source, ids):
                self._destroyed(self._states[source], ids, now)
            case NotDestroyed():
                commands += self._not_destroyed(event, now)
            case Cleared(source):
                self._states[source].clearing, self._states[source].cleared = False, True
            case NotCleared(source):
                state = self._states[source]
                state.clearing, state.next_clear = False, now + self._backoff(state)
            case Stop():
                self._stop(now)
            case Tick():
                pass
        commands += self._overdue(now)
        commands += self._order(now)
        for number, state in enumerate(self._states):
            commands += self._end(number, state, now)
            commands += self._poll(number, state, now)
            commands += self._clear(number, state, now)
        return commands

    def next_tick(self, now: float) -> float | None:
        """When a `Tick` is due at the latest; None if only events can change anything."""
        times = [time for state in self._states for time in self._times(state)]
        if not self._stopping and self.count < self._wanted:
            times += [self._pause_until, *self._resting.values()]
        return min((time for time in times if now < time < math.inf), default=None)

    def _times(self, state: SourceState) -> Iterator[float]:
        if state.given_up is not None:
            return
        if not state.source.rented:
            yield from (owned.due for owned in state.machines.values() if owned.phase is Phase.ENDING)
            return
        if state.used and not state.cleared:
            yield state.next_poll
            yield state.next_clear
            yield state.shown_from
        for owned in state.machines.values():
            yield owned.due if owned.phase is Phase.ENDING else owned.made + state.source.patience

    # --- ordering ---

    def _choice(self, now: float) -> int | None:
        """The candidate to try now: the first; of a source that denies things, what is least like those."""
        free = (number for number in range(len(self._candidates)) if self._is_free(number, now))
        first = next(free, None)
        if first is None:
            return None
        source = self._candidates[first].source
        denials = self._states[source].denials
        if not denials:
            return first
        same = (number for number in free if self._candidates[number].source == source)
        return min([first, *same], key=lambda number: denials.rank(self._candidates[number].offer))

    def _is_free(self, number: int, now: float) -> bool:
        blind = self._states[self._candidates[number].source].blind
        return self._resting.get(number, -math.inf) <= now and not blind

    def _order(self, now: float) -> Iterator[Command]:
        while not self._stopping and self.count < self._wanted and now >= self._pause_until:
            number = self._choice(now)
            if number is None:
                return
            self._resting.pop(number, None)
            candidate = self._candidates[number]
            state = self._states[candidate.source]
            if state.uncertain is not None:
                return  # what the last order made must be known first
            if not state.source.rented and any(owned.phase is Phase.ENDING for owned in state.machines.values()):
                return  # what exists once, such as a host, is given back before it can be had again
            missing = self._wanted - self.count
            if not state.source.batch:
                out = sum(self._candidates[other].source == candidate.source for other, _ in self._orders.values())
                if out >= _MOST_AT_ONCE:
                    return
                missing = 1
            self._last_order += 1
            name = f"{self._tag}-{self._last_order}"
            self._orders[name], self._placed[name] = (number, missing), candidate.source
            state.used = True
            yield Create(name, candidate, missing)

    def _made(self, event: Made, now: float) -> Iterator[Command]:
        number, _ = self._orders.pop(event.order)
        candidate = self._candidates[number]
        state = self._states[candidate.source]
        placed = int(event.order.rpartition("-")[2])
        self._refusals = [refusal for refusal in self._refusals if refusal[0] >= placed]
        state.lost_replies = 0
        state.refusals.clear()
        if not event.machines:
            self._resting[number] = now + _REST[NoCapacity]
        for machine in event.machines:
            yield from self._own(candidate.source, state, machine, candidate, now)
        state.next_poll, state.shown_from = now, now + state.source.listing_delay

    def _refused(self, event: Refused, now: float) -> Iterator[Command]:
        number, count = self._orders.pop(event.order)
        candidate, error = self._candidates[number], event.error
        state = self._states[candidate.source]
        self._refusals.append((self._last_order, error))
        state.refusals[_is_spot(candidate)] += 1
        state.denials.add(error, candidate.offer)
        state.shown_from = now + state.source.listing_delay  # an error in the error map must not cost money
        yield self._refusal(state, candidate, count, error)
        if isinstance(error, CloudError) and not isinstance(error, RateLimited) and state.source.rented:
            state.uncertain, state.next_poll = now, now
            state.lost_replies += 1
            if state.lost_replies < _LOST_REPLIES:
                return  # a look will tell whether it worked after all; if not, it is tried again
        rest = next((seconds for kind, seconds in _REST.items() if isinstance(error, kind)), _LONG_REST)
        enough = state.refusals[_is_spot(candidate)] >= _MOST_REFUSALS
        for other, known in enumerate(self._candidates):
            pointless = enough and _is_spot(known) == _is_spot(candidate)
            pointless = pointless or reaches(error, candidate.offer, known.offer)
            if other == number or (known.source == candidate.source and pointless):
                self._resting[other] = max(self._resting.get(other, now), now + rest)

    def _refusal(self, state: SourceState, candidate: Candidate, count: int, error: SkywardError) -> Report:
        what = f"{candidate.offer}" if candidate.offer else f"{count} node(s)"
        reason = str(error).removeprefix(f"{state.source.name}: ")  # most errors begin so; once is enough
        return Report(f"{state.source.name}: {what}: {reason}", warning=not isinstance(error, NoCapacity))

    def _own(
        self, number: int, state: SourceState, machine: Machine, candidate: Candidate | None, now: float
    ) -> Iterator[Command]:
        """A machine is ours from now on."""
        if machine.id in state.machines:
            return
        self._placed.setdefault(machine.order or machine.id, number)
        owned = state.machines[machine.id] = OwnedMachine(Phase.BOOTING, now, candidate)
        state.cleared = False
        if self._stopping or self.count > self._wanted:
            end(owned, now)
        else:
            yield from self._begin(number, owned, machine)

    def _begin(self, number: int, owned: OwnedMachine, machine: Machine) -> Iterator[Command]:
        if machine.state is MachineState.RUNNING and machine.endpoint is not None:
            owned.phase = Phase.SERVING
            yield Begin(number, machine)

    # --- looking ---

    def _poll(self, number: int, state: SourceState, now: float) -> Iterator[Command]:
        ready = state.source.rented and state.polling_since is None and state.given_up is None
        if ready and now >= state.next_poll and self._must_poll(state, now):
            state.polling_since = now
            yield Poll(number)

    def _must_poll(self, state: SourceState, now: float) -> bool:
        if state.machines or state.uncertain is not None:
            return True
        return self._stopping and state.used and now >= state.shown_from and not self._is_bare(state)

    def _is_bare(self, state: SourceState) -> bool:
        """Whether a look has shown nothing there that began when nothing more could come."""
        return state.bare >= max(self._stopped, state.shown_from)

    def _seen(self, event: Seen, now: float) -> Iterator[Command]:
        state = self._states[event.source]
        since = state.polling_since if state.polling_since is not None else now
        state.polling_since, state.failures, state.blind = None, 0, False
        shown = {machine.id: machine for machine in event.machines}
        left = [machine for machine in event.machines if machine.state is not MachineState.GONE]
        state.bare = -math.inf if left else since
        for id, owned in list(state.machines.items()):
            yield from self._compare(event.source, state, id, owned, shown.get(id), since, now)
        for machine in left:
            if self._is_at(machine, event.source):
                yield from self._own(event.source, state, machine, None, now)
        if state.uncertain is not None and since >= state.uncertain:
            state.uncertain = None
        calm = not self._stopping and all(
            owned.phase is Phase.SERVING and not owned.missed for owned in state.machines.values()
        )
        state.next_poll = now + (_WATCH if calm and state.uncertain is None else state.source.poll)

    def _is_at(self, machine: Machine, source: int) -> bool:
        """Whether a machine that a look shows is for this source to use or to end.

        Another one of the same account may show it as well. If its order is out, then the reply will tell; if not, the
        reply was lost. Of a machine whose order nobody knows the first who shows it takes care.
        """
        name = machine.order or machine.id
        out = [self._candidates[number].source for number, _ in self._orders.values()]
        return self._placed.get(name, None if source in out else source) == source and name not in self._orders

    def _not_seen(self, event: NotSeen, now: float) -> Iterator[Command]:
        state = self._states[event.source]
        state.polling_since, state.next_poll = None, now + self._backoff(state)
        if state.failures == _TRIES_TOLD:
            yield Report(f"{state.source.name}: can't see its machines: {event.error}; trying on", warning=True)
        if state.failures >= _TRIES_TOLD and isinstance(event.error, AuthFailed) and not state.blind:
            state.blind = True
            self._refusals.append((self._last_order, event.error))
            for owned in state.machines.values():
                if owned.phase is Phase.BOOTING:  # nobody will tell its address
                    end(owned, now)

    def _compare(
        self,
        number: int,
        state: SourceState,
        id: MachineId,
        owned: OwnedMachine,
        shown: Machine | None,
        since: float,
        now: float,
    ) -> Iterator[Command]:
        """What a look says of one machine of ours."""
        if shown is not None:
            owned.seen, owned.missed = True, 0
        elif not owned.seen and since < owned.made + state.source.listing_delay:
            return  # too young to be missed
        if owned.phase is Phase.ENDING:
            owned.missed += shown is None and owned.accepted and since >= owned.since
            if owned.missed >= _MISSES or (shown is not None and shown.state is MachineState.GONE):
                del state.machines[id]
            elif shown is not None and owned.accepted and now >= owned.since + _RETRY_DESTROY:
                owned.accepted, owned.due = False, now
            return
        if shown is None and owned.missed < _MISSES:
            owned.missed += 1  # an API's servers need not all know the same at once
            return
        if shown is not None and shown.state in (MachineState.STARTING, MachineState.RUNNING):
            if owned.phase is Phase.BOOTING:
                yield from self._begin(number, owned, shown)
            return
        reason = "it is not there any more" if shown is None else shown.detail or shown.state.value
        if owned.phase is Phase.SERVING:
            yield Abandon(number, id, reason)
        else:
            yield from self._give_up(state, id, owned, reason, now)

    def _give_up(
        self, state: SourceState, id: MachineId, owned: OwnedMachine, reason: str, now: float
    ) -> Iterator[Command]:
        """A machine that never got to serve."""
        error = ProvisioningError(f"{state.source.name}: {id} did not come up: {reason}")
        self._refusals.append((self._last_order, error))
        if owned.candidate is not None:  # until others have had their time to fail, and were counted
            self._resting[self._candidates.index(owned.candidate)] = now + state.source.patience + _REST[NoCapacity]
        end(owned, now)
        self._failed()
        yield Report(str(error), warning=True)

    def _failed(self) -> None:
        """A machine did not come up; whether or not it had an address, it may be all of them that do not."""
        self._failures += 1
        if self._failures >= _TRIES and not self._stopping:
            self._wanted -= 1

    def _overdue(self, now: float) -> Iterator[Command]:
        for state in self._states:
            for id, owned in state.machines.items():
                if owned.phase is Phase.BOOTING and now >= owned.made + state.source.patience:
                    reason = f"it had no address after {state.source.patience:g} s"
                    yield from self._give_up(state, id, owned, reason, now)

    # --- ending ---

    def _stop(self, now: float) -> None:
        self._stopped, self._wanted = now, 0
        for state in self._states:
            state.next_poll = min(state.next_poll, now + state.source.poll if state.machines else now)
            state.failures = 0
            for owned in state.machines.values():
                if owned.phase is Phase.BOOTING:
                    end(owned, now)
                elif owned.phase is Phase.ENDING and not owned.accepted and not owned.asked:
                    owned.due, owned.tries = now, 0

    def _judge(self, event: Event, now: float) -> None:
        """Give a source up that refuses credentials at the end: nobody renews them while the block waits."""
        match event:
            case NotSeen(source, error) | NotDestroyed(source, _, error) | NotCleared(source, error):
                state = self._states[source]
                if not (isinstance(error, AuthFailed) and state.source.rented):
                    state.denied.pop(type(event), None)
                elif now >= state.denied.setdefault(type(event), now) + _DENIED_FOR:
                    state.given_up = state.given_up or error
            case Seen(source):
                self._states[source].denied.pop(NotSeen, None)
            case Destroyed(source):
                self._states[source].denied.pop(NotDestroyed, None)
            case _:
                pass

    def _lost(self, event: Lost, now: float) -> None:
        owned = self._states[event.source].machines.get(event.id)
        if owned is None or owned.phase is Phase.ENDING:
            return
        end(owned, now)
        if event.served:
            self._failures = 0
        self._barren += event.barren
        useless = event.barren and self._barren >= _TRIES
        if (useless or not event.replace) and not self._stopping:
            self._wanted -= 1
        elif not event.served:
            self._failed()
        self._pause_until = max(self._pause_until, now + _PAUSE * max(self._failures, self._barren))

    def _end(self, number: int, state: SourceState, now: float) -> Iterator[Command]:
        ids = [
            id
            for id, owned in state.machines.items()
            if owned.phase is Phase.ENDING
            and not owned.asked
            and now >= owned.due
            # Where looks are refused, ending may be allowed all the same.
            and not (state.given_up and owned.tried)
        ]
        for id in ids:
            state.machines[id].asked = True
        if ids:
            yield Destroy(number, ids)

    def _destroyed(self, state: SourceState, ids: Sequence[MachineId], now: float) -> None:
        for id in ids:
            owned = state.machines.get(id)
            if owned is None:
                continue
            if state.source.rented:  # until a look confirms it
                owned.asked, owned.accepted, owned.due, owned.since = False, True, math.inf, now
                state.next_poll = min(state.next_poll, now + min(1.0, state.source.poll))
            else:
                del state.machines[id]

    def _not_destroyed(self, event: NotDestroyed, now: float) -> Iterator[Command]:
        state = self._states[event.source]
        for id in event.ids:
            owned = state.machines.get(id)
            if owned is None:
                continue
            first, most = _BACKOFF
            owned.asked, owned.due = False, now + min(most, first * 2**owned.tries)
            owned.tries += 1
            if owned.tries == _TRIES_TOLD:
                text = f"{state.source.name}: {id} can't be given back: {event.error}"
                if not state.source.rented:  # it costs nothing, and there is nobody to ask whether it is gone
                    del state.machines[id]
                yield Report(f"{text}; trying on" if state.source.rented else text, warning=True)

    def _clear(self, number: int, state: SourceState, now: float) -> Iterator[Command]:
        ready = self._is_bare(state) and not state.machines and not self._orders and state.given_up is None
        if ready and leaves(state) and not state.cleared and not state.clearing and now >= state.next_clear:
            state.clearing = True
            yield Clear(number)

    def _backoff(self, state: SourceState) -> float:
        first, most = _BACKOFF
        state.failures += 1
        return float(min(most, first * 2 ** (state.failures - 1)))


def _is_spot(candidate: Candidate) -> bool:
    return candidate.offer is not None and candidate.offer.spot
