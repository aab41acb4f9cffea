"""``skyward ls``: machines of ours, anywhere."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from skyward.cli import sources
from skyward.cli.output import age, as_json, money, say, table, tell, waiting
from skyward.core.machines.ledger import Entry, Ledger, PoolEntry
from skyward.core.spec import Machine, MachineState

__all__ = ["Row", "rows", "run"]

_COLUMNS = ("pool", "node", "state", "driver", ">age", ">cost", "provider", "machine", "region", "id")
_DRIVER = {True: "alive", False: "dead", None: "elsewhere"}


@dataclass(frozen=True)
class Row:
    """A machine; or a pool that has none, with `id` None.

    Attributes
    ----------
    state
        What the provider says; "not shown" if it does not know the machine, "?" if it could not be asked.
    age, cost
        Seconds, and US dollars so far; None where the ledger of this computer does not know.
    driver
        Whether the pool's driver is alive; None if it is not of this computer.
    """

    pool: str
    node: str = ""
    provider: str = ""
    id: str | None = None
    machine: str | None = None
    region: str | None = None
    spot: bool | None = None
    state: str = "no machine"
    age: float | None = None
    price: float | None = None
    cost: float | None = None
    driver: bool | None = None


def run(
    provider: sources.NamedProviders = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """List the machines of our pools, also those of drivers that died and of other computers with the same accounts.

    Asked are the providers of the ledger's pools and all that have credentials, or besides the ledger's those named.
    """
    ledger = Ledger()
    pools = ledger.pools()
    asked, others = sources.chosen(provider, pools)
    with waiting(f"asking {', '.join(sorted({str(source) for source in asked}))}"):
        answers = sources.ask(asked, lambda source: source.rental.all_machines())
    for answer in answers:
        if answer.error is not None:
            say(answer.trouble)
        own = {pool.tag for pool in pools}
        ledger.made(str(answer.source), [machine for machine in answer.value or () if machine.tag in own])
    found = rows(pools, ledger.machines(), answers, time.time())
    if json:
        as_json([dataclasses.asdict(row) for row in found])
    elif found:
        table(_COLUMNS, map(_cells, found))
    elif answered := [answer.source for answer in answers if answer.error is None]:
        tell(f"no machines at {sources.places(answered, others)}")
    if any(answer.error is not None for answer in answers):
        raise typer.Exit(1)  # there may be more


def rows(
    pools: Sequence[PoolEntry],
    entries: Iterable[Entry],
    answers: Sequence[sources.Answer[Sequence[Machine]]],
    now: float,
) -> list[Row]:
    """What the ledger and the providers know, in one list, by pool and node."""
    shown = {
        (str(answer.source), machine.id): machine
        for answer in answers
        for machine in answer.value or ()
        if machine.state is not MachineState.GONE
    }
    silent = {str(answer.source) for answer in answers if answer.error is not None}
    drivers = {pool.tag: pool.alive for pool in pools}
    known = {(entry.provider, entry.id): entry for entry in entries if entry.ended is None and entry.tag in drivers}
    found = [_row(key, known.get(key), shown.get(key), silent, drivers, now) for key in {**known, **shown}]
    for pool in pools:
        if not any(row.pool == pool.tag for row in found):
            names = ", ".join(name for name, _ in pool.providers)
            found.append(Row(pool.tag, provider=names, age=now - pool.opened, driver=pool.alive))
    # By the number in a node's name; what has none comes last.
    return sorted(found, key=lambda row: (row.pool, not row.node, len(row.node), row.node, -(row.age or 0.0)))


def _row(
    key: tuple[str, str],
    entry: Entry | None,
    machine: Machine | None,
    silent: set[str],
    drivers: Mapping[str, bool | None],
    now: float,
) -> Row:
    provider, id = key
    state = machine.state.value if machine is not None else "?" if provider in silent else "not shown"
    if entry is None:
        assert machine is not None
        return Row(machine.tag, "", provider, id, state=state, driver=drivers.get(machine.tag))
    return Row(
        *(entry.tag, entry.node, provider, id, entry.machine, entry.region, entry.spot, state),
        *(now - entry.made, entry.price, entry.cost(now), drivers[entry.tag]),
    )


def _cells(row: Row) -> tuple[str, ...]:
    kind = f"{row.machine or '?'}{' spot' if row.spot else ''}" if row.id is not None else "-"
    cost = "-" if row.id is None else money(row.cost)
    return (
        *(row.pool, row.node or "-", row.state, _DRIVER[row.driver], age(row.age), cost),
        *(row.provider, kind, row.region or "-", row.id or "-"),
    )
