"""How processes of ours begin: with the driver's interpreter options, and without the working directory in their path.

``python -m`` would look there for every module first, the standard library's too, so whoever may write into the folder
that a program is run from could run code as its user. Our own code is found by an argument and not by ``PYTHONPATH``,
which the programs that tasks start would inherit.
"""

from __future__ import annotations

import subprocess
import sys

__all__ = ["RUN", "command"]

RUN = "import sys; r = sys.argv.pop(1); r in sys.path or sys.path.insert(0, r); from {} import main; main()"
"""What the interpreter is told; a module's name goes in, and the first argument is where `skyward` is."""


def command(module: str, root: str) -> list[str]:
    """The command that runs ``main()`` of a module of ours; further arguments may follow.

    Parameters
    ----------
    module
        Its full name.
    root
        The folder, or the archive, that skyward is in.
    """
    options = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001 - as multiprocessing does
    return [sys.executable, *options, "-P", "-c", RUN.format(module), root]
