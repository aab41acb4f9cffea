"""``%skyward`` in notebooks: a pool as joblib's default backend, for one cell or from one cell on."""

from __future__ import annotations

import shlex
from typing import Any

import typer
import typer.main
from IPython.core.error import UsageError

from skyward.cli import app
from skyward.cli.program import make_pool
from skyward.cli.run import pool_options
from skyward.core.pool import Compute

__all__ = ["SkywardMagic", "load"]

_OFF = "off"
_WrongUsage: type[Exception] = typer.BadParameter.__bases__[0]  # click's, or typer's copy of it
_HELP = """Run joblib's Parallel on a pool.

    %skyward [OPTIONS]     from now on, until `%skyward off`; without options, on this machine
    %%skyward [OPTIONS]    in this cell

Options are those of the command `skyward run`, such as --pool NAME, --provider aws, --nodes 10, --concurrency 10. If a
pool is open, `%skyward` without options shows it, and other options replace it."""


class SkywardMagic:
    """The magic of one notebook.

    Parameters
    ----------
    shell
        IPython's shell.
    """

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._pool: Compute | None = None
        self._line = ""

    def __repr__(self) -> str:
        return f"<SkywardMagic {self._pool}>"

    def __call__(self, line: str, cell: str | None = None) -> object:
        """Carry out ``%skyward LINE``, or ``%%skyward LINE`` above a cell."""
        words = shlex.split(line)
        if {"-h", "--help"} & set(words):
            raise UsageError(_HELP)
        if cell is not None:
            with _pool(words):
                self._shell.run_cell(cell)
            return None
        if words == [_OFF]:
            self.close()
            return None
        if self._pool is not None and self._pool.is_active and line.strip() in ("", self._line):
            return self._pool.status()
        pool = _pool(words)
        self.close()
        self._pool, self._line = pool.start(), line.strip()
        return None

    def close(self) -> None:
        """End the pool, if one is open."""
        if (pool := self._pool) is not None:
            self._pool = None
            pool.close()


def _pool(words: list[str]) -> Compute:
    """Create the pool that the options describe."""
    command = typer.main.get_command(app).commands["run"]  # type: ignore[attr-defined]
    try:
        options = dict(command.make_context("%skyward", [*words, "--", "notebook"]).params)
        if options.pop("program") != ["notebook"] or options.pop("module"):
            raise UsageError("%skyward takes options only: the program is the notebook")
        name = options.pop("pool")
        return make_pool(name, pool_options(**options))
    except _WrongUsage as error:
        raise UsageError(f"%skyward: {error}") from None


def load(shell: Any) -> None:
    """Register the magic."""
    magic = SkywardMagic(shell)

    def skyward(line: str, cell: str | None = None) -> object:
        return magic(line, cell)

    skyward.__doc__ = _HELP
    shell.register_magic_function(skyward, "line_cell", "skyward")
