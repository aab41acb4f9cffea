"""Delivers results in threads other than the I/O thread.

Completing a future runs other people's code: joblib's callback advances the user's generator. That may be slow, and may
wait for results of another call. So a lane (there is one for each group of tasks) is served by a thread of its own
while it has something to deliver: the items of a lane are delivered one after another, and no lane waits for another.
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

__all__ = ["TOGETHER", "Delivery", "DeliveryQueue", "Errors", "start_thread"]

TOGETHER = 0.2
"""Seconds within which items count as having arrived at the same time."""

_log = logging.getLogger("skyward.delivery")


def start_thread(target: Callable[[], None], name: str) -> threading.Thread:
    """Start a daemon thread. Raises RuntimeError if none can be started."""
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread


class DeliveryQueue:
    """A lane: items of one group that are to be delivered one after another."""

    __slots__ = ("items", "out", "served")

    def __init__(self) -> None:
        self.items: deque[Any] = deque()
        # Expected items, oldest first; for the thread that puts items. In a plain dict, finding the first gets slow.
        self.out: OrderedDict[int, Any] = OrderedDict()
        self.served = False  # whether a thread serves this lane; guarded by Delivery's lock


@dataclass(slots=True, eq=False)
class _Withheld:
    lane: DeliveryQueue
    items: list[Any]
    first: Any  # of the items
    timer: asyncio.TimerHandle


class Errors:
    """Holds errors back for a moment, so that of several at the same time the first in order is delivered first.

    To be used by one thread only, in a running event loop.

    Parameters
    ----------
    delivery
        Where errors go.
    is_first
        Tells whether no item is expected that should be delivered before this one.
    """

    def __init__(self, delivery: Delivery, is_first: Callable[[Any], bool]) -> None:
        self._delivery = delivery
        self._is_first = is_first
        self.held: dict[int, _Withheld] = {}
        """Errors that are held back, by the lane's id."""

    def put(self, lane: DeliveryQueue, item: object) -> None:
        """Deliver an item: at once if it is the first, else when `review` finds that it is, or after `TOGETHER`."""
        if (withheld := self.held.get(id(lane))) is not None:
            withheld.items.append(item)
            withheld.first = min(withheld.first, item, key=self._delivery.order)
        elif self._is_first(item):
            self._delivery.put(lane, item)
        else:
            timer = asyncio.get_running_loop().call_later(TOGETHER, self._deliver, id(lane))
            self.held[id(lane)] = _Withheld(lane, [item], item, timer)

    def review(self, lane: DeliveryQueue) -> None:
        """Check whether errors can be delivered now, since an item expected in this lane has arrived."""
        withheld = self.held.get(id(lane))
        if withheld is not None and self._is_first(withheld.first):
            self._deliver(id(lane))

    def _deliver(self, key: int) -> None:
        withheld = self.held.pop(key)
        withheld.timer.cancel()
        for item in sorted(withheld.items, key=self._delivery.order):
            self._delivery.put(withheld.lane, item)

    def flush(self) -> None:
        """Deliver all errors, after the loop has ended."""
        for key in list(self.held):
            self._deliver(key)


class Delivery:
    """Threads that serve lanes. They are started as needed and kept until `close`.

    Parameters
    ----------
    deliver
        Called with each item, in a delivery thread.
    name
        Prefix of the threads' names.
    order
        Returns a number for an item; items of a lane that are ready at the same time are delivered in that order.
    start_thread
        Starts a thread. If it raises RuntimeError, items are delivered in the thread that puts them.
    before
        Called with items that are ready at the same time, before the first of them is delivered; None for nothing.
    """

    def __init__(
        self,
        deliver: Callable[[Any], None],
        name: str,
        order: Callable[[Any], int],
        start_thread: Callable[[Callable[[], None], str], threading.Thread] = start_thread,
        before: Callable[[list[Any]], None] | None = None,
    ) -> None:
        self._deliver = deliver
        self._before = before
        self._start_thread = start_thread
        self.order = order
        self._name = name
        self._lock = threading.Lock()  # guards _idle, and DeliveryQueue.served against a last check of its items
        self._lanes: queue.SimpleQueue[DeliveryQueue | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._idle = 0

    def put(self, lane: DeliveryQueue, item: object) -> None:
        """Deliver an item after those already in its lane. Callable from any thread, never blocks."""
        lane.items.append(item)
        with self._lock:
            if lane.served:
                return
            lane.served = True
            if self._idle > 0 or not self._add_thread():
                self._idle -= 1  # negative: a busy thread takes the lane when it is free
            if self._threads:
                self._lanes.put(lane)
                return
        self._serve_lane(lane)  # no thread can be started

    def _add_thread(self) -> bool:
        try:
            thread = self._start_thread(self._serve, f"{self._name}-{len(self._threads)}")
        except RuntimeError:  # the interpreter is shutting down, or the system allows no more threads
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
            # Which answer arrives first is chance; whose error is raised first should not be, as far as possible.
            here = [lane.items.popleft() for _ in range(len(lane.items))]
            here.sort(key=self.order)
            if self._before is not None:
                try:
                    self._before(here)
                except BaseException:  # as below
                    _log.exception("results could not be looked at together")
            here.reverse()
            while here:
                try:
                    self._deliver(here.pop())
                except BaseException:  # sys.exit() in a callback must not end the thread, and with it the lane
                    _log.exception("a result could not be delivered")

    def close(self, timeout: float = 1.0) -> None:
        """End the threads once the lanes are empty; wait up to `timeout` seconds for each but the calling one."""
        for _ in self._threads:
            self._lanes.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout)
