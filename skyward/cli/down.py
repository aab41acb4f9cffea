"""``skyward down``: terminates what pools have left, found by the ledger and by the tags of the machines themselves."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from skyward.cli import sources
from skyward.cli.output import print_line, say, waiting
from skyward.core.errors import ConfigError
from skyward.core.machines.ledger import Ledger, PoolEntry
from skyward.core.machines.sweep import sweep
from skyward.core.spec import Machine, MachineId, MachineState

__all__ = ["run"]

_PARALLEL = 8  # pools
_TAG = re.compile(r"sky-\d+-\d+-[0-9a-f]{6}")


@dataclass(frozen=True)
class _Target:
    """A pool, and where it may have left something."""

    tag: str
    places: Sequence[sources.ProviderSource]
    entry: PoolEntry | None

    @property
    def is_orphan(self) -> bool:
        """Whether its driver is known to be dead."""
        return self.entry is not None and self.entry.alive is False

    @property
    def warning(self) -> str:
        if self.entry is None or self.entry.alive is None:
            return f"{self.tag} belongs to another computer: its driver may be alive"
        return f"the driver of {self.tag} (process {self.entry.pid}) is alive: the work of its nodes will be lost"


def run(
    pool: Annotated[str | None, typer.Argument(help="The pool's name, or its beginning; see `skyward ls`.")] = None,
    all: Annotated[bool, typer.Option("--all", help="All pools, on this computer and others.")] = False,
    provider: sources.NamedProviders = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask, even if a pool's driver may be alive.")] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Drop machines from the ledger that no provider shows.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=1, help="How long to keep retrying, in seconds.")] = 600.0,
) -> None:
    """Terminate the machines of a pool, or of all pools, and remove everything else tagged with the pool's name."""
    if (pool is not None) is all:
        raise typer.BadParameter("give the name of a pool, or --all", param_hint="POOL")
    ledger = Ledger()
    entries = {entry.tag: entry for entry in ledger.pools(all=True)}
    chosen = sources.named(provider or ())
    asked, others = sources.chosen(
        provider, [entry for entry in entries.values() if entry.closed is None or entry.tag == pool]
    )
    with waiting("looking for machines"):
        answers = sources.ask(asked, lambda source: source.rental.all_machines())
    for answer in answers:
        if answer.error is not None:
            say(answer.trouble)
    known = _targets(entries, answers)
    targets = list(known.values()) if pool is None else [_the_one(pool, known, entries, chosen)]
    if not targets and not any(answer.error for answer in answers):
        print_line(f"nothing is left at {sources.places(asked, others)}")
        return
    _confirm([target.warning for target in targets if not target.is_orphan], yes)
    try:
        done = sources.at_once(lambda target: _end(ledger, target, timeout, forget), targets, _PARALLEL)
    except KeyboardInterrupt:
        say("the rest stays in the ledger; run the command again")
        raise
    # With --all, a provider that could not be queried may have machines of pools unknown here.
    if False in done or (all and any(answer.error is not None for answer in answers)):
        raise typer.Exit(1)


def _targets(
    entries: Mapping[str, PoolEntry], answers: Iterable[sources.Answer[Sequence[Machine]]]
) -> dict[str, _Target]:
    """All pools that are open, or that have machines at a provider."""
    places = {tag: sources.of_pool(entry) for tag, entry in entries.items() if entry.closed is None}
    own = {(tag, source.key) for tag, theirs in places.items() for source in theirs}
    shown = [
        (machine, answer.source)
        for answer in answers
        for machine in answer.value or ()
        if machine.state is not MachineState.GONE
    ]
    # Sources with different settings may show the same machines: the pool's own terminates them, or else the first.
    shown.sort(key=lambda pair: (pair[0].tag, pair[1].key) not in own)
    taken: set[tuple[str, MachineId]] = set()
    for machine, source in shown:
        if (str(source), machine.id) not in taken:
            taken.add((str(source), machine.id))
            places.setdefault(machine.tag, []).append(source)
    return {tag: _Target(tag, places[tag], entries.get(tag)) for tag in sorted(places)}


def _the_one(
    text: str,
    targets: Mapping[str, _Target],
    entries: Mapping[str, PoolEntry],
    chosen: Sequence[sources.ProviderSource],
) -> _Target:
    """The named pool, even if it seems to have left nothing, as long as it is known which providers to query."""
    if text in targets:
        target = targets[text]
        return _Target(text, [*target.places, *chosen], target.entry)
    if alike := [tag for tag in targets if tag.startswith(text)]:
        if len(alike) > 1:
            raise ConfigError(f"{text!r} is ambiguous; use one of {', '.join(alike)}")
        return targets[alike[0]]
    entry = entries.get(text)
    # Only a full name: other resources of the pool are found by having it as a prefix.
    if entry is not None or (chosen and _TAG.fullmatch(text)):
        return _Target(text, [*(sources.of_pool(entry) if entry else ()), *chosen], entry)
    raise ConfigError(
        f"no pool named {text!r}; there are: {', '.join(targets) or 'none'}. For a pool of another computer, give its "
        "full name, and say where it was with --provider"
    )


def _confirm(warnings: Sequence[str], yes: bool) -> None:
    if not warnings or yes:
        return
    for warning in warnings:
        say(warning)
    try:
        sure = typer.confirm("Terminate its machines?" if len(warnings) == 1 else "Terminate all of them?", err=True)
    except typer.Abort:  # nobody is there to answer
        raise ConfigError("no answer, so nothing was terminated; use --yes to skip the question") from None
    if not sure:
        raise typer.Abort


def _end(ledger: Ledger, target: _Target, timeout: float, forget: bool) -> bool:
    """Release everything of one pool; return whether that worked."""
    ledger.stop_pool(target.tag)  # otherwise a driver that is alive would replace what is terminated here
    last = ledger.last_order(target.tag)

    def end(source: sources.ProviderSource) -> list[MachineId]:
        rental = source.rental
        listing_delay = 0.0 if last is None else max(0.0, last + rental.listing_delay - time.time())
        return sweep(rental, target.tag, ledger, listing_delay=listing_delay, limit=timeout, report=say)

    answers = sources.ask(target.places, end)
    for answer in answers:
        if answer.error is not None:
            say(f"{target.tag}: {answer.trouble}")
    if any(answer.error is not None for answer in answers):
        return False
    if unseen := ledger.close_pool(target.tag, seen=not forget):
        say(
            f"{target.tag}: {', '.join(unseen)}: not found there. If it was rented in another account, project or "
            "region than the ones set here, set those, or check the provider's own web pages. If it is gone, run "
            f"skyward down {target.tag} --forget"
        )
        return False
    # Several may show the same account.
    ended = {(str(answer.source), id) for answer in answers for id in answer.value or ()}
    print_line(f"{target.tag}: {len(ended)} machine(s) terminated; nothing is left")
    return True
