"""The command ``skyward``: what can be bought, what we have, how to end it, and what is wrong.

One module for each command, with a function `run`. They ask providers and the ledger; no pool is opened here.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

import skyward
from skyward.cli import doctor, down, ls, offers, ssh
from skyward.cli.output import say
from skyward.core.errors import SkywardError

__all__ = ["app", "main"]

_INTERRUPTED = 130  # how typer ends after Ctrl-C

app = typer.Typer(
    name="skyward",
    help="joblib's Parallel on machines anywhere: see what can be rented, and look after what was.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("offers", short_help="List what can be rented, cheapest first.")(offers.run)
app.command("ls", short_help="List the machines of our pools, wherever they are.")(ls.run)
app.command("down", short_help="End the machines of a pool, or of all.")(down.run)
app.command("doctor", short_help="Look for what would go wrong, and say what to do.")(doctor.run)
app.command("ssh", short_help="Log in to a node, or run a command there.", cls=ssh.Command)(ssh.run)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"skyward {skyward.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line. Ends the process: 0 all is well, 1 an error that is told in one line, 2 bad usage.

    It is 130 after Ctrl-C.
    """
    try:
        app(prog_name="skyward")
    except SystemExit as end:
        if end.code != _INTERRUPTED:
            raise
        say("interrupted")
        os._exit(_INTERRUPTED)  # the usual end would wait for the threads that ask the providers
    except (SkywardError, OSError) as error:  # of the system's errors, mostly that nothing can be written
        say(str(error))
        os._exit(1)  # the usual end would try again to write what could not be written
