"""Events that a fleet takes and commands that it returns: values, no decisions. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, Union

from skyward.core.errors import SkywardError
from skyward.core.spec import Machine, MachineId, Offer

__all__ = [
    "Abandon",
    "Begin",
    "CameUp",
    "Candidate",
    "Clear",
    "Cleared",
    "Command",
    "Create",
    "Destroy",
    "Destroyed",
    "Doubt",
    "Event",
    "Exhausted",
    "Lost",
    "Made",
    "NotCleared",
    "NotDestroyed",
    "NotSeen",
    "Poll",
    "Refused",
    "Report",
    "Seen",
    "Shutdown",
    "Source",
    "Tick",
    "Worked",
]

# --- events -----------------------------------------------------------------------------------------------------------


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
        Whether machines cost money, take time to boot, must be polled, and may leave things behind.
    patience
        Seconds within which a machine must have an address.
    listing_delay
        Seconds after which a poll surely shows what was created.
    poll
        Seconds between two polls of machines that boot or end.
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
    """An order failed. With a `CloudError` other than `RateLimited` it is not known whether anything was made."""

    order: str
    error: SkywardError


@dataclass(frozen=True, slots=True)
class Seen:
    """A poll succeeded: `machines` are all that the source shows with our tag."""

    source: int
    machines: Sequence[Machine]


@dataclass(frozen=True, slots=True)
class NotSeen:
    """A poll failed."""

    source: int
    error: SkywardError


@dataclass(frozen=True, slots=True)
class CameUp:
    """A machine that was begun has come up: its node is ready for tasks."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A machine that was begun is no longer of use.

    Attributes
    ----------
    served
        Whether its node was ready before.
    replace
        Whether another one should take its place.
    barren
        Whether its node was ready, and no task succeeded there.
    """

    source: int
    id: MachineId
    served: bool = True
    replace: bool = True
    barren: bool = False


@dataclass(frozen=True, slots=True)
class Worked:
    """Some node has completed a task since the last `Worked`, so the machines work."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """Something seems to be wrong with a machine of the source; a poll may show what."""

    source: int


@dataclass(frozen=True, slots=True)
class Destroyed:
    """The source accepted a `Destroy`."""

    source: int
    ids: Sequence[MachineId]


@dataclass(frozen=True, slots=True)
class NotDestroyed:
    """The source did not accept a `Destroy`."""

    source: int
    ids: Sequence[MachineId]
    error: SkywardError


@dataclass(frozen=True, slots=True)
class Cleared:
    """Nothing that carries our tag is left at the source."""

    source: int


@dataclass(frozen=True, slots=True)
class NotCleared:
    """Something that carries our tag could not be removed yet."""

    source: int
    error: SkywardError


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Machines are no longer wanted. A `Lost` follows for each that was begun."""


Event: TypeAlias = Union[
    Made,
    Refused,
    Seen,
    NotSeen,
    CameUp,
    Lost,
    Worked,
    Doubt,
    Destroyed,
    NotDestroyed,
    Cleared,
    NotCleared,
    Tick,
    Shutdown,
]


# --- commands ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Create:
    """Order machines, under the name `order`; report `Made` or `Refused`. Each may run for `seconds`, if set."""

    order: str
    candidate: Candidate
    count: int
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Poll:
    """List what carries our tag; report `Seen` or `NotSeen`."""

    source: int


@dataclass(frozen=True, slots=True)
class Begin:
    """Connect to a machine that has an address now; report `Lost` when it is no longer of use."""

    source: int
    machine: Machine


@dataclass(frozen=True, slots=True)
class Abandon:
    """Give up a machine that was begun, since it has ended or must not cost more; report `Lost` soon.

    With `blameless`, what runs there loses none of its attempts.
    """

    source: int
    id: MachineId
    reason: str
    blameless: bool = False


@dataclass(frozen=True, slots=True)
class Destroy:
    """Terminate machines; report `Destroyed` or `NotDestroyed`."""

    source: int
    ids: Sequence[MachineId]


@dataclass(frozen=True, slots=True)
class Clear:
    """Remove what else carries our tag; report `Cleared` or `NotCleared`."""

    source: int


@dataclass(frozen=True, slots=True)
class Exhausted:
    """The pool's money is spent: no machine will run any more, which fails the tasks that are left."""

    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """Show the user a line."""

    text: str
    warning: bool = False


Command: TypeAlias = Union[Create, Poll, Begin, Abandon, Destroy, Clear, Exhausted, Report]
