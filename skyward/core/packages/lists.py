"""What is to be installed on nodes, as one value. It costs nothing to import; `planner` makes it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PackageLists"]


@dataclass(frozen=True, slots=True)
class PackageLists:
    """What a node's environment is made of.

    Attributes
    ----------
    exact
        Lines with exact versions. All that they depend on is among them, on machines like the driver's.
    resolved
        Lines whose versions or dependencies the installer has to find, within those of `exact`.
    driver
        Kind of the driver's machine, as ``uname -sm`` prints it: its distributions' metadata holds for such machines.
    """

    exact: tuple[str, ...] = ()
    resolved: tuple[str, ...] = ()
    driver: str = ""
