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
    Look,
    Lost,
    Made,
    NotCleared,
    NotDestroyed,
    NotSeen,
    Ready,
    Refused,
    Seen,
    Source,
    Stop,
    Tell,
    Tick,
    Worked,
)
from skyward.core.machines.fleet_state import Claim, Desk, Phase, end, leaves
from skyward.core.machines.refusals import reaches
from skyward.core.spec import Machine, MachineId, MachineState

__all__ = [
    "Abandon",
    "Begin",
    "Candidate",
    "Clear",
    "Cleared",
    "Command",
    "Create",
    "Destroy",
    "Destroyed",
    "Doubt",
    "Event",
    "Fleet",
    "Look",
    "Lost",
    "Made",
    "NotCleared",
    "NotDestroyed",
    "NotSeen",
    "Ready",
    "Refused",
    "Seen",
    "Source",
    "Stop",
    "Tell",
    "Tick",
    "Worked",
]

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
        self._desks = [Desk(source) for source in sources]
        self._candidates = list(candidates)
        self._resting: dict[int, float] = {}  # candidate -> until when
        self._tag = tag
        self._orders: dict[str, tuple[int, int]] = {}  # those that are out -> candidate, count
        self._last_order = 0
        self._placed: dict[str, int] = {}  # every order -> the source whose desk its machines belong to
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
            claim.phase is not Phase.ENDING for desk in self._desks for claim in desk.claims.values()
        )

    @property
    def refusals(self) -> list[SkywardError]:
        """Why machines were not had. What was known before an order was placed that did bring some is forgotten."""
        return [error for _, error in self._refusals]

    @property
    def ordering(self) -> bool:
        """Whether an order is out."""
        return bool(self._orders)

    @property
    def settled(self) -> bool:
        """Nothing more will come by itself now: nothing is out, and all that is wanted is there or was refused."""
        if any(desk.uncertain is not None and not desk.blind for desk in self._desks):
            return False
        return not self._orders and (self.count >= self._wanted or self._choice(-math.inf) is None)

    @property
    def done(self) -> bool:
        """After `Stop`: nothing is left anywhere."""
        return (
            self._stopping
            and not self._orders
            and all(
                all(claim.tried for claim in desk.claims.values())
                if desk.given_up
                else not desk.claims and (not leaves(desk) or desk.cleared)
                for desk in self._desks
            )
        )

    @property
    def given_up(self) -> list[tuple[str, SkywardError]]:
        """(source's name, why) of those where things may be left that can't be given back."""
        return [(desk.source.name, desk.given_up) for desk in self._desks if desk.given_up is not None]

    @property
    def waiting(self) -> tuple[int, int, int]:
        """Machines that cost and are no nodes: that are ordered, that boot, that end."""
        rented = [desk for desk in self._desks if desk.source.rented]
        orders = [(self._desks[self._candidates[number].source], count) for number, count in self._orders.values()]
        phases = [claim.phase for desk in rented for claim in desk.claims.values()]
        ordered = sum(count for desk, count in orders if desk.source.rented)
        return ordered, phases.count(Phase.BOOTING), phases.count(Phase.ENDING)

    def left(self) -> list[tuple[str, MachineId]]:
        """(source's name, machine) of what is not known to be gone."""
        return [(desk.source.name, id) for desk in self._desks for id in desk.claims]

    def left_price(self) -> float | None:
        """Dollars per hour of what is not known to be gone; None where a price is not known."""
        claims = [claim for desk in self._desks for claim in desk.claims.values()]
        prices = [
            claim.candidate.offer.price if claim.candidate and claim.candidate.offer else None for claim in claims
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
                self._desks[source].next_look = now
            case Destroyed(source, ids):
                self._destroyed(self._desks[source], ids, now)
            case NotDestroyed():
                commands += self._not_destroyed(event, now)
            case Cleared(source):
                self._desks[source].clearing, self._desks[source].cleared = False, True
            case NotCleared(source):
                desk = self._desks[source]
                desk.clearing, desk.next_clear = False, now + self._backoff(desk)
            case Stop():
                self._stop(now)
            case Tick():
                pass
        commands += self._overdue(now)
        commands += self._order(now)
        for number, desk in enumerate(self._desks):
            commands += self._end(number, desk, now)
            commands += self._look(number, desk, now)
            commands += self._clear(number, desk, now)
        return commands

    def next_tick(self, now: float) -> float | None:
        """When a `Tick` is due at the latest; None if only events can change anything."""
        times = [time for desk in self._desks for time in self._times(desk)]
        if not self._stopping and self.count < self._wanted:
            times += [self._pause_until, *self._resting.values()]
        return min((time for time in times if now < time < math.inf), default=None)

    def _times(self, desk: Desk) -> Iterator[float]:
        if desk.given_up is not None:
            return
        if not desk.source.rented:
            yield from (claim.due for claim in desk.claims.values() if claim.phase is Phase.ENDING)
            return
        if desk.used and not desk.cleared:
            yield desk.next_look
            yield desk.next_clear
            yield desk.shown_from
        for claim in desk.claims.values():
            yield claim.due if claim.phase is Phase.ENDING else claim.made + desk.source.patience

    # --- ordering ---

    def _choice(self, now: float) -> int | None:
        """The candidate to try now: the first; of a source that denies things, what is least like those."""
        free = (number for number in range(len(self._candidates)) if self._is_free(number, now))
        first = next(free, None)
        if first is None:
            return None
        source = self._candidates[first].source
        denials = self._desks[source].denials
        if not denials:
            return first
        same = (number for number in free if self._candidates[number].source == source)
        return min([first, *same], key=lambda number: denials.rank(self._candidates[number].offer))

    def _is_free(self, number: int, now: float) -> bool:
        blind = self._desks[self._candidates[number].source].blind
        return self._resting.get(number, -math.inf) <= now and not blind

    def _order(self, now: float) -> Iterator[Command]:
        while not self._stopping and self.count < self._wanted and now >= self._pause_until:
            number = self._choice(now)
            if number is None:
                return
            self._resting.pop(number, None)
            candidate = self._candidates[number]
            desk = self._desks[candidate.source]
            if desk.uncertain is not None:
                return  # what the last order made must be known first
            if not desk.source.rented and any(claim.phase is Phase.ENDING for claim in desk.claims.values()):
                return  # what exists once, such as a host, is given back before it can be had again
            missing = self._wanted - self.count
            if not desk.source.batch:
                out = sum(self._candidates[other].source == candidate.source for other, _ in self._orders.values())
                if out >= _MOST_AT_ONCE:
                    return
                missing = 1
            self._last_order += 1
            name = f"{self._tag}-{self._last_order}"
            self._orders[name], self._placed[name] = (number, missing), candidate.source
            desk.used = True
            yield Create(name, candidate, missing)

    def _made(self, event: Made, now: float) -> Iterator[Command]:
        number, _ = self._orders.pop(event.order)
        candidate = self._candidates[number]
        desk = self._desks[candidate.source]
        placed = int(event.order.rpartition("-")[2])
        self._refusals = [refusal for refusal in self._refusals if refusal[0] >= placed]
        desk.lost_replies = 0
        desk.refusals.clear()
        if not event.machines:
            self._resting[number] = now + _REST[NoCapacity]
        for machine in event.machines:
            yield from self._claim(candidate.source, desk, machine, candidate, now)
        desk.next_look, desk.shown_from = now, now + desk.source.settle

    def _refused(self, event: Refused, now: float) -> Iterator[Command]:
        number, count = self._orders.pop(event.order)
        candidate, error = self._candidates[number], event.error
        desk = self._desks[candidate.source]
        self._refusals.append((self._last_order, error))
        desk.refusals[_is_spot(candidate)] += 1
        desk.denials.add(error, candidate.offer)
        desk.shown_from = now + desk.source.settle  # an error in the error map must not cost money
        yield self._told(desk, candidate, count, error)
        if isinstance(error, CloudError) and not isinstance(error, RateLimited) and desk.source.rented:
            desk.uncertain, desk.next_look = now, now
            desk.lost_replies += 1
            if desk.lost_replies < _LOST_REPLIES:
                return  # a look will tell whether it worked after all; if not, it is tried again
        rest = next((seconds for kind, seconds in _REST.items() if isinstance(error, kind)), _LONG_REST)
        enough = desk.refusals[_is_spot(candidate)] >= _MOST_REFUSALS
        for other, known in enumerate(self._candidates):
            pointless = enough and _is_spot(known) == _is_spot(candidate)
            pointless = pointless or reaches(error, candidate.offer, known.offer)
            if other == number or (known.source == candidate.source and pointless):
                self._resting[other] = max(self._resting.get(other, now), now + rest)

    def _told(self, desk: Desk, candidate: Candidate, count: int, error: SkywardError) -> Tell:
        what = f"{candidate.offer}" if candidate.offer else f"{count} node(s)"
        reason = str(error).removeprefix(f"{desk.source.name}: ")  # most errors begin so; once is enough
        return Tell(f"{desk.source.name}: {what}: {reason}", warning=not isinstance(error, NoCapacity))

    def _claim(
        self, number: int, desk: Desk, machine: Machine, candidate: Candidate | None, now: float
    ) -> Iterator[Command]:
        """A machine is ours from now on."""
        if machine.id in desk.claims:
            return
        self._placed.setdefault(machine.order or machine.id, number)
        claim = desk.claims[machine.id] = Claim(Phase.BOOTING, now, candidate)
        desk.cleared = False
        if self._stopping or self.count > self._wanted:
            end(claim, now)
        else:
            yield from self._begin(number, claim, machine)

    def _begin(self, number: int, claim: Claim, machine: Machine) -> Iterator[Command]:
        if machine.state is MachineState.RUNNING and machine.endpoint is not None:
            claim.phase = Phase.SERVING
            yield Begin(number, machine)

    # --- looking ---

    def _look(self, number: int, desk: Desk, now: float) -> Iterator[Command]:
        ready = desk.source.rented and desk.looking_since is None and desk.given_up is None
        if ready and now >= desk.next_look and self._must_look(desk, now):
            desk.looking_since = now
            yield Look(number)

    def _must_look(self, desk: Desk, now: float) -> bool:
        if desk.claims or desk.uncertain is not None:
            return True
        return self._stopping and desk.used and now >= desk.shown_from and not self._is_bare(desk)

    def _is_bare(self, desk: Desk) -> bool:
        """Whether a look has shown nothing there that began when nothing more could come."""
        return desk.bare >= max(self._stopped, desk.shown_from)

    def _seen(self, event: Seen, now: float) -> Iterator[Command]:
        desk = self._desks[event.source]
        since = desk.looking_since if desk.looking_since is not None else now
        desk.looking_since, desk.failures, desk.blind = None, 0, False
        shown = {machine.id: machine for machine in event.machines}
        left = [machine for machine in event.machines if machine.state is not MachineState.GONE]
        desk.bare = -math.inf if left else since
        for id, claim in list(desk.claims.items()):
            yield from self._compare(event.source, desk, id, claim, shown.get(id), since, now)
        for machine in left:
            if self._is_at(machine, event.source):
                yield from self._claim(event.source, desk, machine, None, now)
        if desk.uncertain is not None and since >= desk.uncertain:
            desk.uncertain = None
        calm = not self._stopping and all(
            claim.phase is Phase.SERVING and not claim.missed for claim in desk.claims.values()
        )
        desk.next_look = now + (_WATCH if calm and desk.uncertain is None else desk.source.poll)

    def _is_at(self, machine: Machine, source: int) -> bool:
        """Whether a machine that a look shows is for this source to use or to end.

        Another one of the same account may show it as well. If its order is out, then the reply will tell; if not, the
        reply was lost. Of a machine whose order nobody knows the first who shows it takes care.
        """
        name = machine.order or machine.id
        out = [self._candidates[number].source for number, _ in self._orders.values()]
        return self._placed.get(name, None if source in out else source) == source and name not in self._orders

    def _not_seen(self, event: NotSeen, now: float) -> Iterator[Command]:
        desk = self._desks[event.source]
        desk.looking_since, desk.next_look = None, now + self._backoff(desk)
        if desk.failures == _TRIES_TOLD:
            yield Tell(f"{desk.source.name}: can't see its machines: {event.error}; trying on", warning=True)
        if desk.failures >= _TRIES_TOLD and isinstance(event.error, AuthFailed) and not desk.blind:
            desk.blind = True
            self._refusals.append((self._last_order, event.error))
            for claim in desk.claims.values():
                if claim.phase is Phase.BOOTING:  # nobody will tell its address
                    end(claim, now)

    def _compare(
        self, number: int, desk: Desk, id: MachineId, claim: Claim, shown: Machine | None, since: float, now: float
    ) -> Iterator[Command]:
        """What a look says of one machine of ours."""
        if shown is not None:
            claim.seen, claim.missed = True, 0
        elif not claim.seen and since < claim.made + desk.source.settle:
            return  # too young to be missed
        if claim.phase is Phase.ENDING:
            claim.missed += shown is None and claim.accepted and since >= claim.since
            if claim.missed >= _MISSES or (shown is not None and shown.state is MachineState.GONE):
                del desk.claims[id]
            elif shown is not None and claim.accepted and now >= claim.since + _RETRY_DESTROY:
                claim.accepted, claim.due = False, now
            return
        if shown is None and claim.missed < _MISSES:
            claim.missed += 1  # an API's servers need not all know the same at once
            return
        if shown is not None and shown.state in (MachineState.STARTING, MachineState.RUNNING):
            if claim.phase is Phase.BOOTING:
                yield from self._begin(number, claim, shown)
            return
        reason = "it is not there any more" if shown is None else shown.detail or shown.state.value
        if claim.phase is Phase.SERVING:
            yield Abandon(number, id, reason)
        else:
            yield from self._give_up(desk, id, claim, reason, now)

    def _give_up(self, desk: Desk, id: MachineId, claim: Claim, reason: str, now: float) -> Iterator[Command]:
        """A machine that never got to serve."""
        error = ProvisioningError(f"{desk.source.name}: {id} did not come up: {reason}")
        self._refusals.append((self._last_order, error))
        if claim.candidate is not None:  # until others have had their time to fail, and were counted
            self._resting[self._candidates.index(claim.candidate)] = now + desk.source.patience + _REST[NoCapacity]
        end(claim, now)
        self._failed()
        yield Tell(str(error), warning=True)

    def _failed(self) -> None:
        """A machine did not come up; whether or not it had an address, it may be all of them that do not."""
        self._failures += 1
        if self._failures >= _TRIES and not self._stopping:
            self._wanted -= 1

    def _overdue(self, now: float) -> Iterator[Command]:
        for desk in self._desks:
            for id, claim in desk.claims.items():
                if claim.phase is Phase.BOOTING and now >= claim.made + desk.source.patience:
                    reason = f"it had no address after {desk.source.patience:g} s"
                    yield from self._give_up(desk, id, claim, reason, now)

    # --- ending ---

    def _stop(self, now: float) -> None:
        self._stopped, self._wanted = now, 0
        for desk in self._desks:
            desk.next_look = min(desk.next_look, now + desk.source.poll if desk.claims else now)
            desk.failures = 0
            for claim in desk.claims.values():
                if claim.phase is Phase.BOOTING:
                    end(claim, now)
                elif claim.phase is Phase.ENDING and not claim.accepted and not claim.asked:
                    claim.due, claim.tries = now, 0

    def _judge(self, event: Event, now: float) -> None:
        """Give a source up that refuses credentials at the end: nobody renews them while the block waits."""
        match event:
            case NotSeen(source, error) | NotDestroyed(source, _, error) | NotCleared(source, error):
                desk = self._desks[source]
                if not (isinstance(error, AuthFailed) and desk.source.rented):
                    desk.denied.pop(type(event), None)
                elif now >= desk.denied.setdefault(type(event), now) + _DENIED_FOR:
                    desk.given_up = desk.given_up or error
            case Seen(source):
                self._desks[source].denied.pop(NotSeen, None)
            case Destroyed(source):
                self._desks[source].denied.pop(NotDestroyed, None)
            case _:
                pass

    def _lost(self, event: Lost, now: float) -> None:
        claim = self._desks[event.source].claims.get(event.id)
        if claim is None or claim.phase is Phase.ENDING:
            return
        end(claim, now)
        if event.served:
            self._failures = 0
        self._barren += event.barren
        useless = event.barren and self._barren >= _TRIES
        if (useless or not event.replace) and not self._stopping:
            self._wanted -= 1
        elif not event.served:
            self._failed()
        self._pause_until = max(self._pause_until, now + _PAUSE * max(self._failures, self._barren))

    def _end(self, number: int, desk: Desk, now: float) -> Iterator[Command]:
        ids = [
            id
            for id, claim in desk.claims.items()
            if claim.phase is Phase.ENDING
            and not claim.asked
            and now >= claim.due
            # Where looks are refused, ending may be allowed all the same.
            and not (desk.given_up and claim.tried)
        ]
        for id in ids:
            desk.claims[id].asked = True
        if ids:
            yield Destroy(number, ids)

    def _destroyed(self, desk: Desk, ids: Sequence[MachineId], now: float) -> None:
        for id in ids:
            claim = desk.claims.get(id)
            if claim is None:
                continue
            if desk.source.rented:  # until a look confirms it
                claim.asked, claim.accepted, claim.due, claim.since = False, True, math.inf, now
                desk.next_look = min(desk.next_look, now + min(1.0, desk.source.poll))
            else:
                del desk.claims[id]

    def _not_destroyed(self, event: NotDestroyed, now: float) -> Iterator[Command]:
        desk = self._desks[event.source]
        for id in event.ids:
            claim = desk.claims.get(id)
            if claim is None:
                continue
            first, most = _BACKOFF
            claim.asked, claim.due = False, now + min(most, first * 2**claim.tries)
            claim.tries += 1
            if claim.tries == _TRIES_TOLD:
                text = f"{desk.source.name}: {id} can't be given back: {event.error}"
                if not desk.source.rented:  # it costs nothing, and there is nobody to ask whether it is gone
                    del desk.claims[id]
                yield Tell(f"{text}; trying on" if desk.source.rented else text, warning=True)

    def _clear(self, number: int, desk: Desk, now: float) -> Iterator[Command]:
        ready = self._is_bare(desk) and not desk.claims and not self._orders and desk.given_up is None
        if ready and leaves(desk) and not desk.cleared and not desk.clearing and now >= desk.next_clear:
            desk.clearing = True
            yield Clear(number)

    def _backoff(self, desk: Desk) -> float:
        first, most = _BACKOFF
        desk.failures += 1
        return float(min(most, first * 2 ** (desk.failures - 1)))


def _is_spot(candidate: Candidate) -> bool:
    return candidate.offer is not None and candidate.offer.spot
