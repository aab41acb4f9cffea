"""Output of commands: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from skyward.core.visible import in_json, shown

__all__ = ["age", "as_json", "memory", "money", "print_line", "say", "table", "waiting"]

_WIDE = 10_000  # columns, so that each row is one line, which can be searched for and copied


def say(text: str) -> None:
    """Print a message that is not a result, on standard error."""
    typer.echo(f"skyward: {shown(text)}", err=True)


def print_line(text: str) -> None:
    """Print a result for people, in lines."""
    typer.echo(shown(text))


def waiting(text: str) -> AbstractContextManager[object]:
    """Show on a terminal what the command is waiting for."""
    return Console(stderr=True, highlight=False).status(Text(shown(text, lines=False)))


def as_json(value: object) -> None:
    """Print a result for programs."""
    typer.echo(in_json(json.dumps(value, indent=2, ensure_ascii=False)))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a result for people; a column whose name starts with ``>`` is right-aligned.

    The terminal wraps lines that do not fit, so put the most important columns first.
    """
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        drawn.add_column(name.removeprefix(">"), justify="right" if name.startswith(">") else "left")
    for row in rows:
        drawn.add_row(*(Text(shown(cell, lines=False)) for cell in row))  # not as markup: the texts come from clouds
    Console(highlight=False, width=_WIDE).print(drawn)


def age(seconds: float | None) -> str:
    """A duration in one or two units, such as ``2h 05m``."""
    if seconds is None:
        return "?"
    whole = max(0, int(seconds))
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days}d {hours:02}h"
    if hours:
        return f"{hours}h {minutes:02}m"
    return f"{minutes}m {whole % 60:02}s" if minutes else f"{whole}s"


def money(dollars: float | None) -> str:
    """US dollars, with four decimals."""
    return "?" if dollars is None else f"${dollars:.4f}"


def memory(size: int | None) -> str:
    """Bytes in GiB."""
    return "?" if size is None else f"{size / 2**30:.4g} GiB"
