"""How our processes are started: with the driver's interpreter options, and without the working directory on sys.path.

``python -m`` would search that folder first for every module, the standard library's included, so anyone who can write
to the folder that a program is run from could run code as its user. Our own code is located by an argument instead of
``PYTHONPATH``, which programs started by tasks would inherit.
"""

from __future__ import annotations

import subprocess
import sys

__all__ = ["RUN", "command"]

RUN = "import sys; r = sys.argv.pop(1); r in sys.path or sys.path.insert(0, r); from {} import main; main()"
"""Code for ``python -c``, to be formatted with a module's name; its first argument is the folder of `skyward`."""


def command(module: str, root: str) -> list[str]:
    """Return the command that runs ``main()`` of one of our modules; further arguments may be appended.

    Parameters
    ----------
    module
        The module's full name.
    root
        The folder or archive that contains skyward.
    """
    options = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001 - as multiprocessing does
    return [sys.executable, *options, "-P", "-c", RUN.format(module), root]
