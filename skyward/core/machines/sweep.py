"""Terminates everything that a pool has left at a provider. Blocks; used where no pool is open."""

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
_EMPTY = 2  # consecutive polls that must show nothing: an API is only eventually consistent
_AGAIN = 60.0  # seconds after which a machine that is still there is terminated again


def sweep(
    provider: Rental,
    tag: str,
    ledger: Ledger | None = None,
    *,
    listing_delay: float = 0.0,
    limit: float = 900.0,
    report: Callable[[str], None] = _log.info,
) -> list[MachineId]:
    """Terminate every machine that carries the tag and remove the rest; returns when polls show that nothing is left.

    Parameters
    ----------
    provider, tag
        Where to look, and for which pool.
    ledger
        Records which machines are gone, as soon as they are.
    listing_delay
        Seconds from now for which a poll that shows nothing is not believed, since what was ordered a moment ago may
        not be shown yet.
    limit
        Seconds after which to give up.
    report
        Called with a line for each thing that is done.

    Returns
    -------
    list of str
        Ids of the machines that were terminated.

    Raises
    ------
    ProvisioningError
        Something could not be terminated; the message says what, and why.
    """
    begun = time.monotonic()
    ended: dict[MachineId, float] = {}  # when each was last terminated
    what, trouble, empty = "the machines", "", 0
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
                report(f"{provider.name}: terminating {', '.join(due)}")
                provider.destroy(due)
                ended.update(dict.fromkeys(due, now))
                if ledger is not None:
                    ledger.ended(provider.name, due)
            elif empty >= _EMPTY and now - begun >= listing_delay:
                what = "other resources"
                provider.clear(tag)
                return list(ended)
        except CloudError as error:  # not reached, or refused for now, as while a machine is still being created
            if str(error) != trouble:
                report(f"{error}; retrying")
            trouble = str(error)
        if time.monotonic() - begun > max(limit, listing_delay):
            reason = trouble or "it is still shown"
            raise ProvisioningError(f"{provider.name}: can't terminate {what} of {tag} within {limit:g} s: {reason}")
        time.sleep(provider.poll)
