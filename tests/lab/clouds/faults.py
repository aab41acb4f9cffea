"""Faults of a cloud, on a switch."""

from __future__ import annotations

import threading
from typing import Any

__all__ = ["NAMES", "Faults"]

NAMES = {
    "no_capacity": "create is refused: none of this kind is free",
    "quota": "create is refused: the account may not have more",
    "throttle": "any call is refused as coming too soon; `wait` seconds are advised where the API can say so",
    "server_error": "any call fails with a 500 (or 503) of the vendor's shape",
    "html": "any call is answered by a proxy's HTML page",
    "slow_boot": "a machine takes `seconds` longer to start",
    "never_boots": "a machine stays in its starting state",
    "never_answers": "a machine runs, says the API, but its address is silent",
    "wrong_host_key": "a machine shows another host key than the one it was sent",
    "eventual": "for `seconds` after its creation an instance is unknown to describe and list",
    "lost_reply": "create succeeds and the connection is closed without a reply, or a gateway's 503 says `gateway`",
    "token_expired": "the access token is expired before its time",
    "bad_credentials": "every call is refused: the credentials are unknown",
    "clock_skew": "the vendor's clock is `seconds` ahead, and it refuses what was signed by another",
    "fails_to_start": "a machine ends in the vendor's error state",
    "unready_group": "a security group that was made a moment ago is unknown to the call that adds a rule",
    "half_made": "create is refused, and the reply names an instance that exists all the same",
}
"""What each fault means. A cloud that can't have one ignores it."""


class Faults:
    """Which faults are on, and how often each still happens."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._on: dict[str, tuple[float, dict[str, Any]]] = {}
        self.happened: list[str] = []

    def __repr__(self) -> str:
        return f"<Faults {sorted(self._on)}>"

    def on(self, name: str, times: float = 1, **details: Any) -> None:
        """Let a fault happen so many times (``math.inf``: until `clear`); details as in `NAMES`."""
        assert name in NAMES, name
        with self._lock:
            self._on[name] = (times, details)

    def take(self, name: str) -> dict[str, Any] | None:
        """The fault's details if it is to happen now (which uses it up once), else None."""
        assert name in NAMES, name
        with self._lock:
            times, details = self._on.get(name, (0, {}))
            if times < 1:
                return None
            self._on[name] = (times - 1, details)
            self.happened.append(name)
            return details

    def clear(self) -> None:
        """No faults any more."""
        with self._lock:
            self._on.clear()
