"""What a fleet keeps of each source and of its machines there, and what each source needs done next. Pure.

Decisions that concern all sources (how many machines, which offer) are made in `fleet`.
"""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from skyward.core.errors import AuthFailed, SkywardError
from skyward.core.machines.budget import Terms
from skyward.core.machines.fleet_events import (
    Candidate,
    Clear,
    Command,
    Destroy,
    Destroyed,
    Event,
    NotCleared,
    NotDestroyed,
    NotSeen,
    Poll,
    Report,
    Seen,
    Source,
)
from skyward.core.machines.refusals import Denials
from skyward.core.spec import MachineId

__all__ = ["REPORT_AFTER", "OwnedMachine", "Phase", "SourceState"]

REPORT_AFTER = 3
"""Failures in a row, of a poll or of a termination, after which the user is warned."""

_BACKOFF = (1.0, 30.0)  # seconds before a failed call is retried: first, and max
_DENIED_FOR = 2.5  # seconds for which credentials may be refused after Shutdown; retried after 1 and 3


class Phase(enum.Enum):
    """Where in its life a machine is."""

    BOOTING = enum.auto()  # ordered, and without an address as yet
    BEGUN = enum.auto()  # being prepared, or a node already; `Lost` tells when it is of no more use
    ENDING = enum.auto()  # to be terminated, until no poll shows it


@dataclass(slots=True)
class OwnedMachine:
    """A machine that the fleet must terminate in the end."""

    phase: Phase
    made: float
    candidate: Candidate | None
    terms: Terms | None = None  # None: without a budget
    spent: bool = False  # its share of the budget
    since: float = 0.0  # ENDING: when that began, or when the source accepted the request to terminate it
    due: float = 0.0  # ENDING: when to terminate it (again)
    seen: bool = False  # in some poll, so that it counts as missed when a later one does not show it
    missed: int = 0  # consecutive polls that did not show it
    asked: bool = False  # ENDING: a Destroy is out
    accepted: bool = False  # ENDING: the source accepted it
    tries: int = 0

    @property
    def tried(self) -> bool:
        """Whether its source was asked to terminate it, and has answered."""
        return self.phase is Phase.ENDING and not self.asked and (self.accepted or self.tries > 0)

    def end(self, now: float) -> None:
        """Mark it for termination."""
        self.phase, self.since, self.due = Phase.ENDING, now, now
        self.tries = self.missed = 0


@dataclass(slots=True)
class SourceState:
    """What the fleet keeps of one source, and the commands that this source needs."""

    number: int
    source: Source
    machines: dict[MachineId, OwnedMachine] = field(default_factory=dict)
    used: bool = False  # something was ordered here, so something may be left here
    uncertain: float | None = None  # when an order failed with unknown outcome; no other is placed until a poll
    doubtful: list[tuple[int, Terms]] = field(default_factory=list)  # such orders: how many machines, on which terms
    shown_from: float = -math.inf  # a poll that begins then surely shows all that orders have made
    bare: float = -math.inf  # when the last poll began, if it showed nothing
    lost_replies: int = 0  # orders with unknown outcome in a row
    refusals: Counter[bool] = field(default_factory=Counter)  # in a row, of spot machines (True) and of others
    denials: Denials = field(default_factory=Denials)
    polling_since: float | None = None
    next_poll: float = -math.inf
    clearing: bool = False
    cleared: bool = False
    next_clear: float = -math.inf
    failures: int = 0  # of polls, or of clearing, in a row
    blind: bool = False  # polls keep being refused: what is ordered here could not be found
    denied: dict[type[Event], float] = field(default_factory=dict)  # kind of failure -> since when, after Shutdown
    given_up: SkywardError | None = None  # why what is left here can't be terminated

    @property
    def may_hold_things(self) -> bool:
        """Whether something that carries our tag may be there."""
        return self.used and self.source.rented

    @property
    def done(self) -> bool:
        """Whether nothing is left there, or nothing more can be done about it."""
        if self.given_up:
            return all(owned.tried for owned in self.machines.values())
        return not self.machines and (not self.may_hold_things or self.cleared)

    def backoff(self) -> float:
        """Count a failure; seconds until the retry."""
        first, longest = _BACKOFF
        self.failures += 1
        return float(min(longest, first * 2 ** (self.failures - 1)))

    def due_times(self) -> Iterator[float]:
        """When something may have to be done here."""
        if self.given_up is not None:
            return
        if not self.source.rented:
            yield from (owned.due for owned in self.machines.values() if owned.phase is Phase.ENDING)
            return
        if self.used and not self.cleared:
            yield self.next_poll
            yield self.next_clear
            yield self.shown_from
        for owned in self.machines.values():
            yield owned.due if owned.phase is Phase.ENDING else owned.made + self.source.patience

    def poll_at(self, now: float) -> None:
        """Poll at the next opportunity: something seems to be wrong there."""
        self.next_poll = now

    # --- commands ---

    def poll(self, now: float, stopped: float) -> Iterator[Command]:
        """List the machines, if that is due. `stopped`: when the fleet was stopped; infinity if it was not."""
        idle = self.source.rented and self.polling_since is None and self.given_up is None
        if idle and now >= self.next_poll and self._must_poll(now, stopped):
            self.polling_since = now
            yield Poll(self.number)

    def _must_poll(self, now: float, stopped: float) -> bool:
        if self.machines or self.uncertain is not None or self.doubtful:
            return True
        return stopped < math.inf and self.used and now >= self.shown_from and not self._is_bare(stopped)

    def _is_bare(self, stopped: float) -> bool:
        """Whether a poll that began when nothing more could appear has shown nothing."""
        return self.bare >= max(stopped, self.shown_from)

    def destroy(self, now: float) -> Iterator[Command]:
        """Terminate the machines for which that is due."""
        ids = [
            id
            for id, owned in self.machines.items()
            if owned.phase is Phase.ENDING
            and not owned.asked
            and now >= owned.due
            # Where polls are refused, terminating may be allowed all the same.
            and not (self.given_up and owned.tried)
        ]
        for id in ids:
            self.machines[id].asked = True
        if ids:
            yield Destroy(self.number, ids)

    def clear(self, now: float, stopped: float) -> Iterator[Command]:
        """Remove what else carries the tag, once no machine is left. Not to be called while an order is out."""
        ready = self._is_bare(stopped) and not self.machines and self.given_up is None
        if ready and self.may_hold_things and not self.cleared and not self.clearing and now >= self.next_clear:
            self.clearing = True
            yield Clear(self.number)

    # --- answers ---

    def destroyed(self, ids: Sequence[MachineId], now: float) -> None:
        """The source has accepted a `Destroy`; machines that are rented count as there until a poll confirms it."""
        for id in ids:
            owned = self.machines.get(id)
            if owned is None:
                continue
            if self.source.rented:
                owned.asked, owned.accepted, owned.due, owned.since = False, True, math.inf, now
                self.next_poll = min(self.next_poll, now + min(1.0, self.source.poll))
            else:
                del self.machines[id]

    def not_destroyed(self, ids: Sequence[MachineId], error: SkywardError, now: float) -> Iterator[Command]:
        """Retry later what could not be terminated.

        Parameters
        ----------
        ids, error
            Which machines, and why.
        now
            The time.
        """
        first, longest = _BACKOFF
        for id in ids:
            owned = self.machines.get(id)
            if owned is None:
                continue
            owned.asked, owned.due = False, now + min(longest, first * 2**owned.tries)
            owned.tries += 1
            if owned.tries == REPORT_AFTER:
                text = f"{self.source.name}: {id} can't be terminated: {error}"
                if not self.source.rented:  # it costs nothing, and there is no way to tell whether it is gone
                    del self.machines[id]
                yield Report(f"{text}; retrying" if self.source.rented else text, warning=True)

    def is_cleared(self) -> None:
        """Nothing that carries the tag is left."""
        self.clearing, self.cleared = False, True

    def not_cleared(self, now: float) -> None:
        """Retry later."""
        self.clearing, self.next_clear = False, now + self.backoff()

    def stop(self, now: float) -> None:
        """Machines are no longer wanted: those that boot are terminated, those begun are lost one by one."""
        self.next_poll = min(self.next_poll, now + self.source.poll if self.machines else now)
        self.failures = 0
        for owned in self.machines.values():
            if owned.phase is Phase.BOOTING:
                owned.end(now)
            elif owned.phase is Phase.ENDING and not owned.accepted and not owned.asked:
                owned.due, owned.tries = now, 0

    def judge(self, event: Event, now: float) -> None:
        """After `Shutdown`, give up a source that refuses the credentials: nobody renews them while the block waits."""
        match event:
            case NotSeen(source, error) | NotDestroyed(source, _, error) | NotCleared(source, error) if (
                source == self.number
            ):
                if not (isinstance(error, AuthFailed) and self.source.rented):
                    self.denied.pop(type(event), None)
                elif now >= self.denied.setdefault(type(event), now) + _DENIED_FOR:
                    self.given_up = self.given_up or error
            case Seen(source) if source == self.number:
                self.denied.pop(NotSeen, None)
            case Destroyed(source) if source == self.number:
                self.denied.pop(NotDestroyed, None)
            case _:
                pass
