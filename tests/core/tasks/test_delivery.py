"""Lanes deliver in order, one item at a time, and never wait for each other."""

from __future__ import annotations

import threading

import pytest

from skyward.core.tasks.delivery import Delivery, DeliveryQueue
from tests.lab.wait import eventually


def _number(item: object) -> int:
    return item if isinstance(item, int) else 0


def test_what_is_there_at_the_same_time_comes_in_order() -> None:
    """Of answers that wait, that of the task which was submitted first; of those without a number, as they came."""
    seen: list[object] = []
    began, may_go = threading.Event(), threading.Event()

    def deliver(item: object) -> None:
        began.set()
        assert may_go.wait(30)
        seen.append(item)

    delivery, lane = Delivery(deliver, "test", _number), DeliveryQueue()
    delivery.put(lane, 9)
    assert began.wait(30)
    for item in (3, 1, "a", 2, "b"):
        delivery.put(lane, item)
    may_go.set()
    eventually(lambda: len(seen) == 6)
    delivery.close()
    assert seen == [9, "a", "b", 1, 2, 3]


def test_a_lane_keeps_its_order_under_load() -> None:
    """Items put from several threads into several lanes: each lane delivers what it got, one at a time."""
    got: dict[int, list[int]] = {i: [] for i in range(4)}
    busy = [threading.Lock() for _ in range(4)]
    overlaps: list[int] = []

    def deliver(item: object) -> None:
        lane, number = item  # type: ignore[misc]
        if not busy[lane].acquire(blocking=False):
            overlaps.append(lane)
            return
        got[lane].append(number)
        busy[lane].release()

    delivery, lanes = Delivery(deliver, "test", _number), [DeliveryQueue() for _ in range(4)]

    def put(lane: int) -> None:
        for number in range(3000):
            delivery.put(lanes[lane], (lane, number))

    threads = [threading.Thread(target=put, args=(lane,)) for lane in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: sum(map(len, got.values())) == 12_000)
    delivery.close()
    assert not overlaps
    assert all(numbers == list(range(3000)) for numbers in got.values())


def test_a_blocked_lane_blocks_nobody_else() -> None:
    """While one lane's callback waits for another lane, that one is delivered."""
    released = threading.Event()
    seen: list[str] = []

    def deliver(item: object) -> None:
        if item == "wait":
            assert released.wait(30)
        elif item == "release":
            released.set()
        seen.append(str(item))

    delivery, one, two = Delivery(deliver, "test", _number), DeliveryQueue(), DeliveryQueue()
    delivery.put(one, "wait")
    delivery.put(two, "release")
    eventually(lambda: len(seen) == 2)
    delivery.close()
    assert set(seen) == {"wait", "release"}


def test_an_item_that_fails_does_not_end_the_lane() -> None:
    """The next one is delivered."""
    seen: list[object] = []

    def deliver(item: object) -> None:
        if item == 1:
            raise ValueError
        seen.append(item)

    delivery, lane = Delivery(deliver, "test", _number), DeliveryQueue()
    for item in (0, 1, 2):
        delivery.put(lane, item)
    eventually(lambda: seen == [0, 2])
    delivery.close()


def test_a_callback_that_exits_does_not_end_the_lane() -> None:
    """sys.exit() in somebody's callback ends neither the thread nor what waits behind it."""
    seen: list[object] = []

    def deliver(item: object) -> None:
        if item == 1:
            raise SystemExit(1)
        seen.append(item)

    delivery, lane = Delivery(deliver, "test", _number), DeliveryQueue()
    for item in (0, 1, 2):
        delivery.put(lane, item)
    eventually(lambda: seen == [0, 2])
    delivery.close()


def test_without_another_thread_everything_is_delivered_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the interpreter ends: no thread can be made, whether there is one already or not."""
    seen: list[object] = []
    delivery, made = Delivery(seen.append, "test", _number), Delivery(seen.append, "test", _number)
    made.put(DeliveryQueue(), "with a thread")
    eventually(lambda: seen)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    for item in range(5):
        delivery.put(DeliveryQueue(), item)
        made.put(DeliveryQueue(), item)
    eventually(lambda: len(seen) == 11)
    delivery.close()
    made.close()
