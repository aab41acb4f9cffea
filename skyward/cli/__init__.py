"""The command ``skyward``: run programs, list offers and machines, terminate machines, and diagnose problems.

One module per command, with a function `run`. Commands query providers and the ledger; only `run` opens a pool.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

import skyward
from skyward.cli import doctor, down, ls, offers, runs, ssh
from skyward.cli.output import say
from skyward.cli.run import ProgramEnded, run
from skyward.core.errors import SkywardError

__all__ = ["app", "main"]

_AS_PYTHON = {"allow_interspersed_args": False}  # options after the program are its own
_INTERRUPTED = 130  # how typer ends after Ctrl-C

app = typer.Typer(
    name="skyward",
    help="joblib's Parallel on machines anywhere: list offers, and manage the machines you rented.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("offers", short_help="List machines for rent, cheapest first.")(offers.run)
app.command("ls", short_help="List the machines of your pools.")(ls.run)
app.command("down", short_help="Terminate the machines of a pool, or of all pools.")(down.run)
app.command("doctor", short_help="Check the setup, and say how to fix problems.")(doctor.run)
app.command("runs", short_help="Show which results are stored, and remove some.")(runs.run)
app.command(
    "run",
    short_help="Run a program with a pool as joblib's backend.",
    context_settings={"allow_interspersed_args": False},
)(run)
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
    """Run the command line and end the process.

    Its exit status is 0 on success, 1 after an error, which is reported in one line, 2 for wrong usage, and 130 after
    Ctrl-C.
    """
    try:
        app(prog_name="skyward")
    except SystemExit as end:
        if end.code != _INTERRUPTED or isinstance(end, ProgramEnded):
            raise
        say("interrupted")
        os._exit(_INTERRUPTED)  # a normal exit would wait for the threads that query the providers
    except (SkywardError, OSError) as error:  # an OSError is usually output that can't be written
        say(str(error))
        os._exit(1)  # a normal exit would try again to write that output
