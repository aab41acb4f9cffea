"""What a seed stands for, as data that is drawn first: a pool's shape, its load, and what goes wrong when.

Data can be thinned (`shrink`), read, and kept: each file in the folder `kept` is a scenario that once failed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from tests.simulation.load import Load
from tests.simulation.network import Route

__all__ = ["Edit", "Misfortune", "Scenario", "Wish"]


class Wish(NamedTuple):
    """One task as the user wants it.

    Attributes
    ----------
    number, seconds, end, size, prints, talks
        See `Load`; and with ``"unpicklable"`` it can't be sent.
    at
        When it is submitted: seconds after the pool has started.
    isolated, timeout, attempts
        See `TaskOptions`.
    arrays
        Sizes in bytes of its large arguments; two of the same size are the same array, and an odd size
        makes noise, which can't be compressed.
    cancelled
        Seconds after its submission when it is cancelled; None for never.
    after
        The task whose end it follows, `at` seconds later, or in its callback if that is 0; None for the pool's start.
    group, count
        Which of the scenario's groups it belongs to, and how many calls it consists of, as a batch of joblib's; None
        and 0 for a task of `submit`.
    callback
        What the user's callback of its future does, if there is one: ``"raise"`` or ``"exit"``.
    mutates
        Whether the user changes its arguments as soon as it is submitted.
    node
        Which of the nodes that are ready it must run on, counted round and round; None for any.
    same
        The task that it equals, whose function keeps its results; itself for the first of its kind.
    uses
        Which of the user's modules it refers to, if any.
    """

    number: int
    at: float = 0.0
    seconds: float = 0.0
    end: str = "return"
    size: int = 0
    prints: int = 0
    isolated: bool = True
    timeout: float | None = None
    attempts: int = 1
    arrays: tuple[int, ...] = ()
    cancelled: float | None = None
    after: int | None = None
    group: int | None = None
    count: int = 0
    callback: str = ""
    mutates: bool = False
    talks: int = 0
    node: int | None = None
    same: int | None = None
    uses: int | None = None

    def __str__(self) -> str:
        rest = {name: value for name, value in _unusual(self).items() if name not in ("number", "at")}
        return " ".join([f"{self.number}:", *(f"{name}={value}" for name, value in rest.items())])

    @property
    def load(self) -> Load:
        """What its task does."""
        return Load(
            self.number if self.same is None else self.same, self.seconds, self.end, self.size, self.prints, self.talks
        )


class Edit(NamedTuple):
    """The user edits a module.

    Attributes
    ----------
    module
        Its number.
    at
        When: seconds after the pool has started.
    size
        Bytes that the module has in addition from then on.
    """

    module: int
    at: float = 0.0
    size: int = 0


class Misfortune(NamedTuple):
    """Something that goes wrong.

    Attributes
    ----------
    kind
        Its name in `adversary`.
    at
        Seconds after the pool was ordered.
    which
        Which machine it strikes, of those that run then, counted round and round.
    amount
        How much of it: seconds, or how often, as its kind has it.
    """

    kind: str
    at: float = 0.0
    which: int = 0
    amount: float = 0.0


@dataclass(frozen=True)
class Scenario:
    """What a seed stands for.

    Attributes
    ----------
    seed
        Who runs next, how late, and in which chunks bytes travel, is drawn from it while the scenario runs.
    nodes, slots, isolated
        The pool's: least and most nodes, slots of each, and whether tasks have processes of their own.
    latency, rate, striped, links, channels
        Of the lines to the nodes: see `Route`.
    neighbours
        Share of the pairs of nodes of which the first reaches the second; 0 if none knows of others.
    batch, rented
        Whether the provider creates several machines in one call, and whether they cost money.
    local
        Whether all nodes are on the driver's machine, and open each other's files.
    rests
        Whether the block waits, after its last task, until nothing of them is left.
    limits
        Of the groups, how many tasks may run at a time, as `TaskGroup` has it.
    leaves
        Seconds after the order when the user is interrupted, and leaves the block at once; None for never.
    is_killed, withdraws
        Whether the driver's process is killed then; or whether the user only withdraws what has not begun.
    ends
        Seconds after the block's end when the program ends all the same, as after a second Ctrl-C; None for never.
    budget
        US dollars that rented machines may cost; None for no limit.
    saves
        Whether what tasks write must be saved before they count as done.
    resumes
        Whether results are kept in a file, and the program is run once more when it has ended or was killed.
    gpus, cards
        How many GPUs each slot has, or 1/n; 0 if it has none of its own; and how many each machine has.
    memory
        Bytes of each machine: what has no room there is forgotten, and sent again.
    folder
        Bytes of each file in a folder that every node has before it gets tasks; empty if there is none.
    room, files
        Bytes that each machine's disks take, and how many of the driver's files an agent may have open.
    env
        Whether tasks have environment variables of the user's.
    load
        Seconds between two reports of a node's load; 0 for none.
    market
        What the provider offers: see `MARKETS`.
    hosts
        How many machines of the user's own there are beside the provider's; negative: they are tried last.
    twin
        Whether there is another source that shows the same machines.
    data
        Whether results are read as data.
    wishes, misfortunes, edits
        What the user wants, what goes wrong, and what of the user's own code is edited.
    """

    seed: int
    nodes: tuple[int, int] = (1, 1)
    slots: int = 1
    isolated: bool = True
    latency: float = 0.00005
    rate: float = 1e9
    striped: bool = False
    links: int = 3
    channels: int = 10
    neighbours: float = 0.0
    batch: bool = False
    rented: bool = False
    local: bool = False
    rests: bool = False
    limits: tuple[int | None, ...] = ()
    leaves: float | None = None
    is_killed: bool = False
    withdraws: bool = False
    ends: float | None = None
    budget: float | None = None
    saves: bool = False
    resumes: bool = False
    gpus: float = 0.0
    cards: int = 0
    memory: int = 1 << 34
    folder: tuple[int, ...] = ()
    room: int = 1 << 40
    files: int = 1 << 16
    env: bool = False
    load: float = 15.0
    market: str = ""
    hosts: int = 0
    twin: bool = False
    data: bool = False
    wishes: tuple[Wish, ...] = ()
    misfortunes: tuple[Misfortune, ...] = ()
    edits: tuple[Edit, ...] = ()

    @property
    def route(self) -> Route:
        """What the lines to the nodes are like."""
        return Route(self.latency, self.rate, self.striped, self.links, self.channels)

    @property
    def outage(self) -> float:
        """Seconds for which the provider is out of service: everything may take so much longer."""
        return sum(each.amount for each in self.misfortunes if each.kind == "outage")

    @property
    def has_code(self) -> bool:
        """Whether tasks refer to the user's own modules."""
        return any(wish.uses is not None for wish in self.wishes)

    @property
    def rerun(self) -> Scenario:
        """The program's next run: nothing goes wrong, and some batches have further calls."""
        wishes = tuple(
            wish._replace(count=wish.count * 2) if wish.count and wish.number % 3 == 0 else wish for wish in self.wishes
        )
        return replace(self, leaves=None, ends=None, resumes=False, wishes=wishes, misfortunes=())

    @property
    def is_fair(self) -> bool:
        """Whether all of it can end."""
        groups = all(wish.group is None or wish.group < len(self.limits) for wish in self.wishes)
        known = {wish.number: wish for wish in self.wishes}
        alike = all(
            wish.same is None or (wish.same in known and wish.load == known[wish.same].load) for wish in self.wishes
        )
        return groups and alike and all(wish.timeout is not None for wish in self.wishes if wish.end == "hang")

    def text(self) -> str:
        """It as JSON, one line for each wish and misfortune; what is as usual is left out."""
        shape = {field.name: getattr(self, field.name) for field in fields(self)[:-3]}
        usual = {field.name: field.default for field in fields(self)}
        parts = [f'"{name}": {json.dumps(value)}' for name, value in shape.items() if value != usual[name]]
        for name in ("wishes", "misfortunes", "edits"):
            if items := getattr(self, name):
                lines = ",\n  ".join(json.dumps(_unusual(item)) for item in items)
                parts.append(f'"{name}": [\n  {lines}\n ]')
        return "{" + ",\n ".join(parts) + "}"

    @classmethod
    def read(cls, text: str) -> Scenario:
        """The scenario that such a text describes; what it says under ``"story"`` is for people."""
        given: dict[str, Any] = json.loads(text)
        given.pop("story", None)
        wishes = tuple(Wish(**_tuples(item)) for item in given.pop("wishes", ()))
        misfortunes = tuple(Misfortune(**item) for item in given.pop("misfortunes", ()))
        edits = tuple(Edit(**item) for item in given.pop("edits", ()))
        return cls(**_tuples(given), wishes=wishes, misfortunes=misfortunes, edits=edits)


def _unusual(item: Any) -> dict[str, Any]:
    usual = item._field_defaults
    return {name: value for name, value in item._asdict().items() if name not in usual or value != usual[name]}


def _tuples(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
