"""What is to be installed on nodes, as one value. It costs nothing to import; `planner` makes it."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace

__all__ = ["MACHINES", "Lack", "PackageLists", "Wheel", "driver_kind"]

MACHINES = ("x86_64", "aarch64")
"""Architectures of nodes; which one a machine has is known once it is there."""


def driver_kind() -> str:
    """Return the kind of this machine, as ``uname -sm`` prints it."""
    return f"{platform.system()} {platform.machine()}"


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel that is sent to nodes.

    Attributes
    ----------
    name, version
        What it is of.
    path
        Where it is on the driver.
    content
        Digest of what is in it.
    pure
        Whether it is for any platform; otherwise it is for machines like the driver's.
    """

    name: str
    version: str
    path: str
    content: str
    pure: bool


@dataclass(frozen=True, slots=True)
class PackageLists:
    """What a node's environment contains.

    Attributes
    ----------
    exact
        Lines with exact versions. All that they depend on is among them, on machines like the driver's.
    resolved
        Lines whose versions or dependencies the installer has to find, within those of `exact`.
    wheels
        What is sent, since no index has it; their dependencies are in the other lists.
    driver
        Kind of the driver's machine, as ``uname -sm`` prints it: its distributions' metadata holds for such machines.
    named
        What to install where all of it can't be: without what was only found in the program. None: nothing else.
    modules
        Files of modules that are loaded here, relative to ``site-packages``: nodes compile them ahead.
    """

    exact: tuple[str, ...] = ()
    resolved: tuple[str, ...] = ()
    driver: str = ""
    wheels: tuple[Wheel, ...] = ()
    named: PackageLists | None = None
    modules: tuple[str, ...] = ()

    def without(self, lines: Sequence[str]) -> PackageLists | None:
        """Leave out what the program imports, but nobody has named: perhaps only the driver uses it.

        Parameters
        ----------
        lines
            What can't be had, of `exact`.

        Returns
        -------
        PackageLists or None
            The same with fewer; None if there is nothing to leave out, or somebody has named some of it.
        """
        spare = set(self.exact) - set(self.named.exact if self.named is not None else self.exact)
        if not lines or not spare.issuperset(lines):
            return None
        return replace(self, exact=tuple(line for line in self.exact if line not in lines))


@dataclass(frozen=True, slots=True)
class Lack:
    """What there is no build of for a kind of machine.

    Attributes
    ----------
    text
        What, in words.
    is_fatal
        Whether nodes can't do without; otherwise it is only known that the program imports it somewhere.
    """

    text: str
    is_fatal: bool
