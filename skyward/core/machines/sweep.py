"""Gives back all that a pool has left at a provider, whoever bought it. Blocks; used where no pool is open."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from skyward.core.errors import CloudError, ProvisioningError
from skyward.core.interfaces import Rental
from skyward.core.machines.ledger import Ledger
from skyward.core.spec import MachineId, MachineState

__all__ = ["sweep"]

_log = logging.getLogger("skyward.sweep")
_EMPTY = 2  # looks in a row that must show nothing: an API's servers need not all know the same at once
_AGAIN = 60.0  # seconds after which a machine that is still there is ended again


def sweep(
    provider: Rental,
    tag: str,
    ledger: Ledger | None = None,
    *,
    listing_delay: float = 0.0,
    limit: float = 900.0,
    tell: Callable[[str], None] = _log.info,
) -> list[MachineId]:
    """End every machine that carries the tag and remove the rest; returns when looks show that nothing is left.

    Parameters
    ----------
    ledger
        Told which machines are gone, as soon as they are.
    listing_delay
        Seconds from now on for which a look that shows nothing is not believed, since what was ordered a moment ago may
        not be shown yet.
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
    begun = time.monotonic()
    ended: dict[MachineId, float] = {}  # when each was ended last
    what, trouble, empty = "what it has", "", 0
    while True:
        try:
            shown = provider.machines(tag)
            left = [machine.id for machine in shown if machine.state is not MachineState.GONE]
            now = time.monotonic()
            empty = 0 if left else empty + 1
            if ledger is not None:
                ledger.ended(provider.name, [machine.id for machine in shown if machine.state is MachineState.GONE])
            if due := [id for id in left if now - ended.get(id, -math.inf) >= _AGAIN]:
                what = ", ".join(left)
                tell(f"{provider.name}: ending {', '.join(due)}")
                provider.destroy(due)
                ended.update(dict.fromkeys(due, now))
                if ledger is not None:
                    ledger.ended(provider.name, due)
            elif empty >= _EMPTY and now - begun >= listing_delay:
                what = "what else carries the tag"
                provider.clear(tag)
                return list(ended)
        except CloudError as error:  # not reached, or refused for now, as while a machine is still being made
            if str(error) != trouble:
                tell(f"{error}; trying again")
            trouble = str(error)
        if time.monotonic() - begun > max(limit, listing_delay):
            reason = trouble or "it is still shown"
            raise ProvisioningError(f"{provider.name}: can't end {what} of {tag} within {limit:g} s: {reason}")
        time.sleep(provider.poll)
