"""Decides what to order, poll, begin and terminate, from the machines that are wanted and those that exist. Pure.

`Fleet.handle` takes an event and the time, and returns commands; whoever carries them out reports back with events. It
keeps these promises in whatever order events come (tests/core/machines/test_fleet.py drives it through all of them):

- There are never more machines ordered and alive than wanted.
- Every machine that was made, or that is seen to carry our tag, is terminated in the end, and terminated again until
  the provider no longer shows it. The source that ordered it does so, even if others of its account show it too.
- An order whose outcome is unknown is looked for before another is placed; what it did make is used, or terminated.
- Machines that fail one after another are not replaced for ever, whether they do not come up or no task succeeds there.
- With a budget, all machines that were ever ordered may together run for no longer than it pays for, even if nobody is
  left who terminates them: see `budget`.
- An offer that is refused, be it all spot machines or a whole region, keeps no other from being tried.
- After `Shutdown` nothing is ordered, and a source counts as empty only once a poll has shown nothing there. Only a
  source that keeps refusing the credentials is given up, and `left` reports what is there.

The life of a machine: ordered -> booting -> begun -> ending -> forgotten. What each source needs done is in
`fleet_state`, which offer to order next in `order_book`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from skyward.core.errors import (
    AuthFailed,
    CloudError,
    NoCapacity,
    ProvisioningError,
    RateLimited,
    SkywardError,
)
from skyward.core.machines.budget import Budget
from skyward.core.machines.fleet_events import (
    Abandon,
    Begin,
    CameUp,
    Candidate,
    Cleared,
    Command,
    Destroyed,
    Doubt,
    Event,
    Exhausted,
    Lost,
    Made,
    NotCleared,
    NotDestroyed,
    NotSeen,
    Refused,
    Report,
    Seen,
    Shutdown,
    Source,
    Tick,
    Worked,
)
from skyward.core.machines.fleet_state import REPORT_AFTER, OwnedMachine, Phase, SourceState
from skyward.core.machines.order_book import NO_CAPACITY_REST, OrderBook, is_spot
from skyward.core.machines.purse import Purse
from skyward.core.machines.refusals import without_name
from skyward.core.spec import Machine, MachineId, MachineState

__all__ = ["Fleet", "Left"]

_MAX_AT_ONCE = 8  # concurrent orders, of one machine each, at a provider without BATCH
_CALM_POLL = 60.0  # seconds between two polls when all machines have begun
_RETRY_DESTROY = 15.0  # seconds after which a machine that was terminated and is still there is terminated again
_MISSES = 2  # polls in a row that must not show a machine before it counts as gone
_LOST_REPLIES = 3  # in a row, after which the offer rests
_TRIES = 3  # machines in a row that may fail to come up; further ones that fail are not replaced
_PAUSE = 2.0  # seconds before the next order after a machine could not be used, times the number of failures so far


@dataclass(frozen=True, slots=True)
class Left:
    """What is not known to be gone.

    Attributes
    ----------
    machines
        (source's name, machine) of each.
    price
        US dollars per hour of all of them; None where any price is unknown.
    given_up
        (source's name, why) of the sources where nothing can be terminated from now on.
    """

    machines: Sequence[tuple[str, MachineId]]
    price: float | None
    given_up: Sequence[tuple[str, SkywardError]]


class Fleet:
    """Decides about the machines of one pool.

    Parameters
    ----------
    sources
        The providers.
    candidates
        Offers in the order in which to try them.
    wanted
        How many machines.
    tag
        The pool's; names of orders begin with it.
    budget
        What the pool may spend; None: as much as it takes.

    Attributes
    ----------
    purse
        Pays for the machines.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        candidates: Sequence[Candidate],
        wanted: int,
        tag: str,
        budget: Budget | None = None,
    ) -> None:
        self._states = [SourceState(number, source) for number, source in enumerate(sources)]
        self._orders = OrderBook(candidates, tag)
        self._wanted = wanted
        self.purse = Purse(budget, self._states, self._orders)
        self._failures = 0  # machines in a row that did not come up
        self._barren = 0  # nodes in a row on which no task succeeded
        self._pause_until = -math.inf
        self._stopped = math.inf
        self._handlers: dict[type, Callable[[Any, float], Iterator[Command] | None]] = {
            Made: self._made,
            Refused: self._refused,
            Seen: self._seen,
            NotSeen: self._not_seen,
            CameUp: self._succeeded,
            Lost: self._lost,
            Worked: self._succeeded,
            Doubt: lambda event, now: self._states[event.source].poll_at(now),
            Destroyed: lambda event, now: self._states[event.source].destroyed(event.ids, now),
            NotDestroyed: lambda event, now: self._states[event.source].not_destroyed(event.ids, event.error, now),
            Cleared: lambda event, _: self._states[event.source].is_cleared(),
            NotCleared: lambda event, now: self._states[event.source].not_cleared(now),
            Shutdown: self._stop,
            Tick: lambda *_: None,
        }

    def __repr__(self) -> str:
        return f"<Fleet {self.count} of {self._wanted}, {len(self._orders.out)} orders out>"

    @property
    def _stopping(self) -> bool:
        return self._stopped < math.inf

    @property
    def count(self) -> int:
        """Machines that are ordered, boot or have begun."""
        return self._orders.count + sum(
            owned.phase is not Phase.ENDING for state in self._states for owned in state.machines.values()
        )

    @property
    def refusals(self) -> list[SkywardError]:
        """Why machines could not be provisioned; refusals older than the last successful order are forgotten."""
        return self._orders.refusals

    @property
    def settled(self) -> bool:
        """Whether no more machines will come by themselves: no order is out, and all wanted are there or refused."""
        if any(state.uncertain is not None and not state.blind for state in self._states):
            return False
        if self._orders.out:
            return False
        return self.count >= self._wanted or (self._choice(-math.inf) is None and not self.purse.is_waiting)

    @property
    def done(self) -> bool:
        """Whether, after `Shutdown`, nothing is left anywhere."""
        return self._stopping and not self._orders.out and all(state.done for state in self._states)

    @property
    def waiting(self) -> tuple[int, int, int]:
        """Rented machines that are not nodes: being ordered, booting, and ending."""
        rented = [state for state in self._states if state.source.rented]
        phases = [owned.phase for state in rented for owned in state.machines.values()]
        candidates, out = self._orders.candidates, self._orders.out.values()
        ordered = sum(count for number, count in out if self._states[candidates[number].source].source.rented)
        return ordered, phases.count(Phase.BOOTING), phases.count(Phase.ENDING)

    def left(self) -> Left:
        """What is not known to be gone."""
        owned = [one for state in self._states for one in state.machines.values()]
        prices = [one.candidate.offer.price if one.candidate and one.candidate.offer else None for one in owned]
        known = [price for price in prices if price is not None]
        return Left(
            [(state.source.name, id) for state in self._states for id in state.machines],
            sum(known) if known and len(known) == len(prices) else None,
            [(state.source.name, state.given_up) for state in self._states if state.given_up is not None],
        )

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take an event, and decide what to do about it.

        Parameters
        ----------
        event
            What happened.
        now
            The time in seconds, of any clock that does not go back.

        Returns
        -------
        list of Command
            To be carried out in this order.
        """
        self.purse.now = now
        if self._stopping:
            for state in self._states:
                state.judge(event, now)
        commands = list(self._handlers[type(event)](event, now) or ())
        commands += self._overdue(now)
        if not self._stopping:
            spent = list(self.purse.give_up())
            if any(isinstance(command, Exhausted) for command in spent):
                self._wanted = 0
            commands += spent
        commands += self._order(now)
        for state in self._states:
            commands += state.destroy(now)
            commands += state.poll(now, self._stopped)
            if not self._orders.out:
                commands += state.clear(now, self._stopped)
        return commands

    def next_tick(self, now: float) -> float | None:
        """When a `Tick` is due at the latest; None if only events can change anything."""
        times = [time for state in self._states for time in state.due_times()]
        if not self._stopping and self.count < self._wanted:
            times += [self._pause_until, *self._orders.due_times]
        times += self.purse.due_times
        return min((time for time in times if now < time < math.inf), default=None)

    # --- ordering ---

    def _order(self, now: float) -> Iterator[Command]:
        while not self._stopping and self.count < self._wanted and now >= self._pause_until:
            missing = self._wanted - self.count
            choice = self._choice(now)
            if choice is None:
                payable = self.purse.payable(missing, self.count)
                if payable == missing or self.purse.is_waiting:
                    return  # a candidate that can be paid for rests, or there will be more money
                reason = self.purse.refuse(missing)
                yield Report(reason, warning=True)
                self._wanted = self.count + payable
                if not self._wanted:
                    yield Exhausted(reason)
                continue
            number, count = choice
            candidate = self._orders.wake(number)
            state = self._states[candidate.source]
            if state.uncertain is not None:
                return  # what the last order made must be known first
            if not state.source.rented and any(owned.phase is Phase.ENDING for owned in state.machines.values()):
                return  # what exists once, such as a host, must be released before it can be used again
            if not state.source.batch and self._orders.out_at(candidate.source) >= _MAX_AT_ONCE:
                return
            terms = self.purse.terms(candidate, count)
            state.used = True
            yield self._orders.place(number, count if state.source.batch else 1, terms)

    def _choice(self, now: float) -> tuple[int, int] | None:
        """The candidate to try now, if any, and how many machines to make of it; see `OrderBook.choice`."""
        missing = self._wanted - self.count
        number = self._orders.choice(self._states, now, lambda candidate: self.purse.pays(candidate, missing))
        if number is not None:
            return number, missing
        count = self.purse.fewer(self._orders.free(self._states, now), missing, self.count)
        number = self._orders.choice(self._states, now, lambda candidate: self.purse.pays(candidate, count))
        return None if number is None or not count else (number, count)

    def _made(self, event: Made, now: float) -> Iterator[Command]:
        candidate = self._orders.made(event.order, event.machines, now)
        state = self._states[candidate.source]
        state.lost_replies = 0
        state.refusals.clear()
        for machine in event.machines:
            yield from self._own(state, machine, candidate, now)
        state.next_poll, state.shown_from = now, now + state.source.listing_delay

    def _refused(self, event: Refused, now: float) -> Iterator[Command]:
        error = event.error
        number, count = self._orders.refused(event.order, error)
        candidate = self._orders.candidates[number]
        state, spot = self._states[candidate.source], is_spot(candidate)
        state.refusals[spot] += 1
        state.denials.add(error, candidate.offer)
        state.shown_from = now + state.source.listing_delay  # a gap in the error map must not cost money
        what = f"{candidate.offer}" if candidate.offer else f"{count} node(s)"
        reason = without_name(error, state.source.name)
        yield Report(f"{state.source.name}: {what}: {reason}", warning=not isinstance(error, NoCapacity))
        if isinstance(error, CloudError) and not isinstance(error, RateLimited) and state.source.rented:
            state.uncertain, state.next_poll = now, now
            state.lost_replies += 1
            self.purse.doubt(state, event.order, count)
            if state.lost_replies < _LOST_REPLIES:
                return  # a poll will show whether it worked after all; if not, it is tried again
        self._orders.rest(number, error, state.refusals[spot], now)

    def _own(self, state: SourceState, machine: Machine, candidate: Candidate | None, now: float) -> Iterator[Command]:
        """Count a machine as ours from now on."""
        if machine.id in state.machines:
            return
        self._orders.placed.setdefault(machine.order or machine.id, state.number)
        terms = self._orders.terms.get(machine.order)
        owned = state.machines[machine.id] = OwnedMachine(Phase.BOOTING, now, candidate, terms)
        state.cleared = False
        if self._stopping or self.count > self._wanted:
            owned.end(now)
        else:
            yield from _begin(state, owned, machine)

    # --- polling ---

    def _seen(self, event: Seen, now: float) -> Iterator[Command]:
        state = self._states[event.source]
        since = state.polling_since if state.polling_since is not None else now
        state.polling_since, state.failures, state.blind = None, 0, False
        shown = {machine.id: machine for machine in event.machines}
        left = [machine for machine in event.machines if machine.state is not MachineState.GONE]
        state.bare = -math.inf if left else since
        for id in list(state.machines):
            yield from self._compare(state, id, shown.get(id), since, now)
        for machine in left:
            owner = self._orders.owner(machine)
            if owner not in (None, event.source) and self._states[owner].given_up is not None:
                self._states[owner].machines.pop(machine.id, None)  # which can't terminate it any more
            elif not self._orders.belongs_to(machine, event.source):
                continue
            yield from self._own(state, machine, None, now)
        if state.uncertain is not None and since >= state.uncertain:
            state.uncertain = None
        self.purse.settle_doubts(state, since)
        calm = not self._stopping and all(
            owned.phase is Phase.BEGUN and not owned.missed for owned in state.machines.values()
        )
        state.next_poll = now + (
            _CALM_POLL if calm and state.uncertain is None and not state.doubtful else state.source.poll
        )

    def _not_seen(self, event: NotSeen, now: float) -> Iterator[Command]:
        state = self._states[event.source]
        state.polling_since, state.next_poll = None, now + state.backoff()
        if state.failures == REPORT_AFTER:
            yield Report(f"{state.source.name}: can't list its machines: {event.error}; retrying", warning=True)
        if state.failures >= REPORT_AFTER and isinstance(event.error, AuthFailed) and not state.blind:
            state.blind = True
            self._orders.note(event.error)
            for owned in state.machines.values():
                if owned.phase is Phase.BOOTING:  # its address will never be known
                    owned.end(now)

    def _compare(
        self, state: SourceState, id: MachineId, shown: Machine | None, since: float, now: float
    ) -> Iterator[Command]:
        """Update what is known of one machine of ours after a poll that began at `since`."""
        owned = state.machines[id]
        if shown is not None:
            owned.seen, owned.missed = True, 0
        elif not owned.seen and since < owned.made + state.source.listing_delay:
            return  # too young to be missed
        if owned.phase is Phase.ENDING:
            owned.missed += shown is None and owned.accepted and since >= owned.since
            if owned.missed >= _MISSES or (shown is not None and shown.state is MachineState.GONE):
                del state.machines[id]
                self.purse.gone(owned)
            elif shown is not None and owned.accepted and now >= owned.since + _RETRY_DESTROY:
                owned.accepted, owned.due = False, now
            return
        if shown is None and owned.missed < _MISSES:
            owned.missed += 1  # an API's servers need not all know the same at once
            return
        if shown is not None and shown.state in (MachineState.STARTING, MachineState.RUNNING):
            if owned.phase is Phase.BOOTING:
                yield from _begin(state, owned, shown)
            return
        reason = "it no longer exists" if shown is None else shown.detail or shown.state.value
        if owned.phase is Phase.BEGUN:
            yield Abandon(state.number, id, reason)
        else:
            yield from self._give_up(state, id, reason, now)

    def _give_up(self, state: SourceState, id: MachineId, reason: str, now: float) -> Iterator[Command]:
        """Terminate a machine that never had an address."""
        error = ProvisioningError(f"{state.source.name}: {id} did not come up: {reason}")
        owned = state.machines[id]
        if owned.candidate is not None:  # until others like it have had time to fail, and have been counted
            self._orders.rest_until(owned.candidate, now + state.source.patience + NO_CAPACITY_REST)
        owned.end(now)
        self._orders.note(error, lasting=self._failed())  # nothing that happens later makes up for it
        yield Report(str(error), warning=True)

    def _failed(self) -> bool:
        """Count a machine that did not come up; with or without an address, all of its kind may fail.

        Returns whether one machine fewer is wanted from now on.
        """
        self._failures += 1
        gives_up = self._failures >= _TRIES and not self._stopping
        self._wanted -= gives_up
        return gives_up

    def _overdue(self, now: float) -> Iterator[Command]:
        for state in self._states:
            for id, owned in state.machines.items():
                if owned.phase is Phase.BOOTING and now >= owned.made + state.source.patience:
                    reason = f"it had no address after {state.source.patience:g} s"
                    yield from self._give_up(state, id, reason, now)

    # --- nodes, and the end ---

    def _succeeded(self, event: CameUp | Worked, _now: float) -> None:
        if isinstance(event, CameUp):
            self._failures = 0
        else:
            self._barren = 0

    def _lost(self, event: Lost, now: float) -> None:
        owned = self._states[event.source].machines.get(event.id)
        if owned is None or owned.phase is Phase.ENDING:
            return
        owned.end(now)
        if event.served:
            self._failures = 0
        self._barren += event.barren
        useless = event.barren and self._barren >= _TRIES
        if (useless or not event.replace) and not self._stopping:
            self._wanted -= 1
        elif not event.served:
            self._failed()
        self._pause_until = max(self._pause_until, now + _PAUSE * max(self._failures, self._barren))

    def _stop(self, _event: Shutdown, now: float) -> None:
        self._stopped, self._wanted = now, 0
        for state in self._states:
            state.stop(now)


def _begin(state: SourceState, owned: OwnedMachine, machine: Machine) -> Iterator[Command]:
    """Connect to a machine once it has an address."""
    if machine.state is MachineState.RUNNING and machine.endpoint is not None:
        owned.phase = Phase.BEGUN
        yield Begin(state.number, machine)
