"""What a cloud would bill: every resource from its creation to its end."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

__all__ = ["Meter"]


@dataclass
class _Line:
    began: float
    price: float
    ended: float | None = None

    def seconds(self, now: float) -> float:
        return (now if self.ended is None else self.ended) - self.began


class Meter:
    """Resources by (kind, id). A kind is a word such as "instance", "volume", "script", "key", "security group"."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the lines; requests come from several threads
        self._lines: dict[tuple[str, str], _Line] = {}

    def __repr__(self) -> str:
        return f"<Meter {len(self._lines)} resources, live: {self.live}>"

    def begin(self, kind: str, id: str, price: float = 0.0) -> None:
        """A resource exists from now on, at `price` dollars an hour."""
        with self._lock:
            assert (kind, id) not in self._lines, f"{kind} {id} began twice"
            self._lines[kind, id] = _Line(time.monotonic(), price)

    def end(self, kind: str, id: str) -> None:
        """A resource exists no longer; may be repeated."""
        with self._lock:
            line = self._lines[kind, id]
            line.ended = line.ended or time.monotonic()

    @property
    def live(self) -> list[tuple[str, str]]:
        """(kind, id) of what would be billed or would clutter the account now, oldest first."""
        with self._lock:
            return [key for key, line in self._lines.items() if line.ended is None]

    def ever(self, kind: str) -> list[str]:
        """Ids of all resources of a kind that ever were, oldest first."""
        with self._lock:
            return [id for known, id in self._lines if known == kind]

    def seconds(self, kind: str) -> float:
        """Seconds that all resources of a kind have existed, summed."""
        now = time.monotonic()
        with self._lock:
            return sum(line.seconds(now) for (known, _), line in self._lines.items() if known == kind)

    @property
    def cost(self) -> float:
        """Dollars so far."""
        now = time.monotonic()
        with self._lock:
            return sum(line.seconds(now) / 3600 * line.price for line in self._lines.values())

    def cost_of(self, kind: str) -> float:
        """Dollars so far for all resources of a kind."""
        now = time.monotonic()
        with self._lock:
            lines = [line for (known, _), line in self._lines.items() if known == kind]
        return sum(line.seconds(now) / 3600 * line.price for line in lines)
