"""Hands results to those who wait for them, away from the I/O thread.

Completing a future runs other people's code: joblib's callback pulls the user's generator. It may be slow, and it may
wait for results of another call. So each lane (one per call) has its turn in a thread of its own while it has
something to deliver: the items of a lane come one after another, and no lane waits for another.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["TOGETHER", "Delivery", "DeliveryQueue", "Errors"]

TOGETHER = 0.2
"""Seconds; what comes within them counts as having come at the same time."""

_log = logging.getLogger("skyward.delivery")


class DeliveryQueue:
    """Items of one call that are to be delivered one after another."""

    __slots__ = ("items", "out", "served")

    def __init__(self) -> None:
        self.items: deque[Any] = deque()
        # What is expected, oldest first; for the thread that puts items. A plain dict finds its first entry ever later.
        self.out: OrderedDict[int, Any] = OrderedDict()
        self.served = False  # whether a thread has this lane in hand; guarded by Delivery's lock


@dataclass(slots=True, eq=False)
class _Kept:
    lane: DeliveryQueue
    items: list[Any]
    first: Any  # of the items
    timer: asyncio.TimerHandle


class Errors:
    """Errors that are kept back a moment: of several that come together, the first in order is to be met.

    For one thread only, which has a running loop.

    Parameters
    ----------
    delivery
        Where they go.
    is_first
        Whether nothing can be expected that should be met before an item.
    """

    def __init__(self, delivery: Delivery, is_first: Callable[[Any], bool]) -> None:
        self._delivery = delivery
        self._is_first = is_first
        self._kept: dict[int, _Kept] = {}  # by the lane's id

    def put(self, lane: DeliveryQueue, item: object) -> None:
        """Deliver an item; at once if it is the first, else when `review` finds that it is, or in a moment."""
        if (kept := self._kept.get(id(lane))) is not None:
            kept.items.append(item)
            kept.first = min(kept.first, item, key=self._delivery.order)
        elif self._is_first(item):
            self._delivery.put(lane, item)
        else:
            timer = asyncio.get_running_loop().call_later(TOGETHER, self._deliver, id(lane))
            self._kept[id(lane)] = _Kept(lane, [item], item, timer)

    def review(self, lane: DeliveryQueue) -> None:
        """Something that was expected in this lane has come."""
        kept = self._kept.get(id(lane))
        if kept is not None and self._is_first(kept.first):
            self._deliver(id(lane))

    def _deliver(self, key: int) -> None:
        kept = self._kept.pop(key)
        kept.timer.cancel()
        for item in sorted(kept.items, key=self._delivery.order):
            self._delivery.put(kept.lane, item)

    def flush(self) -> None:
        """Deliver all, after the loop has ended."""
        for key in list(self._kept):
            self._deliver(key)


class Delivery:
    """Threads that deliver lanes. They are made as needed and kept until `close`.

    Parameters
    ----------
    deliver
        Called with each item, in a delivery thread.
    name
        Prefix of the threads' names.
    order
        A number of an item; those of a lane that are there at the same time come in the order of theirs.
    """

    def __init__(self, deliver: Callable[[Any], None], name: str, order: Callable[[Any], int]) -> None:
        self._deliver = deliver
        self.order = order
        self._name = name
        self._lock = threading.Lock()  # guards Lane.served against the last look at Lane.items, and _idle
        self._lanes: queue.SimpleQueue[DeliveryQueue | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._idle = 0

    def put(self, lane: DeliveryQueue, item: object) -> None:
        """Deliver an item after those that are in its lane; from any thread, never blocks."""
        lane.items.append(item)
        with self._lock:
            if lane.served:
                return
            lane.served = True
            if self._idle > 0 or not self._add_thread():
                self._idle -= 1  # below 0: one that is busy takes the lane when it is free
            if self._threads:
                self._lanes.put(lane)
                return
        self._serve_lane(lane)  # better here than never

    def _add_thread(self) -> bool:
        thread = threading.Thread(target=self._serve, name=f"{self._name}-{len(self._threads)}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is ending, or the system allows no more
            return False
        self._threads.append(thread)
        return True

    def _serve(self) -> None:
        while (lane := self._lanes.get()) is not None:
            self._serve_lane(lane)
            del lane

    def _serve_lane(self, lane: DeliveryQueue) -> None:
        while True:
            with self._lock:
                if not lane.items:
                    lane.served = False
                    self._idle += 1
                    break
            # Which answer came first is chance; whose error is met first shall not be, as far as that can be.
            here = [lane.items.popleft() for _ in range(len(lane.items))]
            here.sort(key=self.order)
            here.reverse()
            while here:
                try:
                    self._deliver(here.pop())
                except BaseException:  # sys.exit() in a callback must not end the lane with its thread
                    _log.exception("a result could not be delivered")

    def close(self, timeout: float = 1.0) -> None:
        """End the threads after what is in the lanes, waiting for each a while unless it is the caller."""
        for _ in self._threads:
            self._lanes.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout)
