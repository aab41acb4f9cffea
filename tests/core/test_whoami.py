"""Numbers for workers."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

import skyward as sky
from skyward.core.whoami import CurrentWorker, Seats, current_worker


@given(st.lists(st.integers(0, 5), max_size=50))
def test_the_lowest_free_number_is_taken(steps: list[int]) -> None:
    """0 takes one, another number gives back one of those that are taken."""
    seats, taken = Seats(), list[int]()
    for step in steps:
        if step == 0 or not taken:
            seat = seats.take()
            assert seat == min(set(range(1, len(taken) + 2)) - set(taken))
            taken.append(seat)
        else:
            seats.release(taken.pop(step % len(taken)))


def test_here_is_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sky.current_worker() is None
    monkeypatch.setenv("SKYWARD_NODE", "node-3")
    assert current_worker() == CurrentWorker("node-3", 0)
    monkeypatch.setenv("SKYWARD_SLOT", "2")
    assert str(current_worker()) == "node-3/slot-2"


def test_a_thread_has_a_number_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKYWARD_NODE", "node-1")
    seats, seen, both = Seats(), list[object](), threading.Barrier(2)

    def work() -> None:
        with seats.taken():
            both.wait(30)
            seen.append(current_worker())
        assert current_worker() == CurrentWorker("node-1", 0)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == [("node-1", 1), ("node-1", 2)]  # type: ignore[type-var]
