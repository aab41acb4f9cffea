"""``skyward ls``: lists the machines of all pools."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from skyward.cli import sources
from skyward.cli.output import age, as_json, money, print_line, say, table, waiting
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
        What the provider reports; "not shown" if it does not know the machine, "?" if it could not be queried.
    age, cost
        Seconds, and US dollars so far; None if this computer's ledger does not know.
    driver
        Whether the pool's driver is alive; None if it runs on another computer.
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
    """List the machines of your pools, including those of dead drivers and of other computers with the same accounts.

    Queries the providers of the pools in the ledger, and those given with --provider, or else all with credentials.
    """
    ledger = Ledger()
    pools = ledger.pools()
    asked, others = sources.chosen(provider, pools)
    with waiting(f"querying {', '.join(sorted({str(source) for source in asked}))}"):
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
        print_line(f"no machines at {sources.places(answered, others)}")
    if any(answer.error is not None for answer in answers):
        raise typer.Exit(1)  # there may be more


def rows(
    pools: Sequence[PoolEntry],
    entries: Iterable[Entry],
    answers: Sequence[sources.Answer[Sequence[Machine]]],
    now: float,
) -> list[Row]:
    """Merge what the ledger and the providers know into one list, sorted by pool and node.

    Parameters
    ----------
    pools
        Open pools in the ledger.
    entries
        Machines in the ledger.
    answers
        The machines that providers list, or their errors.
    now
        The time, in seconds since the epoch.
    """
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
    # By the number in the node's name; rows without a node come last.
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
