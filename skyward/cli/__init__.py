"""The command ``skyward``: what can be bought, what we have, how to end it, and what is wrong.

One module for each command, with a function `run`. They ask providers and the ledger; no pool is opened here.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import skyward
from skyward.cli import doctor, down, ls, offers, ssh
from skyward.core.errors import SkywardError

__all__ = ["app", "main"]

app = typer.Typer(
    name="skyward",
    help="joblib's Parallel on machines anywhere: look at what is on offer, and after what was bought.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("offers")(offers.run)
app.command("ls")(ls.run)
app.command("down")(down.run)
app.command("doctor")(doctor.run)
app.command("ssh", cls=ssh.Command)(ssh.run)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"skyward {skyward.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version and end.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line. Ends the process: 0 all is well, 1 an error that is told in one line, 2 bad usage."""
    try:
        app(prog_name="skyward")
    except SkywardError as error:
        print(f"skyward: {error}", file=sys.stderr)
        sys.exit(1)
