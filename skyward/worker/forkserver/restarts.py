"""Whether a fork server that died is replaced, and after how long. Pure."""

from __future__ import annotations

import math
from typing import NamedTuple

__all__ = ["Ended", "RestartPolicy"]

_DELAYS = (0.0, 0.1, 0.5, 2.0, 5.0)  # seconds until each replacement in a row is started
_WELL = 10.0  # seconds; a fork server that was up for longer has shown that it can live here


class Ended(NamedTuple):
    """How a fork server ended without having been asked to.

    Attributes
    ----------
    description
        In words, with the last lines that it printed.
    killed
        Whether a signal ended it.
    hung
        Seconds for which it had not answered when the agent killed it; 0 if it ended otherwise.
    """

    description: str
    killed: bool
    hung: float = 0.0


class RestartPolicy:
    """Allows a few restarts in a row with growing delays; a fork server that was up for long starts a new row."""

    def __init__(self) -> None:
        self.is_up = False
        """Whether slots can be forked."""
        self._up_since = math.inf
        self._delays = iter(_DELAYS)

    def __repr__(self) -> str:
        return f"<RestartPolicy {'up' if self.is_up else 'not up'}>"

    def up(self, now: float) -> None:
        """The fork server is up since `now`, in seconds."""
        self.is_up, self._up_since = True, now

    def ended(self, end: Ended, now: float, proven: bool) -> float | None:
        """Return the seconds until it is replaced; None if it is not.

        Parameters
        ----------
        end
            How it ended.
        now
            Seconds, of the same clock as in `up`.
        proven
            Whether slots have ever been up here.
        """
        if now - end.hung > self._up_since + _WELL:
            self._delays = iter(_DELAYS)
        useful = self.is_up if end.hung else end.killed or proven
        self.is_up, self._up_since = False, math.inf
        return next(self._delays, None) if useful else None
