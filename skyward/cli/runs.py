"""``skyward runs``: lists resume files, shows what is in one, and removes what is no longer needed."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from typing import Annotated

import typer

from skyward.cli.output import age, as_json, print_line, say, table
from skyward.core.errors import ResumeFileError
from skyward.core.resume import listing
from skyward.core.resume.listing import Overview, PastRun, Pruning

__all__ = ["run"]

_DAY = 86_400.0  # seconds
_FILES = ("file", ">results", ">size", ">runs", ">last used", "state")
_FUNCTIONS = ("function", "code", ">results", ">used", ">size", ">time")
_RUNS = (">run", ">began", ">ran", ">taken", ">stored", "python", "host", "program")


def run(
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE]...", help="Resume files, or folders to search; default: here.")
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove results that the latest run neither reused nor stored.")
    ] = False,
    all: Annotated[bool, typer.Option("--all", help="With --prune, also those that the latest run used.")] = False,
    function: Annotated[
        str | None, typer.Option("--function", help="With --prune, only those of the function of this name.")
    ] = None,
    older: Annotated[
        float, typer.Option("--older", min=0, help="With --prune, only those computed more than this many days ago.")
    ] = 0.0,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --prune, don't ask.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """List the files of Compute(resume=...), show what is in one, or remove what is no longer needed."""
    if not prune and (all or function is not None or older or yes):
        raise typer.BadParameter("--all, --function, --older and --yes choose what --prune removes")
    named = [path for path in paths or () if not os.path.isdir(path)]  # noqa: PTH112 - texts, as they were given
    if prune:
        if len(named) != 1 or len(paths or ()) != 1:
            raise typer.BadParameter("name one file to prune", param_hint="FILE")
        _prune(named[0], Pruning(not all, function, older * _DAY), yes)
        return
    _list(paths or ["."], named, json)


def _list(paths: Sequence[str], named: Sequence[str], json: bool) -> None:
    """Print what files there are, or what is in the one that was named."""
    shown = []
    for path in listing.find(paths):
        try:
            shown.append(listing.overview(path))
        except ResumeFileError as error:
            if path in named:
                raise
            say(str(error))
    if json:
        as_json([dataclasses.asdict(one) | {"results": one.results} for one in shown])
    elif len(named) == 1 and len(shown) == 1:
        _show(shown[0])
    elif shown:
        table(_FILES, map(_file, shown))
    else:
        print_line(f"no resume files in {', '.join(map(os.path.abspath, paths))}")


def _prune(path: str, what: Pruning, yes: bool) -> None:
    count = listing.prune(path, what, really=False)
    if not count:
        print_line(f"nothing to remove from {path}")
        return
    total = listing.overview(path).results
    if not yes:
        typer.confirm(f"Remove {count:,} of the {total:,} results in {path}?", abort=True, err=True)
    before = listing.overview(path).size
    removed = listing.prune(path, what, really=True)
    print_line(f"removed {removed:,} of {total:,} results and freed {_size(before - listing.overview(path).size)}")


def _file(one: Overview) -> tuple[str, ...]:
    last = one.runs[0] if one.runs else None
    ended = None if last is None else last.ended
    state = "in use" if one.in_use else "-" if last is None else "ended" if ended is not None else "killed"
    used = "-" if last is None else f"{age(time.time() - (ended or last.began))} ago"
    return one.path, f"{one.results:,}", _size(one.size), str(len(one.runs)), used, state


def _show(one: Overview) -> None:
    table(_FILES, [_file(one)])
    if one.functions:
        print_line("")
        table(
            _FUNCTIONS,
            [
                (each.name, each.code[:8], f"{each.results:,}", f"{each.used:,}", _size(each.size), age(each.seconds))
                for each in one.functions
            ],
        )
    if one.runs:
        print_line("")
        table(_RUNS, [_run(each, one.in_use and index == 0) for index, each in enumerate(one.runs)])


def _run(each: PastRun, lives: bool) -> tuple[str, ...]:
    ran = age(each.ended - each.began) if each.ended is not None else "so far" if lives else "killed"
    began = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.began))
    counts = f"{each.taken:,}", f"{each.stored:,}"
    return (str(each.number), began, ran, *counts, each.python, f"{each.host}:{each.process}", each.program or "-")


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"
