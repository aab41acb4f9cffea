"""Gives back all that a pool has left at a provider, whoever bought it. Blocks; used where no pool is open."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from skyward.core.errors import CloudError, ProvisioningError, SkywardError
from skyward.core.interfaces import Rental
from skyward.core.spec import MachineId, MachineState

__all__ = ["sweep"]

_log = logging.getLogger("skyward.sweep")
_PAUSE = 2.0  # seconds between two looks


def sweep(
    provider: Rental, tag: str, *, limit: float = 900.0, tell: Callable[[str], None] = _log.info
) -> list[MachineId]:
    """End every machine that carries the tag and remove the rest; returns when a look shows that nothing is left.

    Parameters
    ----------
    limit
        Seconds after which it gives up.
    tell
        Told what is done, a line at a time.

    Returns
    -------
    list of str
        Ids of the machines that were ended.

    Raises
    ------
    ProvisioningError
        Something could not be ended; what, and why.
    """
    end = time.monotonic() + limit
    ended: list[MachineId] = []
    while True:
        trouble: SkywardError | None = None
        left = [machine.id for machine in provider.machines(tag) if machine.state is not MachineState.GONE]
        new = [id for id in left if id not in ended]
        if new:
            tell(f"{provider.name}: ending {', '.join(new)}")
            ended += new
        try:
            if left:
                provider.destroy(left)
            else:
                provider.clear(tag)
                return ended
        except CloudError as error:  # refused for now, e.g. while a machine is still being made
            trouble = error
        if time.monotonic() > end:
            what = ", ".join(left) or "what else carries the tag"
            raise ProvisioningError(f"{provider.name}: {what} of {tag} is still there after {limit:g} s: {trouble}")
        time.sleep(_PAUSE)
