"""What a fleet is told, and what it wants done: events and commands, nothing that decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, Union

from skyward.core.errors import SkywardError
from skyward.core.spec import Machine, MachineId, Offer

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
    "Lost",
    "Made",
    "NotCleared",
    "NotDestroyed",
    "NotSeen",
    "Poll",
    "Ready",
    "Refused",
    "Report",
    "Seen",
    "Source",
    "Stop",
    "Tick",
    "Worked",
]

# --- what it is told --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Source:
    """What the fleet must know of a provider.

    Attributes
    ----------
    name
        For messages.
    batch
        Whether one order may be for several machines.
    rented
        Whether machines take time to boot, must be looked at, and anything may be left behind.
    patience, settle, poll
        Seconds: until a machine must have an address; until what was made is surely shown; between two looks.
    """

    name: str
    batch: bool = True
    rented: bool = False
    patience: float = 900.0
    listing_delay: float = 10.0
    poll: float = 3.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """One offer of one source; `offer` is None where the source makes none."""

    source: int
    offer: Offer | None


@dataclass(frozen=True, slots=True)
class Made:
    """An order was carried out, perhaps in part."""

    order: str
    machines: Sequence[Machine]


@dataclass(frozen=True, slots=True)
class Refused:
    """An order failed. With a CloudError (but RateLimited) it is not known whether anything was made."""

    order: str
    error: SkywardError


@dataclass(frozen=True, slots=True)
class Seen:
    """A look's result: all machines of ours that the source shows."""

    source: int
    machines: Sequence[Machine]


@dataclass(frozen=True, slots=True)
class NotSeen:
    """A look failed."""

    source: int
    error: SkywardError


@dataclass(frozen=True, slots=True)
class Ready:
    """A machine that was begun has come up: its node takes tasks."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A machine that was begun is of no use any more.

    Attributes
    ----------
    served
        Whether its node was ready before.
    replace
        Whether another one is wanted.
    barren
        Its node was ready, and nothing that it was given went well.
    """

    source: int
    id: MachineId
    served: bool = True
    replace: bool = True
    barren: bool = False


@dataclass(frozen=True, slots=True)
class Worked:
    """A task had its result from some node since this was last said: what is bought is not bought in vain."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """Something seems to be wrong with a machine of the source: a look may tell."""

    source: int


@dataclass(frozen=True, slots=True)
class Destroyed:
    """The source took the order to destroy."""

    source: int
    ids: Sequence[MachineId]


@dataclass(frozen=True, slots=True)
class NotDestroyed:
    """It did not."""

    source: int
    ids: Sequence[MachineId]
    error: SkywardError


@dataclass(frozen=True, slots=True)
class Cleared:
    """Nothing with our tag is left at the source."""

    source: int


@dataclass(frozen=True, slots=True)
class NotCleared:
    """Something is."""

    source: int
    error: SkywardError


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Stop:
    """No machine is wanted any more. Those that serve are given up by a `Lost` each."""


Event: TypeAlias = Union[
    Made, Refused, Seen, NotSeen, Ready, Lost, Worked, Doubt, Destroyed, NotDestroyed, Cleared, NotCleared, Tick, Stop
]


# --- what it wants done -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Create:
    """Order machines, under the name `order`; report `Made` or `Refused`."""

    order: str
    candidate: Candidate
    count: int


@dataclass(frozen=True, slots=True)
class Poll:
    """List what carries our tag; report `Seen` or `NotSeen`."""

    source: int


@dataclass(frozen=True, slots=True)
class Begin:
    """The machine has an address: connect to it; report `Lost` when it is of no use any more."""

    source: int
    machine: Machine


@dataclass(frozen=True, slots=True)
class Abandon:
    """The provider says that a machine which serves has ended; report `Lost` soon."""

    source: int
    id: MachineId
    reason: str


@dataclass(frozen=True, slots=True)
class Destroy:
    """End machines; report `Destroyed` or `NotDestroyed`."""

    source: int
    ids: Sequence[MachineId]


@dataclass(frozen=True, slots=True)
class Clear:
    """Remove what else carries our tag; report `Cleared` or `NotCleared`."""

    source: int


@dataclass(frozen=True, slots=True)
class Report:
    """Something for the user to read."""

    text: str
    warning: bool = False


Command: TypeAlias = Union[Create, Poll, Begin, Abandon, Destroy, Clear, Report]
