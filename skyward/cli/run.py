"""``skyward run``: runs a program as Python would, with a pool as joblib's default backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from skyward.cli.sources import NamedProviders, named

__all__ = ["ProgramEnded", "pool_options", "run"]


class ProgramEnded(SystemExit):
    """The program's own end, with its exit status."""


def run(
    program: Annotated[list[str], typer.Argument(help="The script, and its arguments.", metavar="PROGRAM [ARG]")],
    module: Annotated[bool, typer.Option("-m", help="PROGRAM is the name of a module, as with `python -m`.")] = False,
    pool: Annotated[str | None, typer.Option(help="A pool described in pyproject.toml or config.toml.")] = None,
    provider: NamedProviders = None,
    nodes: Annotated[str | None, typer.Option(help="Number of machines; 2-10 starts with 2.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Slots per machine.")] = None,
    machine: Annotated[str | None, typer.Option(help="Exact machine type.")] = None,
    accelerator: Annotated[str | None, typer.Option("--gpu", "--accelerator", help="Such as A100 or H100:8.")] = None,
    vcpus: Annotated[int | None, typer.Option(help="Minimum number of cores.")] = None,
    memory: Annotated[str | None, typer.Option(help="Minimum memory, such as 32GB.")] = None,
    max_price: Annotated[float | None, typer.Option(help="Maximum price per machine, in USD per hour.")] = None,
    budget: Annotated[float | None, typer.Option(help="Maximum total cost, in USD.")] = None,
    dashboard: Annotated[bool, typer.Option("--dashboard", help="Show the pool on a live page.")] = False,
    resume: Annotated[str | None, typer.Option(help="A file that stores results; repeat to continue.")] = None,
) -> None:
    """Run an unmodified program with a pool as the default backend of joblib's Parallel."""
    given = pool_options(
        provider=provider,
        nodes=nodes,
        concurrency=concurrency,
        machine=machine,
        accelerator=accelerator,
        vcpus=vcpus,
        memory=memory,
        max_price=max_price,
        budget=budget,
        dashboard=dashboard,
        resume=resume,
    )
    from skyward.cli import program as programs  # noqa: PLC0415 - other commands need none of what a pool needs

    raise ProgramEnded(programs.run(program, module, pool, given))


def pool_options(*, provider: Sequence[str] | None, nodes: str | None, **others: object) -> dict[str, Any]:
    """Turn a command line's options for a pool into arguments of `Compute`, without those that were not given."""
    given = {
        "provider": [source.provider for source in named(provider)] if provider else None,
        "nodes": _nodes(nodes),
        **others,
    }
    return {name: value for name, value in given.items() if value is not None and value is not False}


def _nodes(text: str | None) -> int | tuple[int, int] | None:
    if text is None:
        return None
    low, dash, high = text.partition("-")
    try:
        return (int(low), int(high)) if dash else int(low)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a number nor MIN-MAX", param_hint="--nodes") from None
