"""``skyward offers``: lists the machines for rent, with their prices."""

from __future__ import annotations

from typing import Annotated

import typer

from skyward.cli import sources
from skyward.cli.output import as_json, memory, money, say, table, waiting
from skyward.core.errors import ConfigError, NoOffer
from skyward.core.machines import offer_selection
from skyward.core.spec import Allocation, Offer, Resources

__all__ = ["run"]

_DEFAULT_LIMIT = 30
_COLUMNS = ("provider", "machine", ">vcpus", ">memory", "accelerator", "region", "market", ">$/h")


def run(
    provider: sources.NamedProviders = None,
    machine: Annotated[str | None, typer.Option(help="Exact machine type.")] = None,
    gpu: Annotated[str | None, typer.Option("--gpu", "--accelerator", help="GPU, such as A100 or H100:8.")] = None,
    vcpus: Annotated[int | None, typer.Option(help="Minimum number of cores.")] = None,
    min_memory: Annotated[str | None, typer.Option("--memory", help="Minimum memory, such as 32GB.")] = None,
    max_price: Annotated[float | None, typer.Option(help="Maximum price per machine, in USD per hour.")] = None,
    spot: Annotated[
        bool | None, typer.Option("--spot/--on-demand", help="Only spot machines, or only on-demand ones.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=0, help="Maximum number of rows; 0 for all. [default: 30, JSON: all]")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """List machines for rent, cheapest first, from the given providers or from all with credentials."""
    try:
        wanted = Resources(machine, gpu, vcpus, min_memory, max_price)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error
    asked, _ = sources.chosen(provider)
    with waiting(f"querying {', '.join(map(str, asked))}"):
        answers = sources.ask(asked, lambda source: source.provider.offers(wanted))
    found = [(str(answer.source), offer) for answer in answers for offer in answer.value or ()]
    for answer in answers:
        if answer.error is not None:
            say(answer.trouble)
    chosen = _select(found, wanted, spot)
    shown = chosen[: (None if json else _DEFAULT_LIMIT) if limit is None else limit or None]
    if json:
        as_json([_facts(*pair) for pair in shown])
    elif shown:
        table(_COLUMNS, (_cells(*pair) for pair in shown))
        if len(shown) < len(chosen):
            say(f"{len(chosen) - len(shown)} more; use --limit 0 to show all")
    if not chosen and all(answer.error is not None for answer in answers):
        raise typer.Exit(1)  # each error has been reported
    if not chosen:
        raise NoOffer(_explain([offer for _, offer in found], wanted, spot))


def _select(found: list[tuple[str, Offer]], wanted: Resources, spot: bool | None) -> list[tuple[str, Offer]]:
    """All offers that fit, not only those that a pool would choose by default; cheapest first, unknown prices last."""

    def by_price(pair: tuple[str, Offer]) -> tuple[bool, float, str, str]:
        _, offer = pair
        return offer.price is None, offer.price or 0.0, offer.machine, offer.region or ""

    fitting = [pair for pair in found if offer_selection.meets(pair[1], wanted) and spot in (None, pair[1].spot)]
    return sorted(fitting, key=by_price)


def _explain(offers: list[Offer], wanted: Resources, spot: bool | None) -> str:
    """Explain why there is no offer."""
    matching = [offer.spot for offer in offers if offer_selection.meets(offer, wanted, price=False)]
    if matching and spot not in (None, *matching):
        kind, option = ("for a spot machine", "--spot") if spot else ("on demand", "--on-demand")
        return f"none of the {len(matching)} matching offers is {kind}; leave out {option}"
    allocation: Allocation = "cheapest" if spot is None else "always-spot" if spot else "on-demand"
    return offer_selection.nearest(offers, wanted, allocation)


def _facts(provider: str, offer: Offer) -> dict[str, object]:
    names = (
        "machine",
        "vcpus",
        "memory",
        "accelerator",
        "accelerators",
        "accelerator_memory",
        "region",
        "spot",
        "price",
    )
    return {"provider": provider, **{name: getattr(offer, name) for name in names}}


def _cells(provider: str, offer: Offer) -> tuple[str, ...]:
    count = f"{offer.accelerators} x " if offer.accelerators > 1 else ""
    return (
        *(provider, offer.machine, "?" if offer.vcpus is None else str(offer.vcpus), memory(offer.memory)),
        *(f"{count}{offer.accelerator}" if offer.accelerator else "-", offer.region or "-"),
        *("spot" if offer.spot else "on demand", money(offer.price)),
    )
