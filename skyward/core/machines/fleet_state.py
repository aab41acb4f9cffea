"""What a fleet keeps of each source and of each machine there; fleet.py decides what becomes of it."""

from __future__ import annotations

import enum
import math
from collections import Counter
from dataclasses import dataclass, field

from skyward.core.errors import SkywardError
from skyward.core.machines.fleet_events import Candidate, Event, Source
from skyward.core.machines.refusals import Denials
from skyward.core.spec import MachineId

__all__ = ["OwnedMachine", "Phase", "SourceState", "end", "leaves"]


class Phase(enum.Enum):
    """Of a machine's life."""

    BOOTING = enum.auto()
    SERVING = enum.auto()
    ENDING = enum.auto()


@dataclass(slots=True)
class OwnedMachine:
    """A machine that is ours to end."""

    phase: Phase
    made: float
    candidate: Candidate | None
    since: float = 0.0  # ENDING: when that began, or when the source took the order to destroy
    due: float = 0.0  # ENDING: when to destroy it (again)
    seen: bool = False  # by a look, so that it is missed when a later one does not show it
    missed: int = 0  # looks in a row that did not show it
    asked: bool = False  # ENDING: a Destroy is out
    accepted: bool = False  # ENDING: the source took it
    tries: int = 0

    @property
    def tried(self) -> bool:
        """Whether its source was asked to end it, and has answered."""
        return self.phase is Phase.ENDING and not self.asked and (self.accepted or self.tries > 0)


@dataclass(slots=True)
class SourceState:
    """What the fleet keeps of one source."""

    source: Source
    machines: dict[MachineId, OwnedMachine] = field(default_factory=dict)
    used: bool = False  # something was ordered here, so something may be left here
    uncertain: float | None = None  # when an order failed with unknown outcome; none is placed until a look
    shown_from: float = -math.inf  # a look that begins then surely shows all that orders have made
    bare: float = -math.inf  # when the last look began, if it showed nothing
    lost_replies: int = 0  # orders with unknown outcome in a row
    refusals: Counter[bool] = field(default_factory=Counter)  # of spot machines, and of others, in a row
    denials: Denials = field(default_factory=Denials)
    polling_since: float | None = None
    next_poll: float = -math.inf
    clearing: bool = False
    cleared: bool = False
    next_clear: float = -math.inf
    failures: int = 0  # of looks, or of clearing, in a row
    blind: bool = False  # looks are refused again and again: what is bought here could not be found
    denied: dict[type[Event], float] = field(
        default_factory=dict
    )  # what credentials do not do since Stop: from when on
    given_up: SkywardError | None = None  # why what is left here can't be given back


def end(owned: OwnedMachine, now: float) -> None:
    """It is to be ended from now on."""
    owned.phase, owned.since, owned.due = Phase.ENDING, now, now
    owned.tries = owned.missed = 0


def leaves(state: SourceState) -> bool:
    """Whether something may be left there."""
    return state.used and state.source.rented
